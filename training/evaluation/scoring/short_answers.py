"""Short answers: the rules of xGQA, MaXM, MTVQA, MaRVL and GQA, each beside exact match.

Papers score the same answers by different rules, and containment rewards long answers: "man" is in
"woman". So a score has the paper's rule, the exact one and the mean length of the answers side by side.
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
    """Pangea's xGQA: a right answer occurs anywhere in the prediction, in small letters."""
    return any(gold.strip().lower() in prediction.strip().lower() for gold in golds)


def contains_without_stops(prediction: str, golds: Sequence[str]) -> bool:
    """MTVQA's script: as `contains`, but only the prediction loses its full stops.

    So a right answer with a full stop, such as 3.5, is found in no prediction.
    """
    found = prediction.lower().strip().replace(".", "")
    return any(gold.lower().strip() in found for gold in golds)


def contains_without_any_stops(prediction: str, golds: Sequence[str]) -> bool:
    """lmms-eval's MTVQA: as `contains`, and neither side has full stops: "7.50" is in "750"."""
    found = prediction.lower().strip().replace(".", "")
    return any(gold.strip().lower().replace(".", "") in found for gold in golds)


def exact(prediction: str, golds: Sequence[str]) -> bool:
    """Centurio: equal in small letters, spaces around aside; "Dog." is no "dog"."""
    return prediction.strip().lower() in [gold.strip().lower() for gold in golds]


def relaxed(prediction: str, golds: Sequence[str]) -> bool:
    """Centurio: the prediction begins or ends with a right answer."""
    own = prediction.strip().lower()
    right = [gold.strip().lower() for gold in golds]
    return any(own.startswith(gold) or own.endswith(gold) for gold in right)


def same(prediction: str, golds: Sequence[str]) -> bool:
    """Equal after NFKC, case folding and removal of marks around; an empty answer is never right."""
    own = normalise(prediction)
    return own != "" and own in [normalise(gold) for gold in golds]


def pangea_maxm(prediction: str, golds: Sequence[str]) -> bool:
    """Pangea's MaXM: the cleaned prediction begins or ends with a right answer.

    The script cleans the printed form of a list that holds the prediction, and right answers keep their
    capitals while the prediction loses them.
    """
    printed = str([prediction.rstrip(".")])
    own = without_articles(without_marks(printed)).strip("'")
    right = [_true_as_yes(gold.strip()).strip() for gold in golds]
    return any(own.startswith(gold) or own.endswith(gold) for gold in right)


def pangea_marvl(prediction: str, golds: Sequence[str]) -> bool:
    """Pangea's MaRVL: "yes" anywhere is true, else "no" anywhere is false; then as `contains`."""
    own = prediction.strip().lower()
    own = "true" if "yes" in own else "false" if "no" in own else own
    return any(gold.strip().lower() in own for gold in golds)


def centurio_marvl(prediction: str, golds: Sequence[str]) -> bool:
    """Centurio's MaRVL: exactly yes or no, as its prompt asks for."""
    return exact(prediction, [_true_as_yes(gold) for gold in golds])


def _true_as_yes(gold: str) -> str:
    return {"true": "yes", "false": "no"}.get(gold.strip().lower(), gold)


def gqa_prediction(prediction: str) -> str:
    """What LLaVA hands to GQA's script: small letters, no full stops at the end."""
    return prediction.rstrip(".").lower()


def gqa_official(prediction: str, golds: Sequence[str]) -> bool:
    """GQA's script: the prediction, as LLaVA converts it, is the right answer, letter by letter."""
    return gqa_prediction(prediction) in golds


def gqa_lmms_eval(prediction: str, golds: Sequence[str]) -> bool:
    """lmms-eval's GQA: equal without case and ASCII punctuation."""
    return _unmarked(prediction) in [_unmarked(gold) for gold in golds]


def _unmarked(text: str) -> str:
    return re.sub(f"[{re.escape(string.punctuation)}]", "", text.lower())


Rule = Callable[[str, Sequence[str]], bool]
# The first rule is the headline: the one of the harness whose numbers a Maya is compared with.
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
    """A prediction with its right answers."""

    id: str
    prediction: str
    golds: Sequence[str]


class ShortAnswerScore(TypedDict):
    """Share of right answers by each rule, 0 to 1; `rule` names the headline."""

    metric: str
    task: str
    rule: str
    n: int
    scores: dict[str, float]
    mean_length: float
    empty: int


def short_answer_score(rows: Iterable[ShortAnswer], task: Task) -> ShortAnswerScore:
    """Scores by all rules of a task.

    Args:
        rows: one a question.
        task: xgqa, maxm, mtvqa, marvl or gqa.

    Raises:
        ValueError: an unknown task, no rows, an id that occurs twice, or a row without a right answer.
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
