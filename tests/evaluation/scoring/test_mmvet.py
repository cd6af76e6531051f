import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.mmvet import MmvetRow, mmvet_score, parse_grade

from .answers import around, texts
from .golden import golden, needs_golden


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("0.5", 0.5), (" 1.0 |", 1.0), ("0", 0.0), ("1", 1.0), (".5", 0.5), ("0.9.", 0.9),
        ("1.5", None), ("-1", None), ("nan", None), ("10", None), ("1e-1", None), ("", None), ("Correctness: 0.5", None),
    ],
)  # fmt: skip
def test_grades(reply, grade):
    assert parse_grade(reply) == grade


@settings(deadline=None)
@given(texts, around)
def test_a_grade_is_never_out_of_range(reply, before):
    grade = parse_grade(reply)
    assert grade is None or 0 <= grade <= 1
    assert parse_grade(before + reply) == grade


def test_total_runs_capabilities_and_combinations():
    rows = [
        MmvetRow("a", ["ocr", "math"], [1.0, 0.5]),
        MmvetRow("b", ["rec"], [0.0, 0.5]),
        MmvetRow("c", ["math", "ocr"], [1.0, 1.0]),
    ]
    score = mmvet_score(rows)
    assert score["runs"] == pytest.approx([200 / 3, 200 / 3])
    assert score["total"] == pytest.approx(200 / 3)
    assert score["std"] == pytest.approx(0, abs=1e-9)
    assert score["capabilities"]["ocr"] == {"n": 2, "graded": 4, "score": pytest.approx(87.5)}
    assert set(score["capabilities"]) == {"rec", "ocr", "math"}
    assert score["combinations"]["math_ocr"]["n"] == 2
    assert mmvet_score([MmvetRow("a", ["rec"], [0.0, 1.0])])["std"] == 50


def test_a_failed_grade_is_left_out_or_zero():
    rows = [
        MmvetRow("a", ["rec"], [1.0]),
        MmvetRow("b", ["rec"], [None]),
        MmvetRow("c", ["ocr"], [None]),
    ]
    score = mmvet_score(rows)
    assert score["total"] == 100
    assert score["capabilities"]["ocr"] == {"n": 1, "graded": 0, "score": None}
    assert (score["failed"], score["failed_ids"]) == (2, ["b", "c"])
    zero = mmvet_score(rows, failed="zero")
    assert zero["total"] == pytest.approx(100 / 3)
    assert zero["failed_ids"] == ["b", "c"]
    assert mmvet_score(rows[1:])["total"] is None


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (MmvetRow("b", ["rec"], [0.5, 0.5]), "row 'b': expected grades of 1 runs, found 2"),
        (MmvetRow("b", ["rec"], []), "row 'b': expected grades of 1 runs, found 0"),
        (MmvetRow("b", ["rec"], [2.0]), "row 'b': expected a grade of 0 to 1, found 2.0"),
        (MmvetRow("b", ["sing"], [1.0]), "row 'b': capabilities: expected some of rec"),
        (MmvetRow("b", [], [1.0]), "row 'b': capabilities: expected some of rec"),
    ],
)
def test_bad_rows_are_named(row, told):
    with pytest.raises(ValueError, match=told):
        mmvet_score([MmvetRow("a", ["rec"], [0.5]), row])


def test_no_rows_are_told():
    with pytest.raises(ValueError, match="at least one row"):
        mmvet_score([])


@needs_golden
@pytest.mark.parametrize(
    ("grades", "name"), [("grade_1run", "one_run"), ("grade_5runs", "five_runs")]
)
def test_golden_grades(grades, name):
    rows = [
        MmvetRow(i, row["capability"], row[grades])
        for i, row in golden("mmvet/grades.json").items()
    ]
    score, known = mmvet_score(rows), golden("mmvet/expected.json")[name]
    assert score["n"] == known["n"]
    assert score["total"] == pytest.approx(known["total"], abs=1e-9)
    assert score["std"] == pytest.approx(known["std_population"], abs=1e-9)
    assert score["runs"] == pytest.approx(known["runs"], abs=1e-9)
    for ours, theirs in (("capabilities", "capability"), ("combinations", "integration")):
        assert score[ours].keys() == known[theirs].keys()
        for key, value in known[theirs].items():
            assert score[ours][key]["n"] == value["n"]
            assert score[ours][key]["score"] == pytest.approx(value["score"], abs=1e-9), key
