"""Test the study of the checks: its injected texts are failures, and its counts are correct."""

import random
from collections import defaultdict

import pytest

from maya_vlm.training.data.checks.rules import RowChecker
from tests.benchmarks import verification_rates as study
from tests.data.checks.test_rules import GOOD, SOURCE

POOLS = {
    lang: [(SOURCE, text), (SOURCE.replace("woman", "child"), text[::-1])]
    for lang, text in GOOD.items()
}


@pytest.mark.parametrize("name", study.FAILURES)
@pytest.mark.parametrize("lang", study.LANGUAGES)
def test_every_failure_changes_the_text(name, lang):
    for seed in range(4):
        bad = study.FAILURES[name](SOURCE, GOOD[lang], lang, random.Random(seed), POOLS)
        assert bad != GOOD[lang]
        assert bad


def test_shares_are_counted():
    checker = RowChecker("en", study.LANGUAGES)
    pools = {"fr": [(SOURCE, GOOD["fr"]), (SOURCE, "Here is the translation: " + GOOD["fr"])]}
    failures = {"untranslated": study.FAILURES["untranslated"]}
    examples = defaultdict(list)
    found = study.measure(checker, pools, failures, 0, examples)
    assert (found["clean"]["hard"]["share"], found["clean"]["hard"]["n"]) == (0.5, 2)
    assert found["untranslated"]["any"]["share"] == 1.0
    assert found["untranslated"]["checks"]["copy"] == 2
    assert list(examples) == ["clean/fr"]


def test_intervals():
    assert study.wilson(0, 0) == {"share": None, "n": 0}
    half = study.wilson(50, 100)
    assert half["interval"] == [0.4038, 0.5962]
    assert study.wilson(100, 100)["interval"][1] == 1.0


def test_the_studys_phrases_are_not_the_lists():
    """A phrase in both lists would measure itself."""
    from maya_vlm.training.data.checks.boilerplate import read_phrases

    for lang, kinds in study._COMMENTS.items():
        lists = (study.ROOT / f"training/data/checks/phrases/{lang}.yaml").read_text()
        assert "preface" in read_phrases(lang).said
        for phrases in kinds.values():
            for phrase in phrases:
                assert phrase.strip() not in lists


def test_the_speed_is_that_of_the_whole_step():
    pools = POOLS | {lang: [(SOURCE, GOOD[lang])] for lang in study.LANGUAGES}
    speed = study.measure_speed(pools, rows=14, rounds=2)
    assert speed["rows"] == 14
    assert len(speed["rows_per_cpu_second"]) == 2
    assert speed["cpu_minutes_for_the_paper"] > 0
