"""xGQA: GQA's questions in eight languages, answered in English.

Source: xGQA (2109.06082), the few-shot test set. Two harnesses publish numbers: Centurio's (2501.05122) takes
an answer only as it stands, Pangea's (2410.16153) also one that merely contains it, so that "woman" is right
where "man" is. Centurio's is the default, since Maya's published numbers are of it and long answers gain
nothing. Its prompt is not public: both ask in Pangea's words and cut where Pangea does, at 16 tokens;
Centurio's limit is 512, but no right answer is so long.
"""

from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import MAX_NEW_TOKENS, RowPictures, Split, language_splits, loaded
from .short_answers import ShortAnswers

REPOSITORY = "neulab/PangeaBench-xgqa"
COLUMNS = ("image", "question", "answer")
LANGUAGES = {lang: lang for lang in ("en", "zh", "ru", "bn", "de", "id", "ko", "pt")}
# Pangea joins it to the question with a space.
SHORT = " Answer the question using a single word or phrase"


class XGqa(ShortAnswers):
    """Scenes, objects and their relations, 9,666 questions in each of eight languages."""

    name = "xgqa"
    title = "xGQA"
    contamination = (
        "LLaVA-1.5's finetuning data, which PALO and Maya use too, has GQA's training "
        "questions, about other pictures"
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
            # The same pictures in all languages, in each row.
            pictures = split.picture_names()
            for number, row in split.rows():
                question, gold = (split.text(number, row, each) for each in ("question", "answer"))
                if not gold.strip():
                    raise ValueError(
                        f"{split.place}: row {number}: answer: expected one, found none"
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
