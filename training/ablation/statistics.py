"""Means over seeds and paired differences by seed, with Student's t.

A study has few seeds, so intervals are those of the t distribution with n - 1 degrees of freedom, not of
the normal distribution. They say how much the result varies with the seed of the training; how much it
varies with the questions of a test is in the results of each run.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict


class Mean(NamedTuple):
    """Mean over n seeds with its 95 % interval; low and high are None for fewer than two seeds."""

    n: int
    value: float
    low: float | None
    high: float | None


class Paired(TypedDict):
    """A cell minus the baseline, seed by seed. p is two-sided; None for fewer than two seeds."""

    n: int
    difference: float
    low: float | None
    high: float | None
    p: float | None


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Return the mean of one value a seed, with its interval. Raises ValueError for no values."""
    if not values:
        raise ValueError("values: expected at least one seed, found none")
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Mean(1, mean, None, None)
    half = _quantile(len(values)) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(len(values), mean, mean - half, mean + half)


def paired_by_seed(first: Mapping[int, float], second: Mapping[int, float]) -> Paired | None:
    """Compare two cells on the seeds that both have (paired t-test, first minus second).

    Returns None if they have no seed in common.
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
    if deviation == 0:  # every seed differs by the same number
        return 1.0 if mean == 0 else 0.0
    statistic = abs(mean) / (deviation / math.sqrt(len(differences)))
    return float(2 * t.sf(statistic, len(differences) - 1))


def _quantile(n: int) -> float:
    """Return the two-sided 95 % quantile of Student's t for n values."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))
