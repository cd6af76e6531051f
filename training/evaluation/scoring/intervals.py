"""95 % intervals of scores, paired comparisons of two models, and Holm's correction for several comparisons.

Questions on one image are not independent. The bootstrap therefore resamples whole items, such as images, and the
permutation test changes the sign of whole items. Every function gives the same numbers for the same seed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypedDict

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 2000
# Draws held in memory at a time.
_CHUNK = 4_000_000


class Interval(NamedTuple):
    """A value and its 95 % interval [low, high]; both bounds are None if there is too little data."""

    value: float
    low: float | None
    high: float | None


class Difference(TypedDict):
    """First model minus second, on the same questions. `p` is two-sided."""

    n: int
    clusters: int
    difference: float
    low: float | None
    high: float | None
    p: float
    method: str


def wilson(correct: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion, which, unlike the normal one, holds at 0 and 1.

    Raises:
        ValueError: unless 0 <= correct <= n and n > 0.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(
            f"proportion: expected 0 <= correct <= n and n > 0, found {correct} of {n}"
        )
    p = correct / n
    centre = p + Z95**2 / (2 * n)
    spread = Z95 * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, float((centre - spread) / scale)), min(1.0, float((centre + spread) / scale))


def proportion(values: Sequence[float]) -> Interval:
    """Return the share of ones among zeros and ones, with Wilson's interval.

    Raises:
        ValueError: there are no values.
    """
    return Interval(sum(values) / max(1, len(values)), *wilson(int(sum(values)), len(values)))


def mean(
    values: Sequence[tuple[Hashable, float]], seed: int = 0, *, resamples: int = RESAMPLES
) -> Interval:
    """Return the mean of (item, value) pairs, with a bootstrap over items.

    If every item has one value and all values are 0 or 1, the interval is Wilson's.
    """
    alone = len({item for item, _ in values}) == len(values)
    if alone and all(value in (0, 1) for _, value in values):
        return proportion([value for _, value in values])
    return mean_of_languages({"": values}, resamples=resamples, seed=seed)


def mean_of_languages(
    values: Mapping[str, Sequence[tuple[Hashable, float]]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the unweighted mean of the languages' means, with a bootstrap over items.

    The same item is asked about in every language, so answers are not independent: whole items are drawn with
    replacement, which keeps that dependence. If all values are 0 or all are 1, the bootstrap sees no spread;
    the interval is then Wilson's, for that number of items.

    Args:
        values: language -> its (item, value) pairs.

    Raises:
        ValueError: a language has no values, or a value is not finite.
    """
    return mean_of_ratios(
        {lang: [(item, value, 1.0) for item, value in pairs] for lang, pairs in values.items()},
        resamples=resamples,
        seed=seed,
    )


