"""POPE: accuracy, precision, recall, F1 and the share of yes answers, with yes as the positive class.

Source: POPE (2305.10355), evaluate.py; LLaVA, llava/eval/eval_pope.py. Its parser knows only yes and no.
Ours also gives None: such an answer is wrong. Where the label is yes it misses a yes (recall), where the
label is no it is no false yes (precision). lmms-eval computes its yes ratio from the labels and leaves
other answers out of recall; both are not done here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from .parsed import Unparsable, no_duplicates, told
from .yes_no import YesNo

METRIC = "pope@1"


class PopeScore(TypedDict):
    """Shares of 0 to 1. `yes_ratio` is the share of predictions that are yes."""

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
    """Scores of one set from its counts.

    Args:
        tp: label yes, predicted yes; fp, tn and fn likewise.
        unparsable_yes: answers that are neither, where the label is yes.
        unparsable_no: the same, where the label is no.

    Raises:
        ValueError: no answers, or a negative count.
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
    """As the script, 0 where there is nothing to divide by."""
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class PopeRow:
    """A parsed answer, None where it is neither, its label, and the model's answer as it is."""

    id: str
    answer: YesNo | None
    label: str
    raw: str = ""


class PopeSetScore(PopeScore):
    """Scores of one set with the answers that could not be read."""

    unparsable_answers: list[Unparsable]


def pope_score(rows: Iterable[PopeRow]) -> PopeSetScore:
    """Scores of parsed answers.

    Raises:
        ValueError: no rows, an id that occurs twice, or a label that is neither yes nor no, with its id.
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
    """Means over the sets, each with equal weight: LLaVA's table shows the mean F1.

    Raises:
        ValueError: no sets.
    """
    if not sets:
        raise ValueError(f"{METRIC}: expected at least one set, found none")
    return {
        "accuracy": sum(score["accuracy"] for score in sets.values()) / len(sets),
        "f1": sum(score["f1"] for score in sets.values()) / len(sets),
    }
