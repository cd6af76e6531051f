"""MM-Vet: a judge's grades from 0 to 1, as percentages: total, by capability, by combination, and over runs.

Source: MM-Vet (2308.02490), mm-vet_evaluator. Its script, lmms-eval and VLMEvalKit grade an answer 0 if the
judge fails five times; `failed="zero"` does the same. By default a failed grade is left out of the means,
since it says nothing about the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from .parsed import told

METRIC = "mmvet@1"
CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
Failed = Literal["left_out", "zero"]


def parse_grade(reply: str) -> float | None:
    """Return the number at the start of a judge's reply, None unless it is from 0 to 1."""
    match = re.match(r"\s*(\d?\.?\d+)(?!\.?\w)", reply)
    grade = float(match[1]) if match else math.nan
    return grade if 0 <= grade <= 1 else None


@dataclass(frozen=True)
class MmvetRow:
    """The grades of an answer, one for each run (None if judging failed), and the capabilities it needs."""

    id: str
    capabilities: Sequence[str]
    grades: Sequence[float | None]


class Group(TypedDict):
    """Questions that need a capability or a combination; `score` is None if no answer is graded."""

    n: int
    graded: int
    score: float | None


class MmvetScore(TypedDict):
    """Scores in percent. `std` is the population's standard deviation over the runs, as published."""

    metric: str
    failed_grades: str
    n: int
    runs: list[float | None]
    total: float | None
    std: float | None
    capabilities: dict[str, Group]
    combinations: dict[str, Group]
    failed: int
    failed_ids: list[str]


def mmvet_score(rows: Sequence[MmvetRow], failed: Failed = "left_out") -> MmvetScore:
    """Score graded answers.

    Args:
        rows: one for each question, all with the same number of runs.
        failed: whether a failed grade is left out or counts as 0.

    Raises:
        ValueError: there are no rows, runs differ in number, a grade is outside 0 to 1, or a capability is unknown
            (named with the id).
    """
    if not rows:
        raise ValueError(f"{METRIC}: expected at least one row, found none")
    runs = len(rows[0].grades)
    for row in rows:
        _check(row, runs)
    missing = 0.0 if failed == "zero" else None
    grades = [[missing if grade is None else grade for grade in row.grades] for row in rows]
    by_run = [_mean(own[run] for own in grades) for run in range(runs)]
    known = [score for score in by_run if score is not None]
    total = sum(known) / len(known) if known else None
    combinations = ["_".join(sorted(row.capabilities)) for row in rows]
    return {
        "metric": METRIC,
        "failed_grades": failed,
        "n": len(rows),
        "runs": by_run,
        "total": total,
        "std": None
        if total is None
        else math.sqrt(sum((s - total) ** 2 for s in known) / len(known)),
        "capabilities": {
            name: _group(
                [own for row, own in zip(rows, grades, strict=True) if name in row.capabilities]
            )
            for name in CAPABILITIES
            if any(name in row.capabilities for row in rows)
        },
        "combinations": {
            name: _group([own for c, own in zip(combinations, grades, strict=True) if c == name])
            for name in sorted(set(combinations))
        },
        "failed": sum(grade is None for row in rows for grade in row.grades),
        "failed_ids": [row.id for row in rows if None in row.grades],
    }


def _check(row: MmvetRow, runs: int) -> None:
    where = f"{METRIC}: row {row.id!r}"
    if not row.grades or len(row.grades) != runs:
        raise ValueError(
            f"{where}: expected grades of {max(runs, 1)} runs, found {len(row.grades)}"
        )
    for grade in row.grades:
        if grade is not None and not 0 <= grade <= 1:
            raise ValueError(f"{where}: expected a grade of 0 to 1, found {grade!r}")
    unknown = [name for name in row.capabilities if name not in CAPABILITIES]
    if unknown or not row.capabilities:
        raise ValueError(
            f"{where}: capabilities: expected some of {', '.join(CAPABILITIES)}, found {told(row.capabilities)}"
        )


def _mean(grades) -> float | None:
    known = [grade for grade in grades if grade is not None]
    return 100 * sum(known) / len(known) if known else None


def _group(grades: list[list[float | None]]) -> Group:
    flat = [grade for own in grades for grade in own]
    return {"n": len(grades), "graded": sum(g is not None for g in flat), "score": _mean(flat)}
