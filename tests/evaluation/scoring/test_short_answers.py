import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.plain import normalise
from maya_vlm.training.evaluation.scoring.short_answers import (
    RULES,
    ShortAnswer,
    gqa_prediction,
    same,
    short_answer_score,
)

from .answers import texts
from .golden import golden, needs_golden


@pytest.mark.parametrize(
    ("task", "rule", "prediction", "golds", "right"),
    [
        ("xgqa", "pangea_contains", "woman", ["man"], True),
        ("xgqa", "centurio_exact", "Man ", ["man"], True),
        ("xgqa", "centurio_exact", "man.", ["man"], False),
        ("xgqa", "centurio_relaxed", "a man", ["man"], True),
        ("xgqa", "centurio_relaxed", "mankind", ["man"], True),
        ("xgqa", "centurio_relaxed", "two men", ["man"], False),
        ("xgqa", "same", "Man.", ["man"], True),
        ("xgqa", "same", "woman", ["man"], False),
        ("xgqa", "same", "", [""], False),
        ("mtvqa", "mtvqa_contains", "It is 3.5.", ["3.5"], False),
        ("mtvqa", "lmms_contains", "It is 3.5.", ["3.5"], True),
        ("mtvqa", "mtvqa_contains", "It is 35.", ["35"], True),
        ("mtvqa", "same", "ＳＴＯＰ！", ["stop"], True),
        ("maxm", "centurio_exact_any", "Chat", ["chien", "chat"], True),
        ("maxm", "centurio_exact_any", "un chat", ["chien", "chat"], False),
        ("maxm", "pangea_relaxed", "Un chat.", ["chien", "chat"], True),
        ("maxm", "pangea_relaxed", "Paris", ["Paris"], False),
        ("maxm", "pangea_relaxed", "yes", ["True"], True),
        ("maxm", "pangea_relaxed", "dans l'eau", ["l'eau"], True),
        ("marvl", "pangea", "Yes, true", ["true"], True),
        ("marvl", "pangea", "nothing true", ["true"], False),
        ("marvl", "centurio_exact", "yes", ["true"], True),
        ("marvl", "centurio_exact", "true", ["true"], False),
        ("gqa", "gqa_official", "Dog..", ["dog"], True),
        ("gqa", "gqa_official", " dog", ["dog"], False),
        ("gqa", "gqa_lmms_eval", "d.o-g!", ["dog"], True),
    ],
)
def test_rules(task, rule, prediction, golds, right):
    assert RULES[task][rule](prediction, golds) is right


def test_a_score_has_the_papers_rule_exact_match_and_the_length():
    rows = [ShortAnswer("1", "woman", ["man"]), ShortAnswer("2", "man", ["man"])]
    score = short_answer_score([*rows, ShortAnswer("3", " ", ["man"])], "xgqa")
    assert score["scores"]["pangea_contains"] == pytest.approx(2 / 3)
    assert score["scores"]["centurio_exact"] == pytest.approx(1 / 3)
    assert score["rule"] == "centurio_exact"
    assert (score["mean_length"], score["empty"]) == (pytest.approx(8 / 3), 1)


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match=r"task: expected one of xgqa.*found 'vqa'"):
        short_answer_score([ShortAnswer("1", "a", ["a"])], "vqa")
    for golds in ([], "man"):
        with pytest.raises(ValueError, match="row '1': golds: expected a list"):
            short_answer_score([ShortAnswer("1", "a", golds)], "xgqa")
    with pytest.raises(ValueError, match="row '1': expected once"):
        short_answer_score([ShortAnswer("1", "a", ["a"])] * 2, "xgqa")
    with pytest.raises(ValueError, match="at least one row"):
        short_answer_score([], "xgqa")


@settings(deadline=None)
@given(texts, texts)
def test_rules_never_fail(prediction, gold):
    for rules in RULES.values():
        for rule in rules.values():
            assert rule(prediction, [gold]) in (True, False)


@needs_golden
def test_golden_cases():
    for case in golden("short_answers/cases.jsonl"):
        golds = [case["gold"]] if isinstance(case["gold"], str) else case["gold"]
        for name, expected in case["expected"].items():
            if name == "gqa_convert":
                assert gqa_prediction(case["response"]) == expected
            else:
                found = RULES[case["task"].lower()][name](case["response"], golds)
                assert found == expected, (name, case)


def test_answers_are_compared_by_content_not_by_dress():
    assert same(" Hot  dog.", ["hot dog"])
    assert same("ＯＫ", ["ok"])
    assert same("cafe\u0301", ["caf\u00e9"])
    assert same("راکٹ۔", ["راکٹ"])
    assert not same("", [""])
    assert not same("dog", ["hot dog"])
    assert normalise("«Да!»") == "да"
