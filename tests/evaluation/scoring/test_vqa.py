import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maya_vlm.training.evaluation.scoring.vqa import (
    VqaRow,
    accuracy,
    normalise_evalai,
    normalise_official,
    processed,
    vqa_score,
)

from .answers import texts
from .golden import golden, needs_golden

UNANIMOUS = ["yes"] * 10
DIVIDED = ["yes"] * 8 + ["no"] * 2


@pytest.mark.parametrize(
    ("prediction", "answers", "official", "evalai"),
    [
        # Ten equal answers, which the official code does not normalise.
        ("yes", UNANIMOUS, 1.0, 1.0),
        ("Yes", UNANIMOUS, 0.0, 1.0),
        ("yes.", UNANIMOUS, 0.0, 1.0),
        (" yes\n", UNANIMOUS, 1.0, 1.0),
        ("Yes.", DIVIDED, 1.0, 1.0),
        # Two of ten agree. Leaving out one answer, two sets have one equal answer left and eight have two.
        ("no", DIVIDED, 0.6, 0.6),
        ("maybe", DIVIDED, 0.0, 0.0),
        ("", DIVIDED, 0.0, 0.0),
        ("dont", ["don't"] * 9 + ["do"], 1.0, 1.0),
        ("the three", ["3"] * 9 + ["4"], 1.0, 1.0),
    ],
)
def test_accuracy(prediction, answers, official, evalai):
    assert accuracy(prediction, answers) == pytest.approx(official)
    assert accuracy(prediction, answers, "evalai") == pytest.approx(evalai)


@pytest.mark.parametrize(
    ("text", "official", "evalai"),
    [
        ("cats,dogs", "cats dogs", "catsdogs"),
        ("cats , dogs", "cats dogs", "cats dogs"),
        ("1,000 (big)", "1000 big", "1000 big"),
        ("dog's", "dog's", "dog 's"),
        ("t-shirt", "t shirt", "t shirt"),
        ("t- shirt", "t shirt", "t shirt"),
        ("3.5", "3.5", "3.5"),
        ("3. 5.", "3 5", "3 5"),
        ("None of an ox", "0 of ox", "0 of ox"),
        ("Im", "im", "im"),
        ("shes", "shes", "shes"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("." * 40, "." * 8, "." * 8),
        ("北京。", "北京。", "北京。"),
    ],
)
def test_normalisation(text, official, evalai):
    assert normalise_official(text) == official
    assert normalise_evalai(text) == evalai


def test_scores_by_type():
    rows = [
        VqaRow("1", "yes", UNANIMOUS, "is the", "yes/no"),
        VqaRow("2", "Yes", UNANIMOUS, "is the", "yes/no"),
        VqaRow("3", " ", DIVIDED, "what", "other"),
        VqaRow("4", "yes", DIVIDED),
    ]
    score = vqa_score(rows)
    assert score["accuracy"] == 50
    assert score["per_question_type"] == {"is the": 50.0, "what": 0.0}
    assert score["per_answer_type"] == {"yes/no": 50.0, "other": 0.0}
    assert (score["n"], score["empty"], score["protocol"]) == (4, 1, "official")
    assert vqa_score(rows, "evalai")["accuracy"] == 75


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="row '7': answers: expected at least one"):
        vqa_score([VqaRow("7", "yes", [])])
    with pytest.raises(ValueError, match="row '7': expected once"):
        vqa_score([VqaRow("7", "yes", UNANIMOUS)] * 2)
    with pytest.raises(ValueError, match="at least one row"):
        vqa_score([])


@settings(deadline=None)
@given(texts, st.lists(texts, min_size=1, max_size=10))
def test_any_text_has_an_accuracy(prediction, answers):
    for protocol in ("official", "evalai"):
        assert 0 <= accuracy(prediction, answers, protocol) <= 1


@needs_golden
def test_golden_cases():
    cases = golden("vqa/cases.jsonl")
    for case in cases:
        for protocol, name in (("official", "official"), ("evalai", "m4c")):
            prediction, answers = case["prediction"], case["answers"]
            where = (prediction, protocol)
            assert processed(prediction, answers, protocol) == case[f"{name}_processed"], where
            found = 100 * accuracy(prediction, answers, protocol)
            assert found == pytest.approx(case[f"{name}_accuracy"], abs=1e-9), where
    rows = [
        VqaRow(
            str(c["question_id"]),
            c["prediction"],
            c["answers"],
            c["question_type"],
            c["answer_type"],
        )
        for c in cases
    ]
    known = golden("vqa/expected.json")
    score = vqa_score(rows)
    assert score["overall"] == known["official"]["overall"]
    assert score["per_question_type"] == known["official"]["perQuestionType"]
    assert score["per_answer_type"] == known["official"]["perAnswerType"]
    assert vqa_score(rows, "evalai")["accuracy"] == pytest.approx(known["textvqa_m4c"], abs=1e-9)
