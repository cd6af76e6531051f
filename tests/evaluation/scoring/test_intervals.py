import math
import tracemalloc

import numpy as np
import pytest

from maya_vlm.training.evaluation.scoring.intervals import (
    holm,
    mean,
    mean_of_languages,
    mean_of_ratios,
    paired_difference,
    proportion,
    wilson,
)


def ratio(parts):
    return mean_of_ratios({"": parts})


def alone(values):
    """Give each value its own item."""
    return list(enumerate(values))


def test_wilson_interval_solves_its_equation():
    # The bounds are the p for which the observed share is exactly 1.96 standard errors away.
    for correct, n in [(0, 20), (3, 40), (50, 100), (100, 100)]:
        low, high = wilson(correct, n)
        assert 0 <= low <= correct / n <= high <= 1
        for end in (low, high):
            if 0 < end < 1:
                distance = abs(correct / n - end) / math.sqrt(end * (1 - end) / n)
                assert distance == pytest.approx(1.959964, abs=1e-5)


def test_wilson_covers_about_95_percent():
    rng = np.random.default_rng(0)
    hits = [lo <= 0.3 <= hi for lo, hi in (wilson(int(k), 80) for k in rng.binomial(80, 0.3, 2000))]
    assert 0.93 < np.mean(hits) < 0.97


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_proportion(correct, n):
    with pytest.raises(ValueError, match="proportion"):
        wilson(correct, n)


def test_proportion():
    assert proportion([True, False, True, True]) == (0.75, *wilson(3, 4))


def test_mean_of_values_that_are_no_shares_is_drawn_over_items():
    alone = [(f"c{i}", i % 2) for i in range(40)]
    assert mean(alone) == proportion([value for _, value in alone])
    # Two equal values of each item add no information to one.
    twice = [pair for pair in alone for _ in range(2)]
    found, once = mean(twice), mean(alone)
    assert found.value == once.value
    assert found.high - found.low == pytest.approx(once.high - once.low, rel=0.1)
    lengths = mean([(f"c{i}", 3.0 + i) for i in range(5)])
    assert lengths.value == 5
    assert 3 < lengths.low < 5 < lengths.high < 7


def test_mean_is_unweighted_and_its_interval_keeps_the_dependence_of_languages():
    rng = np.random.default_rng(1)
    concepts = [f"c{i}" for i in range(300)]
    known = rng.random(300) < 0.4
    # Ten languages that know the same concepts count as one; ten independent ones count as more.
    same = {f"l{j}": list(zip(concepts, known, strict=True)) for j in range(10)}
    apart = {f"l{j}": list(zip(concepts, rng.random(300) < 0.4, strict=True)) for j in range(10)}
    one, ten = mean_of_languages(same), mean_of_languages(apart)
    assert one.value == pytest.approx(known.mean())
    assert one.high - one.low == pytest.approx(np.diff(wilson(known.sum(), 300))[0], rel=0.15)
    assert ten.high - ten.low < 0.5 * (one.high - one.low)
    uneven = {"a": [("x", True)], "b": [("x", False), ("y", False), ("z", False)]}
    assert mean_of_languages(uneven).value == 0.5
    assert mean_of_languages(uneven) == mean_of_languages(uneven)


def test_mean_of_answers_that_are_all_wrong_is_not_certain():
    pairs = [(f"c{i}", False) for i in range(20)]
    found = mean_of_languages({"en": pairs, "hi": pairs})
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(wilson(0, 20)[1])


def test_mean_refuses_a_language_without_answers():
    with pytest.raises(ValueError, match="ur"):
        mean_of_languages({"en": [("x", True)], "ur": []})


def test_a_share_has_wilsons_interval():
    assert proportion([True] * 45 + [False] * 55) == pytest.approx((0.45, 0.3561, 0.5476), abs=1e-4)
    assert proportion([True] * 5).low < 0.6
    with pytest.raises(ValueError, match="n > 0, found 0 of 0"):
        proportion([])


def test_the_bootstrap_agrees_with_the_normal_interval_of_independent_values():
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = mean(alone(values))
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_cover_about_95_percent_of_clustered_data():
    """Answers about one image agree; without clusters the interval would cover about 60 percent."""
    rng = np.random.default_rng(0)
    hits = naive = 0
    for trial in range(200):
        images = np.repeat(np.arange(40), 6)
        values = (rng.normal(size=40)[images] + 0.3 * rng.normal(size=240)).tolist()
        pairs = list(zip(images.tolist(), values, strict=True))
        clustered = mean(pairs, trial, resamples=400)
        single = mean(alone(values), trial, resamples=400)
        hits += clustered.low <= 0 <= clustered.high
        naive += single.low <= 0 <= single.high
    assert 0.9 <= hits / 200 <= 0.99
    assert naive / 200 < 0.75


