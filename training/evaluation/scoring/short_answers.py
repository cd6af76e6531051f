"""Short answers: the rules of xGQA, MaXM, MTVQA, MaRVL and GQA, each reported with exact match.

Papers score the same answers by different rules, and containment favours long answers: "man" is in
"woman". A score therefore shows the paper's rule, the exact rule and the mean length of the answers together.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from .parsed import no_duplicates, told
from .plain import normalise
from .vqa import without_articles, without_marks

METRIC = "short_answers@1"
Task = Literal["xgqa", "maxm", "mtvqa", "marvl", "gqa"]


# ------------------------------------------------------------------- rules


def contains(prediction: str, golds: Sequence[str]) -> bool:
    """Apply Pangea's xGQA: a right answer occurs anywhere in the prediction, in lower case."""
    return any(gold.strip().lower() in prediction.strip().lower() for gold in golds)


def contains_without_stops(prediction: str, golds: Sequence[str]) -> bool:
    """Apply MTVQA's script: as `contains`, but full stops are removed from the prediction only.

    A right answer with a full stop, such as 3.5, is therefore never found.
    """
    found = prediction.lower().strip().replace(".", "")
    return any(gold.lower().strip() in found for gold in golds)


def contains_without_any_stops(prediction: str, golds: Sequence[str]) -> bool:
    """Apply lmms-eval's MTVQA: as `contains`, with full stops removed from both sides: "7.50" is in "750"."""
    found = prediction.lower().strip().replace(".", "")
    return any(gold.strip().lower().replace(".", "") in found for gold in golds)


def exact(prediction: str, golds: Sequence[str]) -> bool:
    """Apply Centurio's rule: equal in lower case without surrounding spaces; "Dog." differs from "dog"."""
    return prediction.strip().lower() in [gold.strip().lower() for gold in golds]


def relaxed(prediction: str, golds: Sequence[str]) -> bool:
    """Apply Centurio's relaxed rule: the prediction begins or ends with a right answer."""
    own = prediction.strip().lower()
    right = [gold.strip().lower() for gold in golds]
    return any(own.startswith(gold) or own.endswith(gold) for gold in right)


def same(prediction: str, golds: Sequence[str]) -> bool:
    """Return whether both are equal after NFKC, case folding and removal of outer marks; never for an empty answer."""
    own = normalise(prediction)
    return own != "" and own in [normalise(gold) for gold in golds]


def pangea_maxm(prediction: str, golds: Sequence[str]) -> bool:
    """Apply Pangea's MaXM: the cleaned prediction begins or ends with a right answer.

    The script puts the prediction into a list and cleans the list's printed form. It lowers the case of the
    prediction but not of the right answers.
    """
    printed = str([prediction.rstrip(".")])
    own = without_articles(without_marks(printed)).strip("'")
    right = [_true_as_yes(gold.strip()).strip() for gold in golds]
    return any(own.startswith(gold) or own.endswith(gold) for gold in right)


def pangea_marvl(prediction: str, golds: Sequence[str]) -> bool:
    """Apply Pangea's MaRVL: "yes" anywhere is true, else "no" anywhere is false; then as `contains`."""
    own = prediction.strip().lower()
    own = "true" if "yes" in own else "false" if "no" in own else own
    return any(gold.strip().lower() in own for gold in golds)


def centurio_marvl(prediction: str, golds: Sequence[str]) -> bool:
    """Apply Centurio's MaRVL: exactly yes or no, as its prompt requests."""
    return exact(prediction, [_true_as_yes(gold) for gold in golds])


def _true_as_yes(gold: str) -> str:
    return {"true": "yes", "false": "no"}.get(gold.strip().lower(), gold)


def gqa_prediction(prediction: str) -> str:
    """Return LLaVA's input to GQA's script: lower case, no full stops at the end."""
    return prediction.rstrip(".").lower()


def gqa_official(prediction: str, golds: Sequence[str]) -> bool:
    """Apply GQA's script: the prediction, as LLaVA converts it, equals the right answer exactly."""
    return gqa_prediction(prediction) in golds


def gqa_lmms_eval(prediction: str, golds: Sequence[str]) -> bool:
    """Apply lmms-eval's GQA: equal without case and ASCII punctuation."""
    return _unmarked(prediction) in [_unmarked(gold) for gold in golds]


def _unmarked(text: str) -> str:
    return re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower())


Rule = Callable[[str, Sequence[str]], bool]
# The first rule is the headline: that of the harness whose numbers a Maya is compared with.
RULES: dict[Task, dict[str, Rule]] = {
    "xgqa": {
        "centurio_exact": exact,
        "pangea_contains": contains,
        "centurio_relaxed": relaxed,
        "same": same,
    },
    "maxm": {"centurio_exact_any": exact, "pangea_relaxed": pangea_maxm, "same": same},
    "mtvqa": {
        "mtvqa_contains": contains_without_stops,
        "lmms_contains": contains_without_any_stops,
        "centurio_exact": exact,
        "same": same,
    },
    "marvl": {"centurio_exact": centurio_marvl, "pangea": pangea_marvl},
    "gqa": {"gqa_official": gqa_official, "gqa_lmms_eval": gqa_lmms_eval, "same": same},
}


# ------------------------------------------------------------------- scores


@dataclass(frozen=True)
class ShortAnswer:
    """A prediction and its right answers."""

    id: str
    prediction: str
    golds: Sequence[str]


class ShortAnswerScore(TypedDict):
    """Share of right answers from 0 to 1 by each rule; `rule` names the headline."""

    metric: str
    task: str
    rule: str
    n: int
    scores: dict[str, float]
    mean_length: float
    empty: int


def short_answer_score(rows: Iterable[ShortAnswer], task: Task) -> ShortAnswerScore:
    """Score answers by all rules of a task.

    Args:
        rows: one for each question.
        task: xgqa, maxm, mtvqa, marvl or gqa.

    Raises:
        ValueError: the task is unknown, there are no rows, an id occurs twice, or a row has no right answer.
    """
    if task not in RULES:
        raise ValueError(f"{METRIC}: task: expected one of {', '.join(RULES)}, found {task!r}")
    rows = list(rows)
    if not rows:
        raise ValueError(f"{METRIC}: expected at least one row, found none")
    no_duplicates(METRIC, "row", (row.id for row in rows))
    for row in rows:
        if isinstance(row.golds, str) or not row.golds:
            raise ValueError(
                f"{METRIC}: row {row.id!r}: golds: expected a list of at least one text, found {told(row.golds)}"
            )
    return {
        "metric": METRIC,
        "task": task,
        "rule": next(iter(RULES[task])),
        "n": len(rows),
        "scores": {
            name: sum(rule(row.prediction, row.golds) for row in rows) / len(rows)
            for name, rule in RULES[task].items()
        },
        "mean_length": sum(len(row.prediction.strip()) for row in rows) / len(rows),
        "empty": sum(not row.prediction.strip() for row in rows),
    }
