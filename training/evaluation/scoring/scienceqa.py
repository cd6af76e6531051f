"""ScienceQA: accuracy over all questions, and over those with an image.

Source: ScienceQA (2209.09513) and LLaVA, llava/eval/eval_science_qa.py. LLaVA's published number is the
accuracy over questions with an image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from .parsed import Tally, no_duplicates, tally

METRIC = "scienceqa@1"


@dataclass(frozen=True)
class ScienceQaRow:
    """A parsed answer, None where it is unparsable, with the model's answer as it is."""

    id: str
    prediction: str | None
    answer: str
    has_image: bool
    raw: str = ""


class ScienceQaScore(TypedDict):
    """`image` is None without questions that have an image."""

    metric: str
    all: Tally
    image: Tally | None


def scienceqa_score(rows: Iterable[ScienceQaRow], parser: str) -> ScienceQaScore:
    """Scores of parsed answers.

    Args:
        rows: one a question.
        parser: id of the parser that read the answers; kept with the score.

    Raises:
        ValueError: no rows, or an id that occurs twice.
    """
    rows = list(rows)
    no_duplicates(METRIC, "question", (row.id for row in rows))
    pictured = [row for row in rows if row.has_image]
    return {
        "metric": METRIC,
        "all": _tally(rows, parser),
        "image": _tally(pictured, parser) if pictured else None,
    }


def _tally(rows: list[ScienceQaRow], parser: str) -> Tally:
    columns = ((row.id, row.raw, row.prediction, row.answer) for row in rows)
    return tally(columns, metric=METRIC, parser=parser)
