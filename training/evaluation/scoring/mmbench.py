"""MMBench: accuracy by row, of the first rotation (vanilla), and of questions with all rotations right (circular).

Source: MMBench (2307.06281) and VLMEvalKit, `mcq_circular_eval`. A question's rotations have the indexes
base, base + 1,000,000, ... MMBench's server reports circular accuracy; the mean over rows cannot be compared
with it. The score lists groups with fewer rows than options and groups without their base row; VLMEvalKit
silently drops the latter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

from .parsed import Unparsable, no_duplicates, told

METRIC = "mmbench@1"
ROTATION = 1_000_000


@dataclass(frozen=True)
class MmbenchRow:
    """A parsed answer to one rotation of a question.

    Args:
        index: the row's index, a number or, as in MMBench_EN, a text.
        options: number of options of the question.
        prediction: the parsed letter, None if the answer is unparsable.
        answer: the right letter.
        raw: the model's raw answer.
    """

    index: int | str
    options: int
    prediction: str | None
    answer: str
    raw: str = ""


class MmbenchScore(TypedDict):
    """Accuracies in percent. Precision, recall and F1 are 0 to 1, weighted by the frequency of each right letter.

    `vanilla` is None if no group has its base row.
    """

    metric: str
    rows: int
    rows_right: int
    per_row: float
    groups: int
    groups_right: int
    circular: float
    vanilla_rows: int
    vanilla_right: int
    vanilla: float | None
    weighted_precision: float
    weighted_recall: float
    weighted_f1: float
    missing_rotations: list[int]
    missing_base_rows: list[int]
    unparsable: int
    unparsable_answers: list[Unparsable]


def _index(row: MmbenchRow) -> int:
    text = str(row.index).strip()
    if isinstance(row.index, bool) or not (text.isascii() and text.isdecimal()):
        raise ValueError(
            f"{METRIC}: index: expected a number of 0 or more, found {told(row.index)}"
        )
    return int(text)


def mmbench_score(rows: Iterable[MmbenchRow]) -> MmbenchScore:
    """Score rows in any order.

    Raises:
        ValueError: there are no rows, an index is not a number or occurs twice, or a question has no options.
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"{METRIC}: expected at least one row, found none")
    by_index = [(_index(row), row) for row in rows]
    no_duplicates(METRIC, "index", (index for index, _ in by_index))
    groups: dict[int, list[tuple[int, MmbenchRow]]] = {}
    for index, row in by_index:
        if row.options < 1:
            raise ValueError(
                f"{METRIC}: index {index}: expected at least one option, found {row.options}"
            )
        groups.setdefault(index % ROTATION, []).append((index, row))
    right = [row.prediction == row.answer for row in rows]
    groups_right = sum(
        all(row.prediction == row.answer for _, row in own) for own in groups.values()
    )
    base = [row for index, row in by_index if index < ROTATION]
    vanilla_right = sum(row.prediction == row.answer for row in base)
    precision, recall, f1 = _weighted(rows)
    unparsable = [(index, row) for index, row in by_index if row.prediction is None]
    return {
        "metric": METRIC,
        "rows": len(rows),
        "rows_right": sum(right),
        "per_row": 100 * sum(right) / len(rows),
        "groups": len(groups),
        "groups_right": groups_right,
        "circular": 100 * groups_right / len(groups),
        "vanilla_rows": len(base),
        "vanilla_right": vanilla_right,
        "vanilla": 100 * vanilla_right / len(base) if base else None,
        "weighted_precision": precision,
        "weighted_recall": recall,
        "weighted_f1": f1,
        "missing_rotations": sorted(
            group for group, own in groups.items() if len(own) < max(row.options for _, row in own)
        ),
        "missing_base_rows": sorted(
            group for group, own in groups.items() if group not in {index for index, _ in own}
        ),
        "unparsable": len(unparsable),
        "unparsable_answers": [{"id": str(index), "answer": row.raw} for index, row in unparsable],
    }


def _weighted(rows: list[MmbenchRow]) -> tuple[float, float, float]:
    """Return precision, recall and F1 over letters, weighted by the rows in which the letter is right."""
    sums = [0.0, 0.0, 0.0]
    for letter in {row.answer for row in rows}:
        hits = sum(row.prediction == row.answer == letter for row in rows)
        predicted = sum(row.prediction == letter for row in rows)
        support = sum(row.answer == letter for row in rows)
        precision, recall = (hits / predicted if predicted else 0.0), hits / support
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        for place, value in enumerate((precision, recall, f1)):
            sums[place] += value * support / len(rows)
    return sums[0], sums[1], sums[2]
