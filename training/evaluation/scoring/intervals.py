"""How sure a score is: 95 % intervals, paired comparisons of two models, correction for many of them.

Questions on one image are not independent, so whole clusters of them are drawn again (bootstrap) or
change sides (permutation). Every function gives the same numbers for the same seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypedDict

import numpy as np

from ..metrics import wilson

RESAMPLES = 2000
# Draws held in memory at once.
_CHUNK = 4_000_000


class Interval(TypedDict):
    """A value with its 95 % interval; low and high are None where there is too little to tell."""

    n: int
    clusters: int
    value: float
    low: float | None
    high: float | None
    method: str


class Difference(TypedDict):
    """First model minus second, on the same questions. `p` is two-sided."""

    n: int
    clusters: int
    difference: float
    low: float | None
    high: float | None
    p: float
    method: str


def share_interval(right: Sequence[bool]) -> Interval:
    """A proportion of independent answers with its Wilson interval. Raises ValueError without answers."""
    if not len(right):
        raise ValueError("interval: expected at least one answer, found none")
    correct, n = sum(map(bool, right)), len(right)
    low, high = wilson(correct, n)
    return {
        "n": n,
        "clusters": n,
        "value": correct / n,
        "low": low,
        "high": high,
        "method": "wilson@1",
    }


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A mean with the bootstrap's interval over clusters.

    Args:
        values: one a question.
        clusters: what each question belongs to, such as its image; each its own if None.
        resamples: how often clusters are drawn.
        seed: of the draws.

    Raises:
        ValueError: no values, values that are not finite, or clusters of another number.
    """
    return ratio_interval(values, np.ones(len(values)), clusters, resamples=resamples, seed=seed)


def ratio_interval(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """A ratio of two sums, such as a relative score, with the bootstrap's interval over clusters.

    Where all ratios are 0 or all are 1 the bootstrap sees no spread; the Wilson interval of that many
    clusters is given then.

    Raises:
        ValueError: as `mean_interval`; a sum of denominators that is not above 0.
    """
    above, below = _finite(numerators, "values"), _finite(denominators, "denominators")
    if len(above) != len(below):
        raise ValueError(f"interval: expected {len(above)} denominators, found {len(below)}")
    if below.sum() <= 0 or below.min() < 0:
        raise ValueError("interval: expected denominators of 0 or more with a sum above 0")
    index, count = _numbered(clusters, len(above))
    sums = np.stack([np.bincount(index, above, count), np.bincount(index, below, count)])
    value = float(above.sum() / below.sum())
    low: float | None = None
    high: float | None = None
    method = f"bootstrap@1, {resamples} resamples, seed {seed}"
    if np.array_equal(above, np.zeros_like(below)) or np.array_equal(above, below):
        method = "wilson@1 of clusters"
        low, high = wilson(count if value else 0, count)
    elif count > 1:
        drawn = np.concatenate(
            [sums[:, picks].sum(axis=2) for picks in _draws(count, resamples, seed)], axis=1
        )
        known = drawn[1] > 0
        low, high = map(float, np.percentile(drawn[0, known] / drawn[1, known], [2.5, 97.5]))
    return {
        "n": len(above),
        "clusters": count,
        "value": value,
        "low": low,
        "high": high,
        "method": method,
    }


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Mean difference of two models on the same questions, with interval and p value.

    The interval is the bootstrap's over clusters, p the share of sign changes of whole clusters that give
    at least this difference.

    Args:
        first: question id -> score.
        second: the same questions -> the other model's score.
        clusters: question id -> what it belongs to; each its own if None.
        resamples: draws for each of both.
        seed: of the draws.

    Raises:
        ValueError: no questions, different ones, one without a cluster, or a value that is not finite.
    """
    for question in (*first, *second):
        if question not in first or question not in second:
            side = "second" if question in first else "first"
            raise ValueError(
                f"paired difference: question {question!r}: expected with both models, not with the {side}"
            )
        if clusters is not None and question not in clusters:
            raise ValueError(
                f"paired difference: question {question!r}: expected a cluster, found none"
            )
    # Draws must not depend on the order in which questions are listed.
    questions = sorted(first)
    differences = _finite([first[q] - second[q] for q in questions], "values")
    own = None if clusters is None else [clusters[q] for q in questions]
    index, count = _numbered(own, len(questions))
    sums, sizes = np.bincount(index, differences, count), np.bincount(index, minlength=count)
    low: float | None = None
    high: float | None = None
    if count > 1:
        drawn = np.concatenate(
            [
                sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
                for picks in _draws(count, resamples, seed)
            ]
        )
        low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    return {
        "n": len(questions),
        "clusters": count,
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
        "p": _sign_change_p(sums, resamples, seed),
        "method": f"bootstrap@1 and sign changes@1 of clusters, {resamples} resamples, seed {seed}",
    }


def _sign_change_p(sums: np.ndarray, resamples: int, seed: int) -> float:
    rng = np.random.default_rng([seed, 1])
    observed = abs(sums.sum())
    reached = 0
    for size in _sizes(len(sums), resamples):
        signs = rng.integers(0, 2, size=(size, len(sums)), dtype=np.int8) * 2 - 1
        # Sums of the same numbers in another order differ in the last digits.
        reached += int((abs(signs @ sums) >= observed - 1e-9 * max(1.0, observed)).sum())
    return (reached + 1) / (resamples + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for being several (Holm 1979), in the order given.

    Raises:
        ValueError: a value outside of 0 to 1, with its name.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"holm: {name!r}: expected a p value of 0 to 1, found {p!r}")
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


# ------------------------------------------------------------------------------ draws


def _finite(values: Sequence[float] | np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"interval: {name}: expected at least one number, found none")
    if not np.isfinite(array).all():
        place = int(np.argmin(np.isfinite(array)))
        raise ValueError(
            f"interval: {name}: expected finite numbers, found {array[place]} at {place}"
        )
    return array


def _numbered(clusters: Sequence[Hashable] | None, n: int) -> tuple[np.ndarray, int]:
    """The clusters as numbers, and how many there are."""
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise ValueError(f"interval: clusters: expected {n}, one a value, found {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    return index, len(numbers)


def _sizes(count: int, resamples: int) -> Iterator[int]:
    """Sizes of batches of draws that fit in memory."""
    if resamples < 1:
        raise ValueError(f"interval: resamples: expected at least 1, found {resamples}")
    batch = max(1, _CHUNK // count)
    for begin in range(0, resamples, batch):
        yield min(batch, resamples - begin)


def _draws(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Clusters drawn with replacement, (resamples, count) in batches."""
    rng = np.random.default_rng(seed)
    for size in _sizes(count, resamples):
        yield rng.integers(0, count, size=(size, count))
