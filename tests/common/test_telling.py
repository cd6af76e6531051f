"""Untrusted text in messages."""

import pytest

from maya_vlm.training.common.telling import LONGEST, one_line, printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("चित्र, قارب, 船 👩‍🚀", "चित्र, قارب, 船 👩‍🚀"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\u202eb\u2028c", "a\\u202eb\\u2028c"),
        ("a\ud83d", "a\\ud83d"),
        ("a\x00\x9b", "a\\x00\\x9b"),
    ],
)
def test_control_characters_become_escapes(text, expected):
    assert printable(text) == expected


def test_one_line_is_short_and_keeps_beginning_and_end():
    text = "file.json: " + "x" * 5000 + ": do this"
    line = one_line(text)
    assert len(line) == LONGEST
    assert line.startswith("file.json: x")
    assert line.endswith(": do this")
    assert one_line(" a\n b\t c ") == "a b c"


def test_of_megabytes_only_both_ends_are_looked_at():
    assert len(one_line("\x1b" * 5_000_000 + "end")) == LONGEST
    assert one_line("start" + " a" * 5_000_000 + " end").endswith("a a end")
