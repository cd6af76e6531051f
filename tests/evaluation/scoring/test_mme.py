import random

import pytest

from maya_vlm.training.evaluation.scoring.mme import (
    COGNITION,
    PERCEPTION,
    MmeRow,
    category_from_counts,
    mme_from_categories,
    mme_score,
)

from .golden import golden, needs_golden


def pair(image, first, second, category="count"):
    """Return answers to the two questions on an image, whose labels are yes and no."""
    return [
        MmeRow(f"{category}/{image}/1", image, category, first, "yes", f"raw {first}"),
        MmeRow(f"{category}/{image}/2", image, category, second, "no", f"raw {second}"),
    ]


def test_a_category_adds_accuracy_and_images_with_both_right():
    rows = pair("a", "yes", "no") + pair("b", "yes", "yes") + pair("c", None, "no")
    category = mme_score(rows)["categories"]["count"]
    assert category["acc"] == pytest.approx(4 / 6)
    assert category["acc_plus"] == pytest.approx(1 / 3)
    assert category["score"] == pytest.approx(100)
    # The tool leaves unparsable answers out of precision and recall.
    assert (category["other"], category["recall"], category["precision"]) == (
        1,
        1,
        pytest.approx(2 / 3),
    )


def test_images_are_paired_by_name_and_not_by_order():
    rows = pair("a", "yes", "no") + pair("b", "yes", "yes") + pair("a", "no", "no", "color")
    expected = mme_score(rows)
    random.Random(0).shuffle(rows)
    assert mme_score(rows) == expected


def test_unparsable_answers_and_incomplete_images_are_listed():
    score = mme_score([*pair("a", None, "no"), *pair("b", "yes", "no")[:1]])
    assert score["unparsable_answers"] == [{"id": "count/a/1", "answer": "raw None"}]
    assert score["incomplete_images"] == ["count/b"]
    assert score["categories"]["count"]["acc_plus"] == 0


def test_a_sum_without_all_of_its_categories_is_none():
    rows = [row for name in COGNITION for row in pair("a", "yes", "no", name)]
    score = mme_score(rows + pair("a", "yes", "no", "OCR"))
    assert score["cognition"] == 800
    assert score["perception"] is None
    assert score["missing_categories"] == [name for name in PERCEPTION if name != "OCR"]


def test_bad_rows_are_named():
    with pytest.raises(
        ValueError, match=r"row 'x': category: expected one of existence.*found 'colour'"
    ):
        mme_score([MmeRow("x", "a", "colour", "yes", "yes")])
    with pytest.raises(ValueError, match="row 'x': label: expected yes or no, found 'Yes'"):
        mme_score([MmeRow("x", "a", "color", "yes", "Yes")])
    with pytest.raises(ValueError, match="row 'x': expected once"):
        mme_score([MmeRow("x", "a", "color", "yes", "yes")] * 2)
    with pytest.raises(ValueError, match="at least one category"):
        mme_score([])


@needs_golden
def test_golden_counts():
    known = golden("mme/counts.json")
    categories = {}
    for name, own in (known["perception"] | known["cognition"]).items():
        counts = (own[key] for key in ("TP", "FN", "TN", "FP", "other"))
        categories[name] = category_from_counts(*counts, acc_plus=own["acc_plus"])
        for key, value in own["expected"].items():
            assert categories[name][key] == pytest.approx(value, abs=1e-9), (name, key)
    score, totals = mme_from_categories(categories), known["expected_totals"]
    assert score["perception"] == pytest.approx(totals["perception"], abs=1e-9)
    assert score["cognition"] == pytest.approx(totals["cognition"], abs=1e-9)
    assert score["accuracy"] == pytest.approx(totals["overall_accuracy"], abs=1e-12)
    assert score["n"] == totals["questions"]
