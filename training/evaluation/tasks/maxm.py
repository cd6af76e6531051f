"""MaXM: short answers in seven languages, any of several right ones.

Source: MaXM (2209.05401). Two harnesses publish numbers. Centurio's (2501.05122) wants an answer that equals a
reference answer. Pangea's (2410.16153) accepts one that begins or ends with it, but only if the reference answer has
no capital. Centurio's rule is the default: Maya's published numbers use it, and it treats all languages alike.
Centurio's prompt is not public, so both protocols use Pangea's prompt and its limit of 64 tokens; Centurio's limit
is 512.
"""

from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import UNSEEN, RowPictures, Split, language_splits, loaded
from .short_answers import ShortAnswers

REPOSITORY = "neulab/PangeaBench-maxm"
COLUMNS = ("image", "image_id", "question", "answers")
# BCP-47 code -> the name of the split. NAMES has the language's name in the prompt.
LANGUAGES = {lang: lang for lang in ("en", "zh", "fr", "hi", "ro", "th")} | {"he": "iw"}
NAMES = {
    "en": "English",
    "zh": "Chinese",
    "fr": "French",
    "hi": "Hindi",
    "ro": "Romanian",
    "th": "Thai",
    "he": "Hebrew",
}
PREFIX = "Given the image and the question, provide a concise answer. "
SUFFIX = "\nAnswer the question using a single word or phrase in {language}."
MAX_NEW_TOKENS = 64


class MaXm(ShortAnswers):
    """Questions about pictures from many regions, in seven languages."""

    languages = tuple(LANGUAGES)
    name = "maxm"
    title = "MaXM"
    contamination = UNSEEN
    protocols = {
        "centurio": "Centurio (2501.05122): equal to any right answer in small letters; asked as pangea",
        "pangea": "Pangea (2410.16153), lmms_eval/tasks/maxm: relaxed_accuracy",
    }
    rules = {"centurio": "centurio_exact_any", "pangea": "pangea_relaxed"}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{PREFIX}{{question}}{SUFFIX}",
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
            suffix = SUFFIX.format(language=NAMES[language])
            for number, row in split.rows():
                question, picture = (
                    split.text(number, row, each) for each in ("question", "image_id")
                )
                answers = row["answers"]
                if not isinstance(answers, list) or not all(
                    isinstance(each, str) and each.strip() for each in answers or [None]
                ):
                    raise ValueError(
                        f"{split.place}: row {number}: answers: expected a list of reference answers, found "
                        f"{answers!r}"
                    )
                places.setdefault(picture, (split, number))
                requests.append(
                    Request(
                        id=f"{language}/{number}",
                        language=language,
                        content=(
                            Picture(picture),
                            PREFIX + question.strip() + suffix,
                        ),
                        max_new_tokens=MAX_NEW_TOKENS,
                        item=picture,
                        answer_language=language,
                        expected=tuple(answers),
                    )
                )
        first, *others = splits.values()
        names = ", ".join(LANGUAGES[language] for language in splits)
        return loaded(selection, first, requests, RowPictures(places), names, others)
