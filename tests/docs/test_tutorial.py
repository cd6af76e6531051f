"""The tutorial, as it is written: its files and its commands, against a Hub on this machine."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.helpers.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
# Few steps: what is tested is the way, not what is learned.
SHORT = {
    "train mini": [f"stages.{stage}.args.max_steps=1" for stage in ("pretrain", "finetune")],
    "train swahili.yaml": [
        "stages.captions.args.max_steps=2",
        "stages.captions.args.logging_steps=1",
    ],
}


def make_pictures(folder: Path) -> None:
    folder.mkdir()
    lines = []
    for number, colour in enumerate(("red", "blue", "green", "black") * 2):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((8, 8, 40 + number, 40 + number), fill=colour)
        picture.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"duara {number}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    make_pictures(tmp_path / "pictures")
    for name, text in re.findall(r"Save .*?`(\w+\.yaml)`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    blocks = "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL))
    commands = [line.removeprefix("maya ") for line in blocks.splitlines()]
    assert len(commands) == 7
    with HubServer() as hub:
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        for command in commands:
            words = shlex.split(command)
            words += ["--set", *SHORT[command]] if command in SHORT else []
            done = subprocess.run(
                [sys.executable, "-m", "maya_vlm.training.cli", *words],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (
                f"maya {command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            )
        card = hub.files("model", "your-name/maya-sw")["README.md"].decode()
        rows = hub.files("dataset", "your-name/circles")
    assert "language:\n- sw\n" in card
    assert "datasets:\n- your-name/circles\n" in card
    assert any(name.endswith(".parquet") for name in rows)
