"""The config `messages` on the Hub: published with the other configs, and loaded by name with pictures."""

import json
import os
import subprocess
import sys
from pathlib import Path

from maya_vlm.training.data.dataset.export import export_messages
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.plan import LayoutPlan
from tests.data.tiny_build import make_plan, rows_of, translate, write_source
from tests.helpers.hub_server import HubServer

ROOT = Path(__file__).resolve().parents[3]

SESSION = """
import json
from datasets import load_dataset
from PIL import Image
from maya_vlm.model_card.hub.publish import publish

told = {}
for name, folder in FOLDERS.items():
    publish(folder, f"user/{name}", kind="dataset")
for name, config in (("built", "messages"), ("exported", "all"), ("exported", "fr")):
    for streaming in (False, True):
        rows = load_dataset(f"user/{name}", config, split="train", streaming=streaming)
        rows = list(rows)
        pictures = [picture for row in rows for picture in row["images"]]
        assert all(isinstance(picture, Image.Image) for picture in pictures)
        told[f"{name} {config} {streaming}"] = [len(rows), sorted({p.size for p in pictures})]
print(json.dumps(told))
"""


def test_published_configs_load_by_name_whole_and_streamed(tmp_path):
    write_source(tmp_path / "in", rows_of(25))
    plan = make_plan(tmp_path, languages=("fr",), layout=LayoutPlan(images="bytes"))
    translate(plan)
    manifest = assemble(plan, progress=False)
    rows = export_messages(plan.folder, tmp_path / "rows").files
    folders = {"built": str(plan.folder / "dataset"), "exported": str(tmp_path / "rows")}
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", f"FOLDERS = {folders!r}\n" + SESSION],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        files = hub.files("dataset", "user/built")
    assert "messages/part-00000.parquet" in files
    assert "config_name: messages" in files["README.md"].decode()
    told = json.loads(done.stdout.splitlines()[-1])
    counts = {
        "built messages": manifest["messages"]["rows"],
        "exported all": sum(rows.values()),
        "exported fr": next(n for path, n in rows.items() if path.parent.name == "fr"),
    }
    assert told == {
        f"{name} {streaming}": [count, [[8, 8]]]
        for name, count in counts.items()
        for streaming in (False, True)
    }