def test_the_same_seed_gives_the_same_interval():
    values = alone([1.0, 0.0, 0.5, 0.26, 0.75, 0.31, 0.64])
    assert mean(values) == mean(values[::-1])
    assert mean(values) != mean(values, seed=1)


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    interval = ratio([("a", 4.0, 8.0), ("b", 1.0, 8.0)])
    assert interval.value == pytest.approx(5 / 16)
    assert interval.low == pytest.approx(1 / 8)
    assert interval.high == pytest.approx(1 / 2)


def test_all_right_or_all_wrong_still_has_an_interval():
    for interval in (
        mean([(item, 1.0) for item in ["a", "a", "b"] * 4]),
        ratio([(item, 2.0, 2.0) for item in ["a", "a", "b"] * 4]),
    ):
        assert interval == (1.0, *wilson(2, 2))
        assert 0 < interval.low < 0.5
    assert mean(alone([0.0] * 3)).high > 0.3


def test_one_cluster_is_too_little_to_tell():
    assert mean([("a", 0.3), ("a", 0.6)])[1:] == (None, None)
    assert ratio([("a", 0.3, 1), ("a", 0.6, 1)])[1:] == (None, None)
    assert paired_difference({"1": 0.3}, {"1": 0.6})["low"] is None


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: mean_of_languages({"en": []}), "interval: en: expected at least one answer"),
        (lambda: ratio([]), "expected at least one answer, found none"),
        (lambda: mean(alone([1.0, math.nan])), "expected finite numbers, found nan at 1"),
        (lambda: mean(alone([1.0, 0.5]), resamples=0), "resamples: expected at least 1"),
        (lambda: ratio([("a", 1.0, 0.0)]), "denominators of 0 or more with a sum above 0"),
        (
            lambda: paired_difference({"1": 1.0}, {}),
            "question '1': expected a score of both models, found none of the second",
        ),
        (
            lambda: paired_difference({}, {"1": 1.0}),
            "question '1': expected a score of both models, found none of the first",
        ),
        (lambda: paired_difference({"1": 1.0}, {"1": 1.0}, {}), "question '1': expected a cluster"),
        (lambda: paired_difference({}, {}), "at least one number"),
        (lambda: holm({"x": 1.5}), "'x': expected a p value of 0 to 1, found 1.5"),
        (lambda: holm({"x": math.nan}), "'x': expected a p value"),
    ],
)
def test_bad_input_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()


def test_a_difference_on_the_same_questions_is_seen_where_the_scores_overlap():
    rng = np.random.default_rng(0)
    hard = rng.normal(50, 20, 60)
    first = {str(i): value + 3 + rng.normal() for i, value in enumerate(hard)}
    second = {str(i): value for i, value in enumerate(hard)}
    found = paired_difference(first, second)
    assert found["difference"] == pytest.approx(3, abs=0.5)
    assert found["low"] > 2
    assert found["p"] == pytest.approx(1 / 2001)
    swapped = paired_difference(second, first)
    assert swapped["difference"] == pytest.approx(-found["difference"])
    assert swapped["p"] == found["p"]


def test_equal_models_do_not_differ():
    same = {str(i): float(i % 2) for i in range(50)}
    found = paired_difference(same, dict(reversed(same.items())))
    assert (found["difference"], found["low"], found["high"], found["p"]) == (0, 0, 0, 1)


def test_p_values_of_equal_models_are_uniform():
    rng = np.random.default_rng(0)
    small = 0
    for trial in range(300):
        first = {str(i): value for i, value in enumerate(rng.normal(size=30))}
        second = {str(i): value for i, value in enumerate(rng.normal(size=30))}
        small += paired_difference(first, second, resamples=200, seed=trial)["p"] <= 0.1
    assert 0.05 < small / 300 < 0.16


def test_clusters_make_a_difference_less_sure():
    first = {str(i): float(i < 30) for i in range(40)}
    second = {str(i): 0.5 for i in range(40)}
    clusters = {str(i): i // 10 for i in range(40)}
    alone, clustered = paired_difference(first, second), paired_difference(first, second, clusters)
    assert clustered["p"] > 0.3 > 0.05 > alone["p"]
    assert clustered["low"] < alone["low"]


def test_the_order_of_questions_changes_nothing():
    first = {str(i): float(i % 3) for i in range(20)}
    second = {str(i): float(i % 2) for i in range(20)}
    assert paired_difference(first, second) == paired_difference(
        dict(reversed(first.items())), second
    )


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert list(holm({"z": 0.5, "a": 0.1})) == ["z", "a"]
    assert holm({}) == {}


def test_many_questions_need_little_memory():
    """2,000 draws of 9,000 clusters would take 144 MB together, so they are made in batches."""
    values = np.random.default_rng(0).random(9000)
    tracemalloc.start()
    try:
        mean(alone(values))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * 2**20