def mean_of_ratios(
    parts: Mapping[str, Sequence[tuple[Hashable, float, float]]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the unweighted mean of several ratios of sums, such as the F1 of each set, with a bootstrap over items.

    If all ratios are 0 or all are 1, the interval is Wilson's, for that number of items.

    Args:
        parts: ratio -> its (item, numerator, denominator) triples.

    Raises:
        ValueError: a ratio has no parts, its denominators do not sum to more than 0, or a number is not finite.
    """
    empty = [name for name, own in parts.items() if not own]
    if empty or not parts:
        raise ValueError(
            f"interval: {', '.join(empty) or 'languages'}: expected at least one answer, found none"
        )
    items = sorted({item for own in parts.values() for item, _, _ in own}, key=_order)
    index = {item: i for i, item in enumerate(items)}
    above = np.zeros((len(items), len(parts)))
    below = np.zeros_like(above)
    for column, own in enumerate(parts.values()):
        _finite([part[1] for part in own], "values")
        denominators = _finite([part[2] for part in own], "denominators")
        if denominators.sum() <= 0 or denominators.min() < 0:
            raise ValueError("interval: expected denominators of 0 or more with a sum above 0")
        for item, numerator, denominator in own:
            above[index[item], column] += numerator
            below[index[item], column] += denominator
    low, high = _bounds(above, below, resamples, seed)
    every = [part for own in parts.values() for part in own]
    if all(part[1] == 0 for part in every) or all(part[1] == part[2] for part in every):
        low, high = wilson(len(items) if above.any() else 0, len(items))
    return Interval(float((above.sum(0) / below.sum(0)).mean()), low, high)


def paired_difference(
    first: Mapping[str, float],
    second: Mapping[str, float],
    clusters: Mapping[str, Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return the mean difference of two models on the same questions, with interval and p value.

    The interval comes from a bootstrap over clusters. The p value is the share of random sign changes of whole
    clusters whose difference is at least the observed one.

    Args:
        first: question id -> the first model's score.
        second: the same questions -> the second model's score.
        clusters: question id -> its cluster; if None, each question is its own cluster.
        resamples: draws for the interval and for the p value.
        seed: seed of the draws.

    Raises:
        ValueError: there are no questions, they differ between the models, one has no cluster, or a value is not
            finite.
    """
    for question in (*first, *second):
        if question not in first or question not in second:
            side = "second" if question in first else "first"
            raise ValueError(
                f"paired difference: question {question!r}: expected a score of both models, found none of the {side}"
            )
        if clusters is not None and question not in clusters:
            raise ValueError(
                f"paired difference: question {question!r}: expected a cluster, found none"
            )
    # The draws must not depend on the order of the questions.
    questions = sorted(first)
    differences = _finite([first[q] - second[q] for q in questions], "values")
    numbers: dict[Hashable, int] = {}
    own = (q if clusters is None else clusters[q] for q in questions)
    index = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in own])
    count = len(numbers)
    sums, sizes = np.bincount(index, differences, count), np.bincount(index, minlength=count)
    low, high = _bounds(sums[:, None], sizes[:, None], resamples, seed)
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
        # Sums of the same numbers in another order can differ in the last digits.
        reached += int((abs(signs @ sums) >= observed - 1e-9 * max(1.0, observed)).sum())
    return (reached + 1) / (resamples + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values corrected for multiple comparisons (Holm 1979), in the given order.

    Raises:
        ValueError: a value is outside 0 to 1, named in the message.
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


def _order(item: Hashable) -> tuple[str, str]:
    """Return a sort key for items of any type, so that draws do not depend on their order."""
    return type(item).__name__, str(item)


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


def _bounds(
    above: np.ndarray, below: np.ndarray, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Return the bootstrap's 95 % interval of the mean over columns of sum(above) / sum(below).

    Both arrays are (items, columns). A single item is too little data: both bounds are None.
    """
    if len(above) < 2:
        return None, None
    means = []
    for weights in _draws(len(above), resamples, seed):
        drawn = weights @ below
        known = drawn > 0
        ratios = np.divide(weights @ above, drawn, out=np.zeros_like(drawn), where=known)
        with np.errstate(invalid="ignore"):
            means.append(ratios.sum(axis=1) / known.sum(axis=1))
    low, high = map(float, np.nanpercentile(np.concatenate(means), [2.5, 97.5]))
    return low, high


def _draws(items: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each item occurs when all are drawn with replacement: (resamples, items).

    The draws come in batches that fit in memory. With few items there is one batch, which is cached.
    """
    if 0 < items * resamples <= _CHUNK:
        yield _kept_draws(items, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for size in _sizes(items, resamples):
        yield rng.multinomial(items, np.full(items, 1 / items), size=size).astype(float)


@lru_cache(maxsize=4)
def _kept_draws(items: int, resamples: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=resamples).astype(float)


def _sizes(count: int, resamples: int) -> Iterator[int]:
    """Yield the sizes of batches of draws that fit in memory."""
    if resamples < 1:
        raise ValueError(f"interval: resamples: expected at least 1, found {resamples}")
    batch = max(1, _CHUNK // count)
    for begin in range(0, resamples, batch):
        yield min(batch, resamples - begin)
