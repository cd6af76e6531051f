import pytest

from maya_vlm.training.evaluation.scoring.pope import (
    PopeRow,
    pope_from_counts,
    pope_mean,
    pope_score,
)

from .golden import golden, needs_golden


def rows(*pairs):
    return [PopeRow(str(i), answer, label, f"raw {i}") for i, (answer, label) in enumerate(pairs)]


def test_scores_follow_from_the_counts():
    score = pope_score(
        rows(("yes", "yes"), ("yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no"))
    )
    assert (score["tp"], score["fn"], score["fp"], score["tn"]) == (2, 1, 1, 1)
    assert score["accuracy"] == 3 / 5
    assert score["precision"] == score["recall"] == score["f1"] == pytest.approx(2 / 3)
    assert score["yes_ratio"] == 3 / 5


def test_an_unparsable_answer_is_wrong_and_listed_and_no_yes():
    score = pope_score(rows(("yes", "yes"), (None, "yes"), (None, "no"), ("no", "no")))
    assert score["accuracy"] == 1 / 2
    assert score["recall"] == 1 / 2
    assert score["precision"] == 1
    assert score["yes_ratio"] == 1 / 4
    assert score["unparsable_answers"] == [
        {"id": "1", "answer": "raw 1"},
        {"id": "2", "answer": "raw 2"},
    ]


def test_the_yes_ratio_is_of_predictions_and_not_of_labels():
    assert pope_score(rows(("no", "yes"), ("no", "yes"), ("no", "no")))["yes_ratio"] == 0


def test_scores_without_a_yes_are_zero():
    score = pope_score(rows(("no", "no")))
    assert (score["precision"], score["recall"], score["f1"]) == (0, 0, 0)


def test_bad_rows_are_named():
    with pytest.raises(
        ValueError, match=r"question '1'.*expected label and answer yes or no.*'maybe'"
    ):
        pope_score(rows(("yes", "yes"), ("yes", "maybe")))
    with pytest.raises(ValueError, match="question 'x': expected once"):
        pope_score([PopeRow("x", "yes", "yes"), PopeRow("x", "no", "no")])
    with pytest.raises(ValueError, match="at least one answer"):
        pope_score([])
    with pytest.raises(ValueError, match="at least one set"):
        pope_mean({})


@needs_golden
def test_golden_counts():
    sets = golden("pope/counts.json")
    found = {
        name: pope_from_counts(*(sets[name][key] for key in ("TP", "FP", "TN", "FN")))
        for name in ("adversarial", "popular", "random")
    }
    for name, score in found.items():
        for key, value in sets[name]["expected"].items():
            assert score[key] == pytest.approx(value, abs=1e-12), (name, key)
    assert pope_mean(found) == pytest.approx(sets["mean_over_splits"], abs=1e-12)
