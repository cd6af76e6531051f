"""The tutorial, as it is written: its files and its commands, against a Hub and a translator on this machine."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from tests.helpers.endpoint_server import EndpointServer
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


CAPTIONS = {
    "red": ("duara jekundu", "a red circle"),
    "blue": ("duara la buluu", "a blue circle"),
    "green": ("duara la kijani", "a green circle"),
    "black": ("duara jeusi", "a black circle"),
}
SERVER = "http://127.0.0.1:8000/v1"


def make_pictures(folder: Path) -> None:
    folder.mkdir()
    lines = []
    for number, colour in enumerate(list(CAPTIONS) * 2):
        picture = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(picture).ellipse((8, 8, 40 + number, 40 + number), fill=colour)
        picture.save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": CAPTIONS[colour][0]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def steps(translator: str) -> Iterator[tuple[str, str, str]]:
    """Yield (what, name, text) in the page's order: a file to save, a file to add to, a command."""
    pattern = r"(Save|Add to)[^:]*?`(\w+\.yaml)`:\n\n```yaml\n(.*?)```|```bash\n(.*?)```"
    for what, name, text, commands in re.findall(pattern, PAGE, re.DOTALL):
        if what:
            yield what, name, text.replace(SERVER, translator)
        for command in commands.splitlines():
            yield "Run", "", command.removeprefix("maya ")


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    make_pictures(tmp_path / "pictures")
    assert PAGE.count("```yaml\n") == 3
    assert SERVER in PAGE
    done, languages = [], []
    with HubServer() as hub, EndpointServer({"en": dict(CAPTIONS.values())}) as translator:
        environment = {
            **os.environ,
            **hub.environment(tmp_path / "home"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }
        for what, name, text in steps(translator.url):
            if what == "Run":
                run(text, tmp_path, environment)
                done.append(text)
                folders = (tmp_path / "runs" / "data" / "circles" / "dataset" / "data").iterdir()
                languages.append(sorted(folder.name for folder in folders))
            else:
                with (tmp_path / name).open(
                    "w" if what == "Save" else "a", encoding="utf-8"
                ) as file:
                    file.write(text)
        card = hub.files("model", "your-name/maya-sw")["README.md"].decode()
        rows = hub.files("dataset", "your-name/circles")
        assert sum(translator.counts.values()) == 8
    assert len(done) == len(re.findall(r"^maya ", PAGE, re.M)) == 10
    # The dataset in two languages comes from the one in Swahili, by the same command.
    assert done[0] == done[2] == "data build captions.yaml"
    assert languages[0] == ["sw"]
    assert languages[2] == ["en", "sw"]
    table = pq.read_table(io.BytesIO(rows["data/en/clean-00000.parquet"])).to_pylist()
    pairs = {(row["source_caption"], row["caption"]) for row in table}
    assert pairs == set(CAPTIONS.values())
    assert "language:\n- en\n- sw\n" in card or "language:\n- sw\n- en\n" in card
    assert "datasets:\n- your-name/circles\n" in card


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    words = shlex.split(command)
    words += ["--set", *SHORT[command]] if command in SHORT else []
    done = subprocess.run(
        [sys.executable, "-m", "maya_vlm.training.cli", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"maya {command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
