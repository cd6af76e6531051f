"""The notebook's cells run in their order, on a few steps and pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CELLS = json.loads((ROOT / "docs" / "maya.ipynb").read_text(encoding="utf-8"))["cells"]


def test_cells_are_clean():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.slow
def test_the_cells_run(tmp_path):
    code = [
        "".join(cell["source"])
        for cell in CELLS
        if cell["cell_type"] == "code" and "install" not in cell["metadata"].get("tags", [])
    ]
    # The notebook runs in a checkout; training starts processes, so it needs a main module.
    script = tmp_path / "notebook.py"
    body = "\n".join(code).replace("\n", "\n    ")
    script.write_text(f"if __name__ == '__main__':\n    {body}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={
            **os.environ,
            "STEPS": "2",
            "PICTURES": "4",
            "OUTPUT": str(tmp_path / "mini"),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "\nhi " in done.stdout
    assert (tmp_path / "mini" / "results.json").is_file()
