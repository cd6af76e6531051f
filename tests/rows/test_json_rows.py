"""Rows of JSON files, as arrays or line by line: the same rows and faults in every file format."""

import gzip
import json
import os
import resource
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maya_vlm.training.rows import json_rows
from maya_vlm.training.rows.json_rows import Unreadable, read_json_rows, rows_suffix

ROWS = [{"id": str(n), "text": "bateau \u2028 \u0085 été 🛥" * n, "n": n} for n in range(40)]
FORMS = (
    "array",
    "pretty",
    "lines",
    "lines in .json",
    "array.gz",
    "lines.gz",
    "bom",
    "bom lines",
    "crlf",
)


def write(folder, rows, form):
    """Write rows, given as JSON texts, to a file of some format."""
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    lines = "\n" + "\n\n  \n".join(texts) + "\n\n" if len(texts) > 1 else texts[0]
    name, content = {
        "array": ("a.json", f"[{', '.join(texts)}]"),
        "pretty": ("p.json", "\n[\n" + ",\n\n".join(texts) + "\n]\n\n"),
        "lines": ("l.jsonl", lines),
        "lines in .json": ("l.json", lines),
        "array.gz": ("a.json.gz", f"[{', '.join(texts)}]"),
        "lines.gz": ("l.jsonl.gz", lines),
        "bom": ("b.json", "\ufeff" + f"[{', '.join(texts)}]"),
        "bom lines": ("b.jsonl", "\ufeff" + lines),
        "crlf": ("c.jsonl", lines.replace("\n", "\r\n")),
    }[form]
    path = folder / name
    data = content.encode("utf-8")
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_every_form_gives_the_rows(tmp_path, monkeypatch, form, chunk):
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    found = list(read_json_rows(write(tmp_path, ROWS, form)))
    assert [row for _, row in found] == ROWS
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    if "lines" not in form and form != "crlf":
        assert numbers == list(range(40))


BAD = {
    '{"a": 1, "a": 2}': "the key 'a' appears twice in one mapping",
    '{"a": {"b": NaN}}': "expected a number, found NaN",
    '{"a": -Infinity}': "expected a number, found -Infinity",
    '{"a": 1e999}': "expected a number, found 1e999",
    '{"a": ' + "7" * 5000 + "}": "expected a number, found 5,000 digits",
    '["no"]': "expected a mapping of fields, found a list of 1",
    "3": "expected a mapping of fields, found a number 3",
    "null": "expected a mapping of fields, found nothing",
    '"x"': "expected a mapping of fields, found text 'x'",
    '{"a": ' + "[" * 70 + "]" * 70 + "}": "nested deeper than 64 levels",
    '{"a": ' + "[" * 90_000 + "]" * 90_000 + "}": "nested deeper than 64 levels",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_bad_row_is_one_row(tmp_path, form):
    rows = [text for bad in BAD for text in ('{"good": true}', bad)] + ['{"good": true}']
    found = [row for _, row in read_json_rows(write(tmp_path, rows, form))]
    assert len(found) == len(rows)
    assert found[::2] == [{"good": True}] * (len(BAD) + 1)
    for row, reason in zip(found[1::2], BAD.values(), strict=True):
        assert isinstance(row, Unreadable)
        assert row.reason.endswith(reason)
        assert row.reason.startswith("line ") == ("lines" in form or form == "crlf")


def test_broken_lines_and_latin_1_are_rows_of_their_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{broken\n{"a": "\xe9t\xe9"}\n{"a": 1} {"a": 2}\n{"a": 2}')
    found = [row for _, row in read_json_rows(path)]
    assert [type(row) for row in found] == [dict, *[Unreadable] * 3, dict]
    assert found[1].reason.startswith("line 2 is not JSON: Expecting property name")
    assert (
        found[2].reason
        == "line 3: expected UTF-8 text, found the byte 0xe9: save the file as UTF-8"
    )
    assert found[3].reason.startswith("line 4 is not JSON: Extra data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "expected a JSON array of rows, found b'' at its start"),
        ("a.json", b'{"id": 1}', "expected a JSON array of rows, found b'{' at its start"),
        ("a.json", b'{"data": [{"id": 1}]}\n', "expected a JSON array of rows, found b'{'"),
        ("a.json", b'{\n"id": 1,\n"b": {}}\n', "expected a JSON array of rows, found b'{'"),
        ("a.json", b"null", "expected a JSON array of rows, found b'n'"),
        ("a.json", b'[{"id": 1}, {"id": ', "broken JSON after row 0: Expecting value"),
        ("a.json", b'[{"id": 1}, {"id": "x', "broken JSON after row 0: Unterminated string"),
        ("a.json", b'[{"id": 1}, nonsense]', "broken JSON after row 0: Expecting value"),
        ("a.json", b'[{"id": 1}\n{"id": 2}]', r"after row 0: expected ',' or '\]', found '\{' \(line 2, column 1\)"),
        ("a.json", b'[{"id": 1}', "after row 0: expected ',' or '\\]', found ''"),
        ("a.json", b'[{"id": 1}] x', "after row 0: expected the end of the file, found 'x'"),
        ("a.json", b'[] x', "at its start: expected the end of the file, found 'x'"),
        ("a.json", b'[{"id": "a\x01b"}]', "at its start: Invalid control character"),
        ("a.json", b'[\n{"id": "\xe9"}]', "a.json: line 2: expected UTF-8 text, found the byte 0xe9"),
        ("a.json", b"[" * 200_000, "row 0: nested deeper than 64 levels"),
        ("a.json.gz", gzip.compress(b'[{"id": 1}]' * 99, mtime=0)[:20], "expected a complete gzip file .*: download it again"),
        ("a.jsonl.gz", b"no gzip", "expected a complete gzip file .*: download it again"),
    ],
)  # fmt: skip
def test_broken_files_are_named_with_the_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_json_rows(path))
    assert str(error.value).startswith(str(path))
    assert str(error.value).isprintable()


