import math

import numpy as np
import pytest

from maya_vlm.training.evaluation.metrics import (
    in_script,
    mean,
    mean_of_languages,
    normalise,
    proportion,
    same_answer,
    wilson,
)


def test_wilson_interval_solves_its_equation():
    # Its ends are the p for which the observed share is exactly 1.96 standard errors away.
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
    # Two values of each item that are always alike are worth no more than one of each.
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
    # Ten languages that know the same concepts are worth one; ten independent ones are worth more.
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


def test_answers_are_compared_by_content_not_by_dress():
    assert same_answer(" Hot  dog.", "hot dog")
    assert same_answer("ＯＫ", "ok")
    assert same_answer("cafe\u0301", "caf\u00e9")
    assert same_answer("راکٹ۔", "راکٹ")
    assert not same_answer("", "")
    assert not same_answer("dog", "hot dog")
    assert normalise("«Да!»") == "да"


@pytest.mark.parametrize(
    ("text", "language", "own"),
    [
        ("rocket", "en", True),
        ("ракета", "en", False),
        ("火箭", "zh", True),
        ("ロケット", "ja", True),
        ("火箭", "ko?", None),
        ("रॉकेट", "hi", True),
        ("রকেট", "hi", False),
        ("صاروخ (OK)", "ar", True),
        ("123 !", "fr", False),
    ],
)
def test_script_of_an_answer(text, language, own):
    if own is None:
        with pytest.raises(ValueError, match="known: en"):
            in_script(text, language)
    else:
        assert in_script(text, language) is own
