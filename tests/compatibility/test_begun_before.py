"""A run and a build of an earlier version of the package continue with the present version.

begin.py wrote the archive before the modules were moved into rooms: keys depend on contents, not on module
paths.
"""

import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from maya_vlm.training.cli import main
from maya_vlm.training.run.train import train
from tests.run.tiny_run import logged

ARCHIVE = Path(__file__).with_name("begun_before_the_rooms.tar.xz")


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """Return a function that unpacks one of the two and makes it the working directory."""

    def unpack(name: str) -> Path:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(tmp_path, filter="data")
        monkeypatch.chdir(tmp_path / name)
        return tmp_path / name

    return unpack


def test_a_run_continues_from_its_checkpoint_to_the_same_losses(begun, capsys):
    folder = begun("run")
    train("recipe.yaml")
    assert "continuing from run/.work/finetune/checkpoint-2" in capsys.readouterr().out
    expected = json.loads((folder / "log.json").read_text())
    found = logged(folder / "run" / "finetune")
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [1, 2, 3, 4]
    for line, whole in zip(found, expected, strict=True):
        assert {key: line[key] for key in whole} == pytest.approx(whole, rel=1e-4)


def test_a_build_continues_and_asks_nobody_again(begun):
    folder = begun("build")
    # The server no longer runs.
    assert main(["data", "build", "plan.yaml"]) == 0
    (file,) = (folder / "build" / "dataset").glob("data/fr/*.parquet")
    assert pq.read_table(file).num_rows == 3