def test_an_empty_array_or_file_of_lines_has_no_rows(tmp_path):
    for name, content in (("a.json", " [ ] "), ("a.jsonl", ""), ("a.jsonl", "\n\n")):
        (tmp_path / name).write_text(content)
        assert list(read_json_rows(tmp_path / name)) == []


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="expected an ordinary file, found a pipe"):
        list(read_json_rows(tmp_path / "a.jsonl"))


def test_a_row_without_end_takes_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW", 3 << 20)
    for name, start, message in (
        ("a.json", '[{"a": "', "row 0: expected at most 3,145,728 characters"),
        ("a.jsonl", '{"a": "', "line 1: expected at most 3,145,728 bytes, found more"),
    ):
        with (tmp_path / name).open("w") as file:
            file.write(start + "x" * (20 << 20) + "\n")
        if name == "a.json":
            with pytest.raises(ValueError, match=message):
                list(read_json_rows(tmp_path / name))
        else:
            assert list(read_json_rows(tmp_path / name)) == [(0, Unreadable(message))]


def test_brackets_without_end_take_no_memory(tmp_path):
    """200 kB of brackets must not take gigabytes of memory."""
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text("[" * 200_000)
    code = (
        "import sys; from maya_vlm.training.rows.json_rows import read_json_rows\n"
        "for path in sys.argv[1:]:\n"
        "    try: print([row for _, row in read_json_rows(path)])\n"
        "    except ValueError as error: print(error)"
    )
    limit = 2**30
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stdout.count("nested deeper than 64 levels") == 2, done.stderr[-500:]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=3), JSON, max_size=4), min_size=1, max_size=5), chunk=st.integers(1, 60))  # fmt: skip
def test_any_rows_cut_anywhere(tmp_path_factory, rows, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK", chunk)
        for form in ("array", "lines"):
            path = write(tmp_path_factory.mktemp("rows"), rows, form)
            assert [row for _, row in read_json_rows(path)] == rows


def test_suffixes():
    known = {
        "a.json": ".json",
        "a.JSONL": ".jsonl",
        "x/a.b.parquet": ".parquet",
        "a.json.gz": ".json",
    }
    for name, suffix in {**known, "a.parquet.gz": "", "a.gz": "", "a.csv": "", "json": ""}.items():
        assert rows_suffix(name) == suffix


def test_a_line_without_end_is_refused_before_others_read_it(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW", 20)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": 1}\n' + b" " * 30))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.gz: line 2: expected at most 20 bytes"):
        json_rows.check_lines(path)
    path.write_bytes(gzip.compress(b'{"id": 1}\n' * 9))
    json_rows.check_lines(path)
