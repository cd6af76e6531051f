"""MTVQA: short answers about text in pictures, in nine languages.

Source: MTVQA (2405.11985). Three scoring rules are published, all for the same prompt. The default is the
benchmark's own script: the reference answer must occur in the prediction. The script removes full stops from the
prediction only, so a reference like 3.5 is never found. Long predictions have an advantage. lmms-eval removes full stops
from both. Centurio (2501.05122) wants an exact match. The mean over languages is the benchmark's average.
"""

import ast
from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import UNSEEN, RowPictures, Split, loaded
from .short_answers import ShortAnswers

REPOSITORY = "ByteDance/MTVQA"
COLUMNS = ("image", "qa_pairs", "lang")
# The dataset's name of a language -> BCP-47 code.
LANGUAGES = {name: name.lower() for name in ("AR", "DE", "FR", "IT", "JA", "RU", "TH", "VI")}
LANGUAGES["KR"] = "ko"
SUFFIX = "\nAnswer the question using a word or phrase in the language of the question."
# lmms-eval's limit; Centurio's is 512.
MAX_NEW_TOKENS = 64


class MtVqa(ShortAnswers):
    """Text in pictures in nine languages: 2,116 pictures of the test set."""

    languages = tuple(LANGUAGES.values())
    name = "mtvqa"
    title = "MTVQA"
    contamination = (
        f"{UNSEEN} Its train split is public: a model of others may have been trained on it."
    )
    protocols = {
        "paper": "MTVQA (2405.11985): the right answer occurs in the prediction",
        "lmms_eval": "lmms-eval 0.7.3, tasks/mtvqa: as paper, without full stops on both sides",
        "centurio": "Centurio (2501.05122): equal in small letters; asked as paper",
    }
    rules = {"paper": "mtvqa_contains", "lmms_eval": "lmms_contains", "centurio": "centurio_exact"}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SUFFIX}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS, "image")
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            if row["lang"] not in LANGUAGES:
                raise ValueError(
                    f"{split.place}: row {number}: lang: expected one of {', '.join(LANGUAGES)}, found "
                    f"{row['lang']!r}"
                )
            language = LANGUAGES[row["lang"]]
            pairs = _pairs(row["qa_pairs"])
            if not pairs:
                raise ValueError(
                    f"{split.place}: row {number}: qa_pairs: expected a Python list of questions and "
                    f"answers, found {str(row['qa_pairs'])[:80]!r}"
                )
            picture = f"{language}/{number}"
            places[picture] = (split, number)
            requests += [
                Request(
                    id=f"{picture}/{place}",
                    language=language,
                    content=(Picture(picture), question + SUFFIX),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture,
                    answer_language=language,
                    expected=gold,
                )
                for place, (question, gold) in enumerate(pairs)
            ]
        return loaded(selection, split, requests, RowPictures(places), name)


def _pairs(cell: str | None) -> list[tuple[str, str]]:
    """Parse a cell, a Python list as text, into (question, answer) pairs; return none for any other text."""
    try:
        pairs = [
            (str(pair["question"]).strip(), str(pair["answer"]).strip())
            for pair in ast.literal_eval(cell or "")
        ]
    except (SyntaxError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        return []
    return pairs if all(question and gold for question, gold in pairs) else []
