"""Pairwise judgements: a strict parser of verdicts, and the rates of win, loss and tie from one order or both.

Source: Aya Vision (2505.08751), appendix E: one order, a tie is not half a win, mean over languages. The default
here judges both orders and adds the strengths, since judges favour a position. A judgement without a verdict
has failed; it is not a tie, as it is in lmms-eval's WildVision.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from .parsed import Parser, no_duplicates, told

METRIC = "win_rate@1"
Orders = Literal["both", "one"]
# Verdict -> by how much A is better.
STRENGTH = {"A>>B": 2, "A>B": 1, "A=B": 0, "B>A": -1, "B>>A": -2}


# ------------------------------------------------------------------- parsers


def parse_verdict(judgement: str) -> str | None:
    """Return the only verdict in double brackets, such as [[A>>B]]; None if there is none or they differ."""
    text = unicodedata.normalize("NFKC", judgement).replace("≫", ">>")
    found = {re.sub(r"\s", "", verdict) for verdict in re.findall(r"\[\[([^\[\]]*)\]\]", text)}
    return found.pop() if len(found) == 1 and found <= STRENGTH.keys() else None


def lmms_eval_wildvision(judgement: str) -> str:
    """Parse as lmms-eval's WildVision does, where A is the baseline and "Unclear" counts as a tie.

    The script misses verdicts with spaces. It searches the whole text unless there is exactly one verdict.
    """
    found = set(re.findall(r"\[\[([AB<>=]+)\]\]", judgement))
    text = found.pop() if len(found) == 1 else judgement
    for verdict, name in _WILDVISION:
        if verdict in text:
            return name
    return "Unclear"


_WILDVISION = [
    ("A>B", "Worse"),
    ("A>>B", "Worse++"),
    ("A=B", "Tie"),
    ("B>A", "Better"),
    ("B>>A", "Better++"),
]
VERDICT_PARSER = Parser("verdict", 1, "Aya Vision (2505.08751), appendix E", parse_verdict)
WILDVISION_PARSER = Parser(
    "verdict_wildvision",
    1,
    "lmms-eval 0.7.3, tasks/wild_vision_bench/utils.py",
    lmms_eval_wildvision,
)


# ------------------------------------------------------------------- win rates


@dataclass(frozen=True)
class Duel:
    """The verdicts on one question, with the model shown as A and as B; None for a failed judgement."""

    id: str
    language: str
    model_is_a: str | None
    model_is_b: str | None = None


class Rates(TypedDict):
    """Rates in percent of the judged questions; None if no question is judged."""

    judged: int
    failed: int
    win: float | None
    loss: float | None
    tie: float | None


class WinRate(TypedDict):
    """Rates over all questions, for each language, and as unweighted means over languages.

    `consistency` is the share of questions, among those judged in both orders, whose verdicts prefer the same side.
    """

    metric: str
    orders: str
    total: Rates
    languages: dict[str, Rates]
    macro_win: float | None
    macro_loss: float | None
    macro_tie: float | None
    consistency: float | None
    failed_ids: list[str]


def win_rate(duels: Iterable[Duel], orders: Orders = "both") -> WinRate:
    """Return the model's rates of win, loss and tie.

    Args:
        duels: one for each question.
        orders: "both" adds the strengths of both verdicts, and fails if one of them failed; "one" takes
            the verdict with the model shown as A, as the paper does.

    Raises:
        ValueError: there are no duels, an id occurs twice in a language, or a verdict is unknown (named with its id).
    """
    duels = list(duels)
    if not duels:
        raise ValueError(f"{METRIC}: expected at least one duel, found none")
    no_duplicates(METRIC, "question", ((duel.language, duel.id) for duel in duels))
    for duel in duels:
        for verdict in (duel.model_is_a, duel.model_is_b):
            if verdict is not None and verdict not in STRENGTH:
                raise ValueError(
                    f"{METRIC}: question {duel.id!r}: expected one of {', '.join(STRENGTH)}, found {told(verdict)}"
                )
    balances = {(duel.language, duel.id): _balance(duel, orders) for duel in duels}
    names = sorted({duel.language for duel in duels})
    languages = {
        name: _rates([b for (language, _), b in balances.items() if language == name])
        for name in names
    }
    return {
        "metric": METRIC,
        "orders": orders,
        "total": _rates(list(balances.values())),
        "languages": languages,
        "macro_win": _macro([rates["win"] for rates in languages.values()]),
        "macro_loss": _macro([rates["loss"] for rates in languages.values()]),
        "macro_tie": _macro([rates["tie"] for rates in languages.values()]),
        "consistency": _consistency(duels),
        "failed_ids": [duel.id for duel in duels if balances[duel.language, duel.id] is None],
    }


def _balance(duel: Duel, orders: Orders) -> int | None:
    """Return the strength of the verdicts, above 0 if the model is better; None for a failed judgement."""
    if duel.model_is_a is None or (orders == "both" and duel.model_is_b is None):
        return None
    second = STRENGTH[duel.model_is_b] if orders == "both" and duel.model_is_b else 0
    return STRENGTH[duel.model_is_a] - second


def _rates(balances: Sequence[int | None]) -> Rates:
    judged = [balance for balance in balances if balance is not None]
    if not judged:
        return {"judged": 0, "failed": len(balances), "win": None, "loss": None, "tie": None}
    return {
        "judged": len(judged),
        "failed": len(balances) - len(judged),
        "win": 100 * sum(balance > 0 for balance in judged) / len(judged),
        "loss": 100 * sum(balance < 0 for balance in judged) / len(judged),
        "tie": 100 * sum(balance == 0 for balance in judged) / len(judged),
    }


def _macro(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _consistency(duels: Iterable[Duel]) -> float | None:
    both = [
        (STRENGTH[duel.model_is_a], -STRENGTH[duel.model_is_b])
        for duel in duels
        if duel.model_is_a is not None and duel.model_is_b is not None
    ]
    agree = sum((first > 0) - (first < 0) == (second > 0) - (second < 0) for first, second in both)
    return 100 * agree / len(both) if both else None
