"""Untrusted values checked against a shape."""

import pytest

from maya_vlm.training.common.shapes import check_shape, has_shape

SHAPE = {
    "name": str,
    "note": (str, None),
    "files": {...: {"rows": int, "share": float}},
    "ids": [int],
}
GOOD = {
    "name": "a",
    "note": None,
    "files": {"x": {"rows": 1, "share": 1}},
    "ids": [],
    "more": object,
}


def test_a_value_of_the_shape_may_have_more_keys():
    check_shape(GOOD, SHAPE, "x")
    assert has_shape({}, {...: int})
    assert not has_shape([], {...: int})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 1}, "m.json: name: expected text, found 1"),
        ({"note": []}, r"m.json: note: expected text or null, found \[\]"),
        ({"files": None}, "m.json: files: expected a mapping, found None"),
        ({"files": {"a\nb\x1b": 3}}, r"m.json: files.a b\\x1b: expected a mapping, found 3"),
        ({"files": {"x": {"rows": True, "share": 0}}}, "files.x.rows: expected a whole number, found True"),
        ({"files": {"x": {"rows": 1}}}, "files.x.share: missing"),
        ({"ids": [1, "2"]}, r"ids\[1\]: expected a whole number, found '2'"),
        ({"ids": {}}, "ids: expected a list, found {}"),
    ],
)  # fmt: skip
def test_another_shape_is_told_with_its_key(change, told):
    with pytest.raises(ValueError, match=told):
        check_shape(GOOD | change, SHAPE, "m.json")


def test_the_whole_may_be_of_another_shape():
    with pytest.raises(ValueError, match=r"m\.json: the file: expected a mapping, found 'xx"):
        check_shape("x" * 1000, SHAPE, "m.json")
    with pytest.raises(ValueError, match=r"m\.json: name: missing"):
        check_shape({}, SHAPE, "m.json")
