"""POPE: accuracy, precision, recall, F1 and the share of yes answers, with yes as the positive class.

Source: POPE (2305.10355), evaluate.py; LLaVA, llava/eval/eval_pope.py. The script's parser returns only yes or no.
Ours also returns None, which counts as wrong: it lowers recall if the label is yes, and it is not a false
positive if the label is no. lmms-eval computes its yes ratio from the labels and leaves unparsable answers out of
recall; this module does neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from .parsed import Unparsable, no_duplicates, told
from .yes_no import YesNo

METRIC = "pope@1"


class PopeScore(TypedDict):
    """Shares from 0 to 1. `yes_ratio` is the share of predictions that are yes."""

    metric: str
    n: int
    tp: int
    fp: int
    tn: int
    fn: int
    unparsable: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float


def pope_from_counts(
    tp: int, fp: int, tn: int, fn: int, unparsable_yes: int = 0, unparsable_no: int = 0
) -> PopeScore:
    """Return the scores of one set from its counts.

    Args:
        tp: label yes, predicted yes; fp, tn and fn likewise.
        unparsable_yes: unparsable answers whose label is yes.
        unparsable_no: unparsable answers whose label is no.

    Raises:
        ValueError: there are no answers, or a count is negative.
    """
    counts = (tp, fp, tn, fn, unparsable_yes, unparsable_no)
    n = sum(counts)
    if n == 0 or min(counts) < 0:
        raise ValueError(f"{METRIC}: expected counts of at least one answer, found {counts}")
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn + unparsable_yes)
    return {
        "metric": METRIC,
        "n": n,
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "unparsable": unparsable_yes + unparsable_no,
        "accuracy": (tp + tn) / n,
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": (tp + fp) / n,
    }


def _share(part: float, whole: float) -> float:
    """Return a ratio, and 0 if its denominator is 0, as the script does."""
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class PopeRow:
    """A parsed answer (None if unparsable), its label, and the model's raw answer."""

    id: str
    answer: YesNo | None
    label: str
    raw: str = ""


class PopeSetScore(PopeScore):
    """Scores of one set, and the answers that could not be parsed."""

    unparsable_answers: list[Unparsable]


def pope_score(rows: Iterable[PopeRow]) -> PopeSetScore:
    """Score parsed answers.

    Raises:
        ValueError: there are no rows, an id occurs twice, or a label is neither yes nor no (named with its id).
    """
    rows = list(rows)
    no_duplicates(METRIC, "question", (row.id for row in rows))
    counts = {(label, answer): 0 for label in ("yes", "no") for answer in ("yes", "no", None)}
    for row in rows:
        if (row.label, row.answer) not in counts:
            raise ValueError(
                f"{METRIC}: question {row.id!r}: expected label and answer yes or no, found "
                f"{told(row.label)} and {told(row.answer)}"
            )
        counts[row.label, row.answer] += 1
    score = pope_from_counts(
        tp=counts["yes", "yes"],
        fp=counts["no", "yes"],
        tn=counts["no", "no"],
        fn=counts["yes", "no"],
        unparsable_yes=counts["yes", None],
        unparsable_no=counts["no", None],
    )
    unread = [row for row in rows if row.answer is None]
    return {**score, "unparsable_answers": [{"id": row.id, "answer": row.raw} for row in unread]}


def pope_mean(sets: Mapping[str, PopeScore]) -> dict[str, float]:
    """Return the unweighted means over the sets; LLaVA's table shows the mean F1.

    Raises:
        ValueError: there are no sets.
    """
    if not sets:
        raise ValueError(f"{METRIC}: expected at least one set, found none")
    return {
        "accuracy": sum(score["accuracy"] for score in sets.values()) / len(sets),
        "f1": sum(score["f1"] for score in sets.values()) / len(sets),
    }
