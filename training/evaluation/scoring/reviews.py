"""Judges' reviews of LLaVA-Bench and PALO: two scores from 1 to 10, and the relative score computed from them.

Source: LLaVA, llava/eval/eval_gpt_review_bench.py and summarize_gpt_review.py; PALO (2402.14818). The
originals score a failed judgement -1 and average it. Here it is None: left out, counted and listed.
`summary_as_published` keeps the original way, to reproduce published lines.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from .parsed import Parser, no_duplicates
from .plain import visible, without_thought

METRIC = "relative_score@1"
Pair = tuple[float, float]


# ------------------------------------------------------------------- parsers


def llava_pair(review: str) -> Pair | None:
    """Parse as LLaVA does: the first line is two numbers with one space between them. "8, 9" fails."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    return _numbers(parts) if len(parts) == 2 else None


def maya_pair(review: str) -> Pair | None:
    """Parse as the original Maya does: the first two fields of the first line, as LLaVA splits it."""
    parts = review.split("\n")[0].replace(",", " ").split(" ")
    return _numbers(parts[:2]) if len(parts) >= 2 else None


def lmms_eval_pair(review: str) -> Pair | None:
    """Parse as lmms-eval does: as LLaVA, without spaces around the line."""
    return llava_pair(review.split("\n")[0].strip())


def _numbers(parts: Sequence[str]) -> Pair | None:
    try:
        return float(parts[0]), float(parts[1])
    except ValueError:
        return None


_NUMBER = r"(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10)?"
# Two scores, which text may follow. "8-9" does not match, since it may be a range.
_LINE = re.compile(
    rf"[^\w.+-]*(?:scores?\W+)?{_NUMBER}\s*[\s,;|]\s*{_NUMBER}(?![\d.]*\d)(?P<rest>.*)", re.I
)
_NAMED = re.compile(rf"\W*assistant\s*([12])\W+(?:score\W+)?{_NUMBER}\W*", re.I)


def parse_pair(review: str) -> Pair | None:
    """Return both scores of a review, None unless there are exactly two from 1 to 10.

    The scores are in the first line that has a word or number, in any usual form: "8 9", "8, 9", "**8/10
    9/10**", "Scores: 8 9"; or as "Assistant 1: 8" and "Assistant 2: 9", in two lines or separated by a comma.
    """
    lines = [
        line for line in visible(without_thought(review)).split("\n") if re.search(r"\w", line)
    ]
    if not lines:
        return None
    match = _LINE.fullmatch(lines[0])
    if match and not re.search(r"\d", match["rest"]):
        return _in_range(match[1], match[2])
    parts = re.split(r"[,;|]", lines[0])
    named = [_NAMED.fullmatch(part) for part in (parts if len(parts) == 2 else lines[:2])]
    if len(named) == 2 and named[0] and named[1] and (named[0][1], named[1][1]) == ("1", "2"):
        return _in_range(named[0][2], named[1][2])
    return None


def _in_range(first: str, second: str) -> Pair | None:
    pair = float(first), float(second)
    return pair if all(1 <= score <= 10 for score in pair) else None


REVIEW_PARSERS: dict[str, Parser[Pair | None]] = {
    parser.name: parser
    for parser in (
        Parser("review", 2, "this package: training/evaluation/scoring/reviews.py", parse_pair),
        Parser("review_llava", 1, "LLaVA, llava/eval/eval_gpt_review_bench.py", llava_pair),
        Parser("review_maya", 1, "nahidalam/maya f153866, eval_gpt_review_bench.py", maya_pair),
        Parser(
            "review_lmms_eval",
            1,
            "lmms-eval 0.7.3, tasks/multilingual-llava-bench-in-the-wild",
            lmms_eval_pair,
        ),
    )
}


# ------------------------------------------------------------------- summaries


@dataclass(frozen=True)
class Review:
    """A judged answer; `pair` is (reference's score, model's score), None if judging failed."""

    id: str
    category: str
    pair: Pair | None


class CategorySummary(TypedDict):
    """Means of the judged answers, rounded to three digits as published; None if there are none.

    `relative` is the model's mean in percent of the reference's. `line` is the line that LLaVA's script prints.
    """

    asked: int
    n: int
    mean_reference: float | None
    mean_model: float | None
    relative: float | None
    line: str | None


class ReviewSummary(TypedDict):
    """Summaries of "all" and each category, and the failed judgements."""

    metric: str
    failed: int
    failed_share: float
    failed_ids: list[str]
    categories: dict[str, CategorySummary]


def summary(reviews: Iterable[Review]) -> ReviewSummary:
    """Return relative scores without failed judgements.

    Raises:
        ValueError: there are no reviews, an id occurs twice, or a score is not a finite number.
    """
    return _summary(list(reviews), METRIC, None)


def summary_as_published(reviews: Iterable[Review]) -> ReviewSummary:
    """Return relative scores as LLaVA, PALO and Maya print them: a failed judgement scores -1 for both answers."""
    return _summary(list(reviews), f"{METRIC}, failed as -1", (-1.0, -1.0))


def _summary(reviews: list[Review], metric: str, for_failed: Pair | None) -> ReviewSummary:
    if not reviews:
        raise ValueError(f"{METRIC}: expected at least one review, found none")
    no_duplicates(METRIC, "review", (review.id for review in reviews))
    groups: dict[str, list[Pair | None]] = {"all": []}
    failed = []
    for review in reviews:
        if review.pair is None:
            failed.append(review.id)
        elif not all(map(math.isfinite, review.pair)):
            raise ValueError(
                f"{METRIC}: review {review.id!r}: expected two numbers, found {review.pair}"
            )
        for name in ("all", review.category):
            groups.setdefault(name, []).append(review.pair or for_failed)
    return {
        "metric": metric,
        "failed": len(failed),
        "failed_share": len(failed) / len(reviews),
        "failed_ids": failed,
        "categories": {name: _category(name, groups[name]) for name in sorted(groups)},
    }


def _category(name: str, pairs: list[Pair | None]) -> CategorySummary:
    judged = [pair for pair in pairs if pair is not None]
    result: CategorySummary = {
        "asked": len(pairs),
        "n": len(judged),
        "mean_reference": None,
        "mean_model": None,
        "relative": None,
        "line": None,
    }
    if judged:
        reference, model = (
            round(sum(column) / len(judged), 3) for column in zip(*judged, strict=True)
        )
        result["mean_reference"], result["mean_model"] = reference, model
        if reference > 0:
            result["relative"] = round(model / reference * 100, 1)
            result["line"] = (
                f"{name} {result['relative']} {round(reference * 10, 1)} {round(model * 10, 1)}"
            )
    return result
