"""Paths as users write them."""

from pathlib import Path

import pytest

from maya_vlm.training.common.paths import expand


def test_home_and_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/of/someone")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("WHO", "me")
    assert expand("~") == "/home/of/someone"
    assert expand("~/runs/x") == "/home/of/someone/runs/x"
    assert expand("$HOME/runs") == "/home/of/someone/runs"
    assert expand("${SCRATCH}/$WHO/data") == "/scratch/me/data"
    for same in ("runs/x", "user/name", "./a~b", "price$5.json", "https://host/~me", "a$"):
        assert expand(same) == same


def test_what_is_called_so_is_meant(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("$RECYCLE").mkdir()
    assert expand("$RECYCLE") == "$RECYCLE"


@pytest.mark.parametrize("path", ["$NOT_SET_HERE/x", "/a/${NOT_SET_HERE}", "~no-such-user/x"])
def test_what_stands_for_nothing_is_refused(path, monkeypatch):
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    with pytest.raises(
        ValueError, match=r"expected (the environment variable NOT_SET_HERE|a user)"
    ):
        expand(path)


def test_an_empty_variable_is_refused(monkeypatch):
    """`$EMPTY/runs` would mean /runs."""
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match="EMPTY"):
        expand("$EMPTY/runs")
