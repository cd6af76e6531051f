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
    """A parsed answer (None if unparsable) and the model's raw answer."""

    id: str
    prediction: str | None
    answer: str
    has_image: bool
    raw: str = ""


class ScienceQaScore(TypedDict):
    """Accuracies; `image` is None if no question has an image."""

    metric: str
    all: Tally
    image: Tally | None


def scienceqa_score(rows: Iterable[ScienceQaRow], parser: str) -> ScienceQaScore:
    """Score parsed answers.

    Args:
        rows: one for each question.
        parser: id of the parser that read the answers; stored with the score.

    Raises:
        ValueError: there are no rows, or an id occurs twice.
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
