"""Means over seeds and paired differences by seed, with Student's t.

A study has few seeds, so the intervals use the t distribution with n - 1 degrees of freedom, not the
normal distribution. The intervals show the variation between training seeds. The results of each run
show the variation between test questions.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict


class Mean(NamedTuple):
    """Mean over n seeds with its 95 % interval. low and high are None with fewer than two seeds."""

    n: int
    value: float
    low: float | None
    high: float | None


class Paired(TypedDict):
    """Difference of a cell from the baseline, paired by seed. p is two-sided; None with one seed."""

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Return the mean of one value per seed, with its 95 % interval.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("values: expected at least one seed, found none")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Mean(1, mean, None, None)
    half = _quantile(len(values)) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(len(values), mean, mean - half, mean + half)


def paired_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Compare two cells on their common seeds with a paired t-test.

    Args:
        first: seed -> value.
        second: seed -> value.

    Returns:
        The comparison, first minus second, or None without a common seed.
    """
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    n, difference, low, high = mean_over_seeds(differences)
    return {"n": n, "difference": difference, "low": low, "high": high, "p": _p(differences)}


def _p(differences: Sequence[float]) -> float | None:
    from scipy.stats import t

    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:  # all seeds have the same difference
        return 1.0 if mean == 0 else 0.0
    statistic = abs(mean) / (deviation / math.sqrt(len(differences)))
    return float(2 * t.sf(statistic, len(differences) - 1))


def _quantile(n: int) -> float:
    """Return the two-sided 95 % quantile of Student's t for n values."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))
