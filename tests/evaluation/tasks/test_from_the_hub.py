"""A task's default dataset is read from its repository, at the pinned commit or else the newest."""

import json
import os
import subprocess
import sys
from pathlib import Path

from maya_vlm.training.evaluation.tasks.mtvqa import REPOSITORY as MTVQA
from maya_vlm.training.evaluation.tasks.pope import REPOSITORY, REVISION, SETS
from tests.helpers.hub_server import HubServer, Repository

from .public_rows import write_dataset
from .test_mtvqa import write as write_mtvqa
from .test_pope import FEATURES, rows

ROOT = Path(__file__).resolve().parents[3]
SESSION = """
import json
from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.pope import Pope
from maya_vlm.training.evaluation.tasks.mtvqa import MtVqa
def told(data=None, task=Pope, split="random"):
    try:
        loaded = task().load(Selection(data=data, split=split))
    except (ValueError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    picture = loaded.pictures.load(loaded.requests[0].pictures[0])
    return [loaded.data["name"], loaded.data["revision"], loaded.requests[0].expected, picture.size]
print(json.dumps([told(), told("lmms-lab/POPE@main"), told("lmms-lab/POPE@v9"), told("no/where"),
    told(task=MtVqa, split=None)]))
"""


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_pinned_commit_is_read_and_told(tmp_path):
    def files(name: str, label: str) -> dict[str, bytes]:
        own = [row | {"answer": label} for row in rows("random")]
        folder = write_dataset(tmp_path / name, FEATURES, {("Full", each): own for each in SETS})
        return contents(folder)

    with HubServer() as hub:
        repository = Repository("dataset", REPOSITORY)
        newest = repository.commit("main", files("new", "no"), "newer")
        repository.commits[REVISION] = files("old", "yes")
        hub.repositories["dataset", REPOSITORY] = repository
        # If a task pins no commit, the results name the commit that was read.
        write_mtvqa(tmp_path / "mtvqa")
        unpinned = Repository("dataset", MTVQA)
        read = unpinned.commit("main", contents(tmp_path / "mtvqa"), "only")
        hub.repositories["dataset", MTVQA] = unpinned
        done = subprocess.run(
            [sys.executable, "-c", SESSION],
            cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    pinned, main, wrong, nowhere, newest_read = json.loads(done.stdout.splitlines()[-1])
    assert pinned == [REPOSITORY, REVISION, "yes", [24, 16]]
    assert main == [REPOSITORY, newest, "no", [24, 16]]
    assert newest_read[:2] == [MTVQA, read]
    for error in (wrong, nowhere):
        assert error.startswith("FileNotFoundError: no dataset at")
        assert "\n" not in error
