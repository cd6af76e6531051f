"""Small files are written completely or not at all."""

import json

import pytest

from maya_vlm.training.common import files


def test_written_and_replaced(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"lang": "हिन्दी"})
    assert path.read_text(encoding="utf-8") == '{\n "lang": "हिन्दी"\n}\n'
    files.write_json(path, {"name": "a\udcff"})
    assert json.loads(path.read_bytes()) == {"name": "a\udcff"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_cannot_be_read_while_a_file_is_written_is_told_as_it_is(tmp_path):
    def write():
        with files.atomic(tmp_path / "out.json") as path:
            path.write_bytes(b"{}")
            raise FileNotFoundError("rows.json: no such file")

    with pytest.raises(FileNotFoundError, match=r"^rows\.json: no such file$"):
        write()
    assert not list(tmp_path.iterdir())
