"""The basis of all parsers: text normalisation, versions, optional packages."""

import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.packages import need
from maya_vlm.training.evaluation.scoring.parsed import Parser, chosen, no_duplicates, tally
from maya_vlm.training.evaluation.scoring.plain import (
    at_boundary,
    clauses,
    lowered,
    plain,
    visible,
    without_thought,
    words,
)

from .answers import texts


def found_words(text):
    return [text[begin:end] for begin, end in words(text)]


def test_words_end_where_the_kind_of_script_changes():
    assert found_words("答案是B选项") == ["答案是", "B", "选项"]
    assert found_words("उत्तर: B है") == ["उत्तर", "B", "है"]
    assert found_words("don't l'eau t-shirt 3.5 1,000 A.B -x 'y'") == [
        "don't", "l'eau", "t-shirt", "3.5", "1,000", "A", "B", "x", "y",
    ]  # fmt: skip


def test_clauses_keep_compounds_and_contractions():
    assert clauses("No, non-stop. It's 3.5; yes") == ["No", "non-stop", "It's 3.5", "yes"]


def test_boundaries():
    assert not at_boundary("hotdog", 3)
    assert at_boundary("hot dog", 3)
    assert at_boundary("一只狗", 1)
    assert not at_boundary("2.5", 1)


def test_plain_texts_have_one_form():
    assert plain("**Ａ**\u200d\u0007 B") == "a b"
    assert plain("أَنا") == plain("انا")
    assert plain("٣") == "3"
    assert lowered("İß") == "İß"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>x</think>B", "B"),
        ("<think>x</think> y <thinking>z</thinking>B", " y B"),
        ("x</think>B", "B"),
        ("B<think>x", "B"),
    ],
)
def test_thoughts_are_left_out(text, rest):
    assert without_thought(text) == rest


@settings(deadline=None)
@given(texts)
def test_texts_keep_their_length_in_small_letters_and_their_words(text):
    assert len(lowered(text)) == len(text)
    assert plain(plain(text)) == plain(text)
    spans = words(visible(text))
    assert all(begin < end for begin, end in spans)
    assert spans == sorted(spans)


def test_a_tally_counts_and_lists_unparsable_answers():
    rows = [("1", "A!", "A", "A"), ("2", "hm", None, "B"), ("3", "B", "B", "A")]
    score = tally(rows, metric="m@1", parser="p@1")
    assert score["accuracy"] == pytest.approx(1 / 3)
    assert score["unparsable_share"] == pytest.approx(1 / 3)
    assert score["unparsable_answers"] == [{"id": "2", "answer": "hm"}]
    with pytest.raises(ValueError, match="m@1: expected at least one answer"):
        tally([], metric="m@1", parser="p@1")


def test_an_unknown_parser_is_told_with_the_known_ones():
    parsers = {"a": Parser("a", 3, "here", str.strip)}
    assert chosen(parsers, "a").id == "a@3"
    assert chosen(parsers, "a")(" x ") == "x"
    with pytest.raises(ValueError, match="parser: expected one of a, found 'b'"):
        chosen(parsers, "b")


def test_a_package_that_is_not_installed_is_told_in_one_line_with_its_extra():
    with pytest.raises(
        ModuleNotFoundError,
        match=r"tokens: the package no-such is not installed: pip install 'maya-vlm\[eval\]'",
    ) as caught:
        need("no_such_module", "no-such", "tokens")
    assert caught.value.name == "no_such_module"
    assert "\n" not in str(caught.value)


def test_a_value_of_somebodys_data_is_short_and_printable_in_an_error():
    with pytest.raises(ValueError, match="expected once") as caught:
        no_duplicates("m@1", "row", ["\x1b[2J" + "x" * 1000] * 2)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()
