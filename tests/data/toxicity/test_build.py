"""Test `maya data build` and `maya data policy` on the mini dataset, with its sensitive list as judge."""

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from maya_vlm.training.cli import main
from maya_vlm.training.data.build import build_dataset

DATA = Path(__file__).resolve().parents[3] / "training" / "data"
LISTED = json.loads((DATA / "mini_dataset" / "sensitive.json").read_text(encoding="utf-8"))


def sensitive(texts):
    """Judge by the curated list of the mini dataset: English names by kind."""
    kinds = {name: kind for kind, entry in LISTED.items() for name in entry["names"]}
    toxic = {kind for kind, entry in LISTED.items() if entry["toxic"]}
    found = []
    for text in texts:
        kind = kinds.get(text)
        found.append({kind: 1.0 if kind in toxic else 0.6} if kind else {})
    return found


def dark(images):
    return [0.0 for _ in images]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    plan = {
        "name": "mini-toxicity",
        "output_dir": str(folder / "out"),
        "source": {"kind": "mini", "split": "test"},
        "unit_rows": 500,
        "toxicity": {
            "judges": [
                {
                    "name": "list",
                    "kind": "function",
                    "stage": "text",
                    "function": "tests.data.toxicity.test_build:sensitive",
                    "languages": ["en"],
                    "batch_size": 500,
                },
                {
                    "name": "dark",
                    "kind": "function",
                    "stage": "image",
                    "function": "tests.data.toxicity.test_build:dark",
                    "batch_size": 500,
                },
            ]
        },
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    build_dataset(path, steps=["source", "toxicity"], progress=False, allow_code=True)
    return path, folder / "out"


def decisions(folder):
    return pq.read_table(folder / "toxicity" / "decisions.parquet").to_pylist()


def test_what_the_list_names_is_what_is_flagged(built):
    _, folder = built
    table = pq.read_table(DATA / "mini" / "texts" / "en" / "test-flagged.parquet")
    rows = decisions(folder)
    found = {row["id"] for row in rows if row["decision"] == "flagged"}
    assert found == set(table["id"].to_pylist())
    names = {name for entry in LISTED.values() if not entry["toxic"] for name in entry["names"]}
    texts = pq.read_table(DATA / "mini" / "texts" / "en" / "test-clean.parquet")
    doubtful = {
        i
        for i, t in zip(texts["id"].to_pylist(), texts["text"].to_pylist(), strict=True)
        if t in names
    }
    assert {row["id"] for row in rows if row["decision"] == "review"} == doubtful
    assert len(rows) == len(table) + len(texts)
    kinds = Counter(row["category"] for row in rows if row["decision"] == "flagged")
    assert kinds.keys() <= {kind for kind, entry in LISTED.items() if entry["toxic"]}


def test_deciding_again_from_the_command_line(built, capsys, tmp_path):
    _, folder = built
    flagged = sum(row["decision"] == "flagged" for row in decisions(folder))
    strict = tmp_path / "strict.yaml"
    strict.write_text("name: strict\ndefault: {drop_at: 0.6, review_at: 0.6}\n")
    assert main(["data", "policy", str(folder), "--policy", str(strict)]) == 0
    assert "policy strict" in capsys.readouterr().out
    assert not any(row["decision"] == "review" for row in decisions(folder))
    assert main(["data", "policy", str(folder), "--sheets"]) == 0
    out = capsys.readouterr().out
    assert "policy default" in out
    assert "toxicity-1.html" in out
    assert sum(row["decision"] == "flagged" for row in decisions(folder)) == flagged
    page = (folder / "review" / "toxicity-1.html").read_text(encoding="utf-8")
    assert page.count('<img class="blurred"') > 200
    assert main(["data", "policy", str(tmp_path)]) == 2
    assert "no plan.yaml" in capsys.readouterr().err


def test_a_bad_section_ends_before_anything_starts(built, tmp_path):
    plan = yaml.safe_load(built[0].read_text())
    plan["output_dir"] = str(tmp_path / "out")
    plan["toxicity"]["judges"][0]["languages"] = ["fr"]
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    with pytest.raises(ValueError, match=r"plan\.yaml: toxicity: judge 'list': .*, found en"):
        build_dataset(path, progress=False)
    assert not (tmp_path / "out").exists()
