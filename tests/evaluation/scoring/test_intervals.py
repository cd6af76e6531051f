import math
import tracemalloc

import numpy as np
import pytest

from maya_vlm.training.evaluation.scoring.intervals import (
    holm,
    mean_interval,
    paired_difference,
    ratio_interval,
    share_interval,
)


def test_a_share_has_wilsons_interval():
    interval = share_interval([True] * 45 + [False] * 55)
    assert interval["value"] == 0.45
    assert (interval["low"], interval["high"]) == pytest.approx((0.3561, 0.5476), abs=1e-4)
    assert share_interval([True] * 5)["low"] < 0.6
    with pytest.raises(ValueError, match="at least one answer"):
        share_interval([])


def test_the_bootstrap_agrees_with_the_normal_interval_of_independent_values():
    values = np.random.default_rng(0).normal(5, 2, 400)
    interval = mean_interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert interval["high"] == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_cover_about_95_percent_of_clustered_data():
    """Answers on one image agree; without clusters the interval would cover about 60 percent."""
    rng = np.random.default_rng(0)
    hits = naive = 0
    for trial in range(200):
        images = np.repeat(np.arange(40), 6)
        values = (rng.normal(size=40)[images] + 0.3 * rng.normal(size=240)).tolist()
        clustered = mean_interval(values, images.tolist(), resamples=400, seed=trial)
        alone = mean_interval(values, resamples=400, seed=trial)
        hits += clustered["low"] <= 0 <= clustered["high"]
        naive += alone["low"] <= 0 <= alone["high"]
    assert 0.9 <= hits / 200 <= 0.99
    assert naive / 200 < 0.75


def test_the_same_seed_gives_the_same_interval():
    values = [1.0, 0.0, 0.5, 0.25, 0.75]
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    interval = ratio_interval([4.0, 1.0], [8.0, 8.0], ["a", "b"])
    assert interval["value"] == pytest.approx(5 / 16)
    assert interval["low"] == pytest.approx(1 / 8)
    assert interval["high"] == pytest.approx(1 / 2)


def test_all_right_or_all_wrong_still_has_an_interval():
    interval = mean_interval([1.0] * 12, ["a", "a", "b"] * 4)
    assert (interval["clusters"], interval["value"], interval["high"]) == (2, 1.0, 1.0)
    assert 0 < interval["low"] < 0.5
    assert mean_interval([0.0] * 3)["high"] > 0.3


def test_one_cluster_is_too_little_to_tell():
    interval = mean_interval([0.3, 0.6], ["a", "a"])
    assert (interval["low"], interval["high"]) == (None, None)
    assert paired_difference({"1": 0.3}, {"1": 0.6})["low"] is None


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: mean_interval([]), "at least one number"),
        (lambda: mean_interval([1.0, math.nan]), "expected finite numbers, found nan at 1"),
        (lambda: mean_interval([1.0], ["a", "b"]), "clusters: expected 1, one a value, found 2"),
        (lambda: mean_interval([1.0, 0.5], resamples=0), "resamples: expected at least 1"),
        (lambda: ratio_interval([1.0], [0.0]), "denominators of 0 or more with a sum above 0"),
        (lambda: ratio_interval([1.0], [1.0, 1.0]), "expected 1 denominators, found 2"),
        (
            lambda: paired_difference({"1": 1.0}, {}),
            "question '1': expected with both models, not with the second",
        ),
        (
            lambda: paired_difference({}, {"1": 1.0}),
            "question '1': expected with both models, not with the first",
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
    """2,000 draws of 9,000 clusters are 144 MB at once; they are made in batches."""
    values = np.random.default_rng(0).random(9000)
    tracemalloc.start()
    try:
        mean_interval(values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 120 * 2**20
