"""MMBench, ScienceQA and MMMU's open answers."""

import csv
import random

import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.mmbench import ROTATION, MmbenchRow, mmbench_score
from maya_vlm.training.evaluation.scoring.mmmu import open_is_right, open_score, parse_open
from maya_vlm.training.evaluation.scoring.scienceqa import ScienceQaRow, scienceqa_score

from .answers import texts
from .golden import GOLDEN, golden, needs_golden


def rotations(base, options, *predictions):
    """Return the rows of a question whose answer is A in every rotation."""
    return [
        MmbenchRow(base + turn * ROTATION, options, prediction, "A", f"raw {prediction}")
        for turn, prediction in enumerate(predictions)
    ]


def test_circular_needs_all_rotations_and_vanilla_the_first():
    rows = rotations(1, 2, "A", "A") + rotations(2, 2, "A", "B") + rotations(3, 2, "B", "A")
    score = mmbench_score(rows)
    assert score["per_row"] == pytest.approx(100 * 4 / 6)
    assert score["circular"] == pytest.approx(100 / 3)
    assert score["vanilla"] == pytest.approx(200 / 3)


def test_order_of_rows_and_type_of_index_change_nothing():
    rows = rotations(1, 3, "A", "A", "B") + rotations(2, 2, "A", "A")
    expected = mmbench_score(rows)
    rows = [MmbenchRow(str(r.index), r.options, r.prediction, r.answer, r.raw) for r in rows]
    random.Random(0).shuffle(rows)
    assert mmbench_score(rows) == expected


def test_missing_rotations_base_rows_and_unparsable_answers_are_named():
    score = mmbench_score(rotations(7, 4, "A", "A", None) + rotations(9, 2, "A", "A")[1:])
    assert score["missing_rotations"] == [7, 9]
    assert score["missing_base_rows"] == [9]
    assert score["vanilla_rows"] == 1
    assert score["unparsable_answers"] == [{"id": str(7 + 2 * ROTATION), "answer": "raw None"}]
    assert mmbench_score(rotations(9, 2, "A", "A")[1:])["vanilla"] is None


@pytest.mark.parametrize("index", [True, -1, "1.0", "x", "", "１"])
def test_an_index_that_is_no_number_is_told(index):
    with pytest.raises(ValueError, match="index: expected a number of 0 or more"):
        mmbench_score([MmbenchRow(index, 2, "A", "A")])


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="index 5: expected once"):
        mmbench_score([MmbenchRow(5, 2, "A", "A"), MmbenchRow("5", 2, "B", "A")])
    with pytest.raises(ValueError, match="index 5: expected at least one option"):
        mmbench_score([MmbenchRow(5, 0, "A", "A")])
    with pytest.raises(ValueError, match="at least one row"):
        mmbench_score([])


@needs_golden
def test_golden_predictions_of_mmbench():
    known = golden("mmbench/expected.json")
    with (GOLDEN / "mmbench" / "predictions.csv").open(encoding="utf-8") as file:
        rows = [
            MmbenchRow(
                row["index"],
                int(row["n_options"]),
                row["prediction"] if row["prediction"] in tuple("ABCD") else None,
                row["answer"],
                row["prediction"],
            )
            for row in csv.DictReader(file)
        ]
    score = mmbench_score(rows)
    for ours, theirs in (
        ("rows", "rows"),
        ("rows_right", "rows_correct"),
        ("per_row", "per_row_accuracy"),
        ("groups", "groups"),
        ("groups_right", "groups_all_correct"),
        ("circular", "circular_accuracy"),
        ("vanilla_right", "vanilla_correct"),
        ("vanilla", "vanilla_accuracy"),
        ("weighted_precision", "weighted_precision"),
        ("weighted_recall", "weighted_recall"),
        ("weighted_f1", "weighted_f1"),
    ):
        assert score[ours] == pytest.approx(known[theirs], abs=1e-9), ours
    assert len(score["missing_rotations"]) == known["groups_with_fewer_rotations_than_options"]
    assert [(int(a["id"]), a["answer"]) for a in score["unparsable_answers"]] == [
        (row["index"], row["prediction"]) for row in known["unparsable"]
    ]


def test_scienceqa_has_the_image_accuracy_apart():
    rows = [
        ScienceQaRow("1", "A", "A", True),
        ScienceQaRow("2", None, "A", True, "Wood"),
        ScienceQaRow("3", "A", "A", False),
    ]
    score = scienceqa_score(rows, "choice@2")
    assert score["all"]["accuracy"] == pytest.approx(2 / 3)
    assert score["image"]["accuracy"] == 1 / 2
    assert score["all"]["unparsable_answers"] == [{"id": "2", "answer": "Wood"}]
    assert score["all"]["parser"] == "choice@2"
    assert scienceqa_score(rows[2:], "choice@2")["image"] is None
    with pytest.raises(ValueError, match="at least one answer"):
        scienceqa_score([], "choice@2")


@pytest.mark.parametrize(
    ("answer", "gold", "parsed", "right"),
    [
        ("7", "7", [7.0], True),
        ("The result is 7 km", "7", ["7 km", 7.0], True),
        ("x = 3\ny = 4", "3", ["4", 4.0], False),
        (".25", "0.25", [25.0], False),
        ("So it is 2,500.", "2500", [2500.0, 500.0], True),
        ("It is green", ["blue", "green"], ["green"], True),
        ("evergreen", "green", ["evergreen"], True),
        ("c", "c", [" c", "c "], True),
    ],
)
def test_open_answers_of_mmmu(answer, gold, parsed, right):
    found = parse_open(answer)
    assert open_is_right(found, gold) is right
    if answer != "x = 3\ny = 4":
        assert found == parsed


def test_open_score():
    score = open_score([("7", ["7"]), ("8", ["7"])])
    assert (score["n"], score["accuracy"], score["right"]) == (2, 0.5, [True, False])
    with pytest.raises(ValueError, match="at least one answer"):
        open_score([])


@settings(deadline=None)
@given(texts)
def test_open_answers_never_fail(answer):
    assert open_is_right(parse_open(answer), "a text that is nowhere") is False


@needs_golden
def test_golden_open_answers():
    for case in golden("multiple_choice/cases.json")["mmmu_open"]:
        parsed = parse_open(case["response"])
        assert sorted(map(str, parsed)) == sorted(case["parsed"]), case["response"]
        assert open_is_right(parsed, case["gold"]) is case["correct"], case["response"]
