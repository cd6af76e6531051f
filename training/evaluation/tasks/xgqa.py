"""xGQA: GQA's questions in eight languages, answered in English.

Source: xGQA (2109.06082), the few-shot test set. Two harnesses publish numbers. Centurio's (2501.05122) wants an
exact match. Pangea's (2410.16153) also accepts an answer that contains the reference, so "woman" is right where
"man" is expected. Centurio's rule is the default: Maya's published numbers use it, and it gives long answers no
advantage. Centurio's prompt is not public, so both protocols use Pangea's prompt and its limit of 16 tokens;
Centurio's limit is 512, but no reference answer is that long.
"""

from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import MAX_NEW_TOKENS, MIX, RowPictures, Split, language_splits, loaded
from .short_answers import ShortAnswers

REPOSITORY = "neulab/PangeaBench-xgqa"
COLUMNS = ("image", "question", "answer")
LANGUAGES = {lang: lang for lang in ("en", "zh", "ru", "bn", "de", "id", "ko", "pt")}
# Pangea puts a space between the question and this text.
SHORT = " Answer the question using a single word or phrase"


class XGqa(ShortAnswers):
    """Scenes, objects and their relations: 9,666 questions in each of eight languages."""

    languages = tuple(LANGUAGES)
    name = "xgqa"
    title = "xGQA"
    contamination = (
        f"Translations of GQA's testdev. {MIX} has 72,000 questions of GQA's train split, so the way of answering "
        "was seen; the pictures are others."
    )
    protocols = {
        "centurio": "Centurio (2501.05122): equal in small letters; asked as pangea",
        "pangea": "Pangea (2410.16153), lmms_eval/tasks/xgqa: the right answer occurs in the prediction",
    }
    rules = {"centurio": "centurio_exact", "pangea": "pangea_contains"}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SHORT}.",
            "prompt_not_english": f"{{question}}{SHORT} in English.",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        splits = language_splits(
            selection, REPOSITORY, None, "default", LANGUAGES, COLUMNS, "image"
        )
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for language, split in splits.items():
            suffix = f"{SHORT}." if language == "en" else f"{SHORT} in English."
            # Each row holds its picture, and all languages share the pictures.
            pictures = split.picture_names()
            for number, row in split.rows():
                question, gold = (split.text(number, row, each) for each in ("question", "answer"))
                if not gold.strip():
                    raise ValueError(
                        f"{split.place}: row {number}: answer: expected a text, found none"
                    )
                picture = pictures[number]
                places.setdefault(picture, (split, number))
                requests.append(
                    Request(
                        id=f"{language}/{number}",
                        language=language,
                        content=(Picture(picture), question.strip() + suffix),
                        max_new_tokens=MAX_NEW_TOKENS,
                        item=picture,
                        answer_language="en",
                        expected=gold,
                    )
                )
        first, *others = splits.values()
        names = ", ".join(splits)
        return loaded(selection, first, requests, RowPictures(places), names, others)
