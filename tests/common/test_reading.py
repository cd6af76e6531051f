"""Untrusted files: bad ones are refused in one line, without hanging or filling the memory."""

import json
import os
import resource
import subprocess
import sys
import threading

import pytest
import yaml

from maya_vlm.training.common.reading import (
    MAX_DEPTH,
    NotJSON,
    decode,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_json_mapping,
    read_text,
    read_yaml,
)


def test_ordinary_files(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, null, "\xd8\xb3"]}')
    assert read_json(file) == {"a": [1, 2.5, None, "س"]}
    assert read_json_mapping(file) == read_json(file)
    file.write_text("a: [1, x]\nb: &b {c: 2}\nd: *b\n")
    assert read_yaml(file) == {"a": [1, "x"], "b": {"c": 2}, "d": {"c": 2}}
    assert parse_yaml("", "x") is None


def test_other_kinds_of_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe", "a pipe"),
        ("/dev/zero", "a device"),
        (tmp_path, "a folder"),
    ):
        found = []

        def read(path=path, found=found):
            try:
                read_bytes(path)
            except (ValueError, OSError) as error:
                found.append(str(error))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(10)
        assert found, f"{path} hangs"
        assert kind in found[0] or "directory" in found[0]


def test_a_sparse_file_is_not_read(tmp_path):
    file = tmp_path / "sparse"
    with file.open("wb") as opened:
        opened.truncate(2**34)
    with pytest.raises(
        ValueError, match="expected at most 268,435,456 bytes, found 17,179,869,184"
    ):
        read_bytes(file)


def test_missing_files_and_names_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")
    with pytest.raises(ValueError, match="not a file name"):
        read_text("a\0b")


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path):
    file = tmp_path / "latin.txt"
    file.write_bytes("erste\nzweite\nGrüße\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"latin\.txt: line 3: expected UTF-8 text, found the byte 0xfc"
    ):
        read_text(file)
    assert decode("ü".encode(), "x") == "ü"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"x: not JSON: .* \(line 1, column 2\)"),
        ('{"a": 1, "a": 2}', "x: the key 'a' appears twice in one mapping"),
        ("[NaN]", "x: expected a number, found NaN"),
        ("[-Infinity]", "x: expected a number, found -Infinity"),
        ("[" * 100_000, "x: nested deeper than 64 levels"),
        ("[" * 70 + "]" * 70, "x: nested deeper than 64 levels"),
        ('{"a":' * 100_000, "x: nested deeper than 64 levels"),
        (r'["\ud83d"]', r"x: .*half of a surrogate pair \(U\+D83D\)"),
        (r'{"\udc00": 1}', r"half of a surrogate pair"),
        ("1" * 5000, "x: "),
        (b"\xff", "x: line 1: expected UTF-8"),
    ],
)
def test_json_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(text, "x")
    assert "\n" not in str(caught.value)


def test_json_within_the_bounds():
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep, "x") == json.loads(deep)
    assert parse_json(r'"\ud83d\ude00"', "x") == "😀"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "x: not YAML"),
        ("a: &a [*a]", "x: line 1: an alias contains itself"),
        ("a: 1\nb: 2\na: 3", "x: line 3: the key 'a' appears twice"),
        ("? [a]\n: 1", "x: line 1: expected a scalar key, found a list or mapping"),
        ("[" * 70 + "]" * 70, "x: nested deeper than 64 levels"),
        ("[" * 100_000, "x: nested deeper than 64 levels"),
        ("{a: " * 5000, "x: nested deeper than 64 levels"),
        ('"\\ud800"', "half of a surrogate pair"),
        ("!!python/object:os.system {}", "x: not YAML"),
        ("a: \x1b[2J", "x: not YAML"),
    ],
)
def test_yaml_that_is_refused(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text, "x")
    assert "\n" not in str(caught.value)


def test_aliases_do_not_multiply():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    with pytest.raises(ValueError, match="expected at most 200,000 values after its aliases"):
        parse_yaml("\n".join(lines), "x")


def test_merged_keys_are_yamls_own():
    text = "base: &base {a: 1, b: 2}\nmine:\n  <<: *base\n  b: 3\n"
    assert parse_yaml(text, "x") == yaml.safe_load(text)


def test_deep_json_takes_no_memory(tmp_path):
    """200 kB of brackets must not take gigabytes of memory."""
    file = tmp_path / "deep.json"
    file.write_text("[" * 200_000)
    code = (
        "import sys; from maya_vlm.training.common.reading import read_json\n"
        "try: read_json(sys.argv[1])\n"
        "except ValueError as error: print(error)"
    )
    limit = 2**30
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert "nested deeper than 64 levels" in done.stdout, done.stderr[-500:]


def test_what_is_cut_off_is_told_from_what_is_refused():
    with pytest.raises(NotJSON):
        parse_json('{"a": ', "x")
    with pytest.raises(ValueError) as caught:
        parse_json(r'"\ud83d"', "x")
    assert not isinstance(caught.value, NotJSON)


@pytest.mark.parametrize(
    "text", ["a: 2001-13-45", "a: !!timestamp x", "a: !!bool x", "a: !!int x", "a: !!float x"]
)
def test_values_that_the_constructors_cannot_make_are_one_line(text):
    with pytest.raises(ValueError, match=r"^file\.yaml: not YAML: ") as error:
        parse_yaml(text, "file.yaml")
    assert "\n" not in str(error.value)
