"""A task's own dataset comes from its repository, at the commit that the task pins."""

import json
import os
import subprocess
import sys
from pathlib import Path

from maya_vlm.training.evaluation.tasks.pope import REPOSITORY, REVISION, SETS
from tests.helpers.hub_server import HubServer, Repository

from .public_rows import write_dataset
from .test_pope import FEATURES, rows

ROOT = Path(__file__).resolve().parents[3]
SESSION = """
import json
from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.pope import Pope
def told(data=None):
    try:
        loaded = Pope().load(Selection(data=data, split="random"))
    except (ValueError, FileNotFoundError) as error:
        return f"{type(error).__name__}: {error}"
    picture = loaded.pictures.load(loaded.requests[0].pictures[0])
    return [loaded.data["name"], loaded.data["revision"], loaded.requests[0].expected, picture.size]
print(json.dumps([told(), told("lmms-lab/POPE@main"), told("lmms-lab/POPE@v9"), told("no/where")]))
"""


def test_the_pinned_commit_is_read_and_told(tmp_path):
    def files(name: str, label: str) -> dict[str, bytes]:
        own = [row | {"answer": label} for row in rows("random")]
        folder = write_dataset(tmp_path / name, FEATURES, {("Full", each): own for each in SETS})
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    with HubServer() as hub:
        repository = Repository("dataset", REPOSITORY)
        newest = repository.commit("main", files("new", "no"), "newer")
        repository.commits[REVISION] = files("old", "yes")
        hub.repositories["dataset", REPOSITORY] = repository
        done = subprocess.run(
            [sys.executable, "-c", SESSION],
            cwd=tmp_path,
            env={**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    pinned, main, wrong, nowhere = json.loads(done.stdout.splitlines()[-1])
    assert pinned == [REPOSITORY, REVISION, "yes", [24, 16]]
    assert main == [REPOSITORY, newest, "no", [24, 16]]
    for error in (wrong, nowhere):
        assert error.startswith("FileNotFoundError: no dataset at")
        assert "\n" not in error
