"""The demo page as a Space on a local Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maya_vlm.model_card.space.send import publish_space
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_maya import save_tiny_maya

ROOT = Path(__file__).resolve().parents[3]

SESSION = """
import json, sys
from maya_vlm.model_card.hub.publish import publish
from maya_vlm.model_card.space.send import publish_space
from huggingface_hub import snapshot_download

folder, place = sys.argv[1:]
publish(folder, "user/tiny", verify=False)
told = {}
for name, call in {
    "without trust": lambda: publish_space("user/tiny", "user/ask"),
    "sent": lambda: publish_space("user/tiny", "user/ask", private=True, trust_remote_code=True),
    "again": lambda: publish_space("user/tiny", "user/ask", trust_remote_code=True),
}.items():
    try:
        told[name] = call()
    except ValueError as error:
        told[name] = str(error)
snapshot_download("user/ask", repo_type="space", local_dir=place)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def sent(tmp_path_factory):
    """Return the printed text and the Space's files."""
    work = tmp_path_factory.mktemp("space")
    folder = save_tiny_maya(work / "tiny")
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(work / "cache"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SESSION, str(folder), str(work / "files")]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        yield json.loads(done.stdout.splitlines()[-1]), work / "files"


def test_code_is_run_on_the_space_only_where_the_user_allows_it(sent):
    told, _ = sent
    assert "allow that with --trust-remote-code" in told["without trust"]


def test_the_space_has_all_its_page_needs(sent):
    told, files = sent
    assert told["sent"].endswith("/spaces/user/ask")
    assert told["again"] == told["sent"]
    names = {str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()}
    names = {name for name in names if not name.startswith(".")}
    assert names >= {"app.py", "asking.py", "space.json", "requirements.txt", "README.md"}
    assert sum(name.startswith("examples/") for name in names) == 4
    space = json.loads((files / "space.json").read_text())
    assert space["model"] == "user/tiny"
    assert len(space["revision"]) == 40
    assert space["trust_remote_code"] is True
    assert len(space["languages"]) == 10
    card = (files / "README.md").read_text()
    assert "sdk: gradio" in card
    assert "app_file: app.py" in card
    assert "- user/tiny" in card


def test_the_asking_part_needs_nothing_of_this_package(sent):
    _, files = sent
    code = "import sys, asking; assert not [n for n in sys.modules if n.startswith('maya_vlm')]"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=files, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_folder_is_no_model_of_a_space(tmp_path):
    folder = save_tiny_maya(tmp_path / "tiny")
    with pytest.raises(ValueError, match="found a folder: a Space loads its model from the Hub"):
        publish_space(str(folder), "user/ask")
