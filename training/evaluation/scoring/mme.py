"""MME: two questions an image; a category's score is 100 * accuracy + 100 * share of images with both right.

Source: MME (2306.13394), eval_tool/calculation.py. An answer that is neither yes nor no is wrong; precision,
recall and F1 leave it out, as the tool does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from .parsed import Unparsable, no_duplicates, told
from .yes_no import YesNo

METRIC = "mme@1"
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


class MmeCategory(TypedDict):
    """One category. `score` is 0 to 200, None if no image has both of its answers."""

    n: int
    tp: int
    fn: int
    tn: int
    fp: int
    other: int
    acc: float
    acc_plus: float | None
    precision: float
    recall: float
    f1: float
    score: float | None


class MmeScore(TypedDict):
    """All categories. The sum of a part is None if one of its categories is missing."""

    metric: str
    n: int
    accuracy: float
    other: int
    categories: dict[str, MmeCategory]
    perception: float | None
    cognition: float | None
    missing_categories: list[str]
    incomplete_images: list[str]
    unparsable_answers: list[Unparsable]


@dataclass(frozen=True)
class MmeRow:
    """A parsed answer (None if unparsable) to one of the two questions on an image."""

    id: str
    image: str
    category: str
    answer: YesNo | None
    label: str
    raw: str = ""


def category_from_counts(
    tp: int, fn: int, tn: int, fp: int, other: int, acc_plus: float | None
) -> MmeCategory:
    """Return a category's scores from its counts.

    Raises:
        ValueError: there are no answers, or a count is negative.
    """
    counts = (tp, fn, tn, fp, other)
    n = sum(counts)
    if n == 0 or min(counts) < 0:
        raise ValueError(f"{METRIC}: expected counts of at least one answer, found {counts}")
    acc = (tp + tn) / n
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    return {
        "n": n,
        "tp": tp,
        "fn": fn,
        "tn": tn,
        "fp": fp,
        "other": other,
        "acc": acc,
        "acc_plus": acc_plus,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "score": None if acc_plus is None else 100 * acc + 100 * acc_plus,
    }


def mme_from_categories(
    categories: Mapping[str, MmeCategory],
    incomplete_images: Iterable[str] = (),
    unparsable_answers: Iterable[Unparsable] = (),
) -> MmeScore:
    """Return the sums over perception and cognition.

    Raises:
        ValueError: there are no categories.
    """
    if not categories:
        raise ValueError(f"{METRIC}: expected at least one category, found none")
    n = sum(category["n"] for category in categories.values())
    right = sum(category["tp"] + category["tn"] for category in categories.values())
    return {
        "metric": METRIC,
        "n": n,
        "accuracy": right / n,
        "other": sum(category["other"] for category in categories.values()),
        "categories": dict(categories),
        "perception": _sum(categories, PERCEPTION),
        "cognition": _sum(categories, COGNITION),
        "missing_categories": [c for c in (*PERCEPTION, *COGNITION) if c not in categories],
        "incomplete_images": sorted(incomplete_images),
        "unparsable_answers": list(unparsable_answers),
    }


def _sum(categories: Mapping[str, MmeCategory], names: tuple[str, ...]) -> float | None:
    scores = [categories[name]["score"] if name in categories else None for name in names]
    known = [score for score in scores if score is not None]
    return sum(known) if len(known) == len(names) else None


def mme_score(rows: Iterable[MmeRow]) -> MmeScore:
    """Score all categories. Rows may be in any order: images are paired by category and name.

    Images without exactly two answers are listed as incomplete and left out of acc_plus.

    Raises:
        ValueError: there are no rows, an id occurs twice, or a category or label is unknown (named with the row's id).
    """
    rows = list(rows)
    no_duplicates(METRIC, "row", (row.id for row in rows))
    groups: dict[str, list[MmeRow]] = {}
    for row in rows:
        if row.category not in (*PERCEPTION, *COGNITION):
            known = ", ".join((*PERCEPTION, *COGNITION))
            raise ValueError(
                f"{METRIC}: row {row.id!r}: category: expected one of {known}, found {told(row.category)}"
            )
        if row.label not in ("yes", "no"):
            raise ValueError(
                f"{METRIC}: row {row.id!r}: label: expected yes or no, found {told(row.label)}"
            )
        groups.setdefault(row.category, []).append(row)
    categories: dict[str, MmeCategory] = {}
    incomplete: list[str] = []
    for name in sorted(groups, key=(*PERCEPTION, *COGNITION).index):
        images: dict[str, list[bool]] = {}
        for row in groups[name]:
            images.setdefault(row.image, []).append(row.answer == row.label)
        pairs = [answers for answers in images.values() if len(answers) == 2]
        incomplete += [f"{name}/{image}" for image, answers in images.items() if len(answers) != 2]
        categories[name] = category_from_counts(
            tp=_count(groups[name], "yes", "yes"),
            fn=_count(groups[name], "yes", "no"),
            tn=_count(groups[name], "no", "no"),
            fp=_count(groups[name], "no", "yes"),
            other=sum(row.answer is None for row in groups[name]),
            acc_plus=sum(map(all, pairs)) / len(pairs) if pairs else None,
        )
    unread = [row for row in rows if row.answer is None]
    return mme_from_categories(
        categories, incomplete, [{"id": row.id, "answer": row.raw} for row in unread]
    )


def _count(rows: Iterable[MmeRow], label: str, answer: str) -> int:
    return sum(row.label == label and row.answer == answer for row in rows)
