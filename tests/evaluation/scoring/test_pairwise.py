import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.pairwise import (
    STRENGTH,
    Duel,
    lmms_eval_wildvision,
    parse_verdict,
    win_rate,
)

from .answers import around, texts
from .golden import golden, needs_golden


@pytest.mark.parametrize(
    ("judgement", "verdict"),
    [
        ("[[A>B]]", "A>B"), ("Final Decision: [[ B >> A ]]", "B>>A"), ("[[A≫B]]", "A>>B"), ("[[A＞B]]", "A>B"),
        ("[[A=B]] ... so [[A=B]]", "A=B"), ("**[[B>A]]**", "B>A"),
        ("[[A>B]] or [[B>A]]", None), ("[A>B]", None), ("A>B", None), ("[[A<B]]", None), ("[[B=A]]", None), ("[[C]]", None),
        ("[[a>b]]", None), ("[[A>B", None), ("", None), ("I cannot judge this", None),
        # Example verdicts repeated from the prompt, and the judge's own.
        ("[[A>>B]], [[A>B]], [[A=B]]", None),
    ],
)  # fmt: skip
def test_strict_verdicts(judgement, verdict):
    assert parse_verdict(judgement) == verdict


@pytest.mark.parametrize(
    ("judgement", "name"),
    [
        ("[[A>>B]]", "Worse++"),
        ("[[ A>B ]]", "Worse"),
        ("[[A > B]]", "Unclear"),
        ("", "Unclear"),
        ("B>A", "Better"),
    ],
)
def test_wildvisions_parser_keeps_its_mistakes(judgement, name):
    assert lmms_eval_wildvision(judgement) == name


@settings(deadline=None)
@given(texts, around, around)
def test_parsers_never_fail(judgement, before, after):
    verdict = parse_verdict(judgement)
    assert verdict in (None, *STRENGTH)
    assert parse_verdict(before + judgement + after) == verdict
    assert lmms_eval_wildvision(judgement)


def test_both_orders_are_summed_by_strength():
    duels = [
        # Much better as A, slightly worse as B.
        Duel("1", "en", "A>>B", "A>B"),
        # Each order prefers the first position.
        Duel("2", "en", "A>B", "A>B"),
        Duel("3", "en", "B>A", "A=B"),
        Duel("4", "hi", "A>B", None),
        Duel("5", "hi", "A=B", "B>A"),
    ]
    score = win_rate(duels)
    assert score["total"] == {"judged": 4, "failed": 1, "win": 50.0, "loss": 25.0, "tie": 25.0}
    assert score["languages"]["hi"] == {
        "judged": 1,
        "failed": 1,
        "win": 100.0,
        "loss": 0.0,
        "tie": 0.0,
    }
    assert score["macro_win"] == pytest.approx((100 / 3 + 100) / 2)
    assert score["failed_ids"] == ["4"]
    assert score["consistency"] == 0


def test_one_order_ignores_the_other():
    score = win_rate([Duel("1", "en", "A>B", None), Duel("2", "en", None, "A>B")], orders="one")
    assert score["total"] == {"judged": 1, "failed": 1, "win": 100.0, "loss": 0.0, "tie": 0.0}
    assert score["consistency"] is None


def test_a_language_without_a_judgement_has_no_rate():
    score = win_rate([Duel("1", "en", None, None), Duel("1", "fr", "A>B", "B>A")])
    assert score["languages"]["en"]["win"] is None
    assert score["macro_win"] == 100
    assert score["consistency"] == 100


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match=r"question '1': expected one of A>>B.*found 'A<B'"):
        win_rate([Duel("1", "en", "A<B", None)])
    with pytest.raises(ValueError, match=r"question .*'1'.*expected once"):
        win_rate([Duel("1", "en", "A>B")] * 2)
    with pytest.raises(ValueError, match="at least one duel"):
        win_rate([])


@needs_golden
def test_golden_verdicts():
    for case in golden("pairwise/verdicts.jsonl"):
        assert parse_verdict(case["judgement"]) == case["strict"], case["judgement"]
        expected = case["lmms_eval_wildvision"].partition(" (")[0]
        assert lmms_eval_wildvision(case["judgement"]) == expected, case["judgement"]


@needs_golden
@pytest.mark.parametrize(("orders", "name"), [("one", "one_order"), ("both", "both_orders_summed")])
def test_golden_win_rates(orders, name):
    cases = golden("pairwise/win_rate.json")
    duels = [
        Duel(row["question_id"], row["language"], row["model_is_A"], row["model_is_B"])
        for row in cases["rows"]
    ]
    score, known = win_rate(duels, orders), cases["expected"]
    for key in ("judged", "failed", "win", "loss", "tie"):
        assert score["total"][key] == pytest.approx(known[name][key], abs=1e-9)
        for language, rates in known[name]["per_language"].items():
            assert score["languages"][language][key] == pytest.approx(rates[key], abs=1e-9)
    assert score["macro_win"] == pytest.approx(known[name]["macro_win"], abs=1e-9)
    assert score["consistency"] == pytest.approx(known["position_consistency_percent"], abs=1e-9)
