"""The notebook's cells run in their order, on a few steps and pictures."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hub_server import HubServer
from tests.modeling_maya.llava_cohere import tiny_original as original

ROOT = Path(__file__).resolve().parents[2]
CELLS = json.loads((ROOT / "docs" / "maya.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
# Tags of cells that do not run with the others -> why.
APART = {
    "install": "it changes the environment, from the network; test_commands.py has its form",
}


def tagged(tag: str) -> str:
    """Return the code of the cell with a tag."""
    (cell,) = [cell for cell in CODE if tag in cell["metadata"].get("tags", [])]
    return "".join(cell["source"])


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_cells_are_clean():
    for cell in CODE:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    for tag in APART:
        assert tagged(tag)


def test_ruff_keeps_the_imports_that_register_classes(tmp_path):
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    notebook = Path(shutil.copy(ROOT / "docs" / "maya.ipynb", tmp_path / "docs"))
    for how in (["check", "--fix"], ["format"]):
        command = [sys.executable, "-m", "ruff", *how, "--no-cache", "docs"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert json.loads(notebook.read_text(encoding="utf-8"))["cells"] == CELLS
    text = "".join("".join(cell["source"]) for cell in CODE)
    assert "import modeling_maya\nimport processing_maya\n" in text


def test_the_first_cell_finds_or_fetches_the_checkout(tmp_path):
    checkout, away = tmp_path / "checkout", tmp_path / "away"
    for folder in (checkout / "docs", away):
        folder.mkdir(parents=True)
    (checkout / "constraints.txt").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(checkout)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    here = "\nprint(os.getcwd())"
    cell = tagged("fetch")
    for folder in (checkout, checkout / "docs"):
        assert run(cell + here, folder).stdout.strip() == str(checkout)
    filled = cell.replace('REPOSITORY = ""', f"REPOSITORY = {str(checkout)!r}")
    for _ in range(2):  # a second time it takes what it fetched
        assert run(filled + here, away).stdout.strip() == str(away / "maya-vlm")
    assert (away / "maya-vlm" / "constraints.txt").is_file()
    assert "git" in run(cell, tmp_path).stderr


@pytest.mark.slow
def test_the_cells_run(tmp_path):
    code = [
        "".join(cell["source"])
        for cell in CODE
        if not set(cell["metadata"].get("tags", [])) & set(APART)
    ]
    # Training starts processes, so it needs a main module.
    script = tmp_path / "notebook.py"
    body = "\n".join(code).replace("\n", "\n    ")
    script.write_text(f"if __name__ == '__main__':\n    {body}\n", encoding="utf-8")
    original.write_checkpoint(tmp_path / "checkpoint", mm_vision_tower="someone/tower")
    with HubServer() as hub:
        hub.put("model", "maya-multimodal/maya", tmp_path / "checkpoint")
        hub.put("model", "someone/tower", tmp_path / "tower")
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=ROOT / "docs",
            env={
                **os.environ,
                **hub.environment(tmp_path / "home"),
                "STEPS": "2",
                "PICTURES": "4",
                "PUBLISHED": "1",
                "OUTPUT": str(tmp_path / "mini"),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "\nhi " in done.stdout
    assert "\npublished: " in done.stdout
    assert (tmp_path / "mini" / "results.json").is_file()
