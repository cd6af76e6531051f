"""Untrusted names as parts of paths."""

import unicodedata
from pathlib import PureWindowsPath

import pytest

from maya_vlm.training.common.names import (
    check_component,
    file_name,
    folded,
    is_component,
    stays_inside,
)

BAD = ["", ".", "..", "../x", "a/b", "a\\b", "C:", "C:x", "a\0b", "a\x1b[2J", "a\nb", "a\u202eb", "nul",
       "NUL.txt", "com1", "a.", " a", "a ", "x" * 200, "\ud800", "a*b", 'a"b', "..x"]  # fmt: skip
GOOD = ["a", "my captions", "maya-1.5", "café", "船", ".hidden"]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_component_is_refused_or_cleaned(name):
    assert not is_component(name)
    with pytest.raises(ValueError, match="plan: name: expected a name") as caught:
        check_component(name, "plan: name")
    assert str(caught.value).isprintable()
    cleaned = file_name(name, "dataset")
    assert is_component(cleaned)
    assert not cleaned.startswith(".")


@pytest.mark.parametrize("name", GOOD)
def test_ordinary_names_are_components(name):
    check_component(name, "x")
    assert file_name(name, "dataset") == name.lstrip(".")


def test_names_are_cleaned_to_what_can_be_read():
    assert file_name("../../escaped", "dataset") == "escaped"
    assert file_name("a/b: c", "dataset") == "a-b- c"
    assert file_name("/", "dataset") == "dataset"


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.png", True), ("0/a.png", True), ("a b/ç.png", True), ("a..png", True), ("./a", True),
        ("../a", False), ("a/../../b", False), ("/a", False), ("", False), (".", False),
        ("C:/a", False), ("C:a", False), ("a\\..\\..\\b", False), ("\\\\host\\a", False),
        ("a\0", False), ("a\x1b", False), ("a/\u202e", False), ("\ud800", False),
    ],
)  # fmt: skip
def test_relative_paths_stay_inside(name, inside):
    assert stays_inside(name) is inside
    if inside:
        assert not PureWindowsPath(name).is_absolute()


def test_names_that_a_file_system_takes_for_one():
    assert folded("Café.PNG") == folded(unicodedata.normalize("NFD", "café.png"))
    assert folded("a.png") != folded("b.png")
