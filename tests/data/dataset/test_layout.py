"""Test the dataset's folder: each row once, in the right file, sorted; counts add up; configs load."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from maya_vlm.training.common.endpoint import EndpointPlan
from maya_vlm.training.data import build
from maya_vlm.training.data.dataset import parts, shards, texts
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.manifest import FOLDERS, configs, matching
from maya_vlm.training.data.dataset.plan import LayoutPlan, licence_of
from maya_vlm.training.data.dataset.shards import Shards
from maya_vlm.training.data.plan import Plan
from maya_vlm.training.data.sources.plan import SourcePlan
from maya_vlm.training.data.translation.plan import TranslatorPlan
from tests.data.tiny_build import make_plan, read, rows_of, translate, write_source
from tests.data.toxicity.judges import picture


@pytest.fixture
def plan(tmp_path):
    write_source(tmp_path / "in", rows_of(25))
    plan = make_plan(tmp_path)
    translate(plan)
    return plan


def test_every_row_is_in_one_file_and_the_sums_close(plan):
    manifest = assemble(plan)
    root = plan.folder / "dataset"
    ids = [f"{n:09d}" for n in range(25)]
    for lang in ("en", "fr", "hi"):
        found = [
            row["id"] for row in read(root, f"data/{lang}/*") + read(root, f"rejected/{lang}-*")
        ]
        assert sorted(found) == ids
    counts = manifest["counts"]["languages"]["fr"]
    assert {k: counts[k] for k in ("expected", "ok", "rejected", "failed")} == {
        "expected": 25,
        "ok": 23,
        "rejected": 1,
        "failed": 1,
    }
    assert (counts["clean"], counts["review"], counts["flagged"]) == (21, 1, 1)
    assert counts["rejected_for"] == {"copy": 1}
    assert counts["translators"] == [
        {"model": "tiny", "model_revision": "r1", "prompt_id": "p", "parameters": "{}", "rows": 25}
    ]
    assert manifest["counts"]["all"]["expected"] == 75
    assert [row["id"] for row in read(root, "data/en/flagged-*")] == ["000000003"]
    assert [row["id"] for row in read(root, "data/hi/flagged-*")] == ["000000003"]
    (rejected, failed) = read(root, "rejected/fr-*")
    assert (rejected["status"], rejected["reasons"]) == ("rejected", "copy: the source")
    assert (failed["status"], failed["source_caption"]) == ("failed", "picture 7 down")
    row = read(root, "data/fr/clean-*")[0]
    assert (row["caption"], row["source_caption"]) == ("fr: picture 0", "picture 0")
    assert (row["image"], row["toxicity"], row["model"]) == ("0/000000000.png", "clean", "tiny")


def test_files_are_sorted_sharded_and_as_the_manifest_says(plan):
    manifest = assemble(plan)
    root = plan.folder / "dataset"
    assert sorted(manifest["files"]) == sorted(
        path.relative_to(root).as_posix() for path in root.rglob("*.parquet")
    )
    for name, about in manifest["files"].items():
        path = root / name
        assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert about["bytes"] == path.stat().st_size
        assert 0 < about["rows"] == pq.read_metadata(path).num_rows <= 9
        ids = pq.ParquetFile(path).read(["id"])["id"].to_pylist()
        assert ids == sorted(ids)
    assert "data/fr/clean-00002.parquet" in manifest["files"]
    clean = [row["id"] for row in read(root, "data/fr/clean-*")]
    assert clean == sorted(clean)
    assert len(read(root, "audit/words-*")) == 25 + 23 + 24


@pytest.mark.parametrize("judged", [True, False])
def test_configs_load_streaming_and_not_with_the_counts_of_the_manifest(tmp_path, judged):
    from maya_vlm.model_card.cards.dataset import write_dataset_card

    write_source(tmp_path / "in", rows_of(25))
    plan = make_plan(tmp_path, judged=judged, layout=LayoutPlan(images="bytes", shard_rows=9))
    translate(plan)
    manifest = assemble(plan)
    root = plan.folder / "dataset"
    write_dataset_card(root)
    names = {"all", "en", "fr", "hi", "rejected", "images", "messages"}
    if judged:
        names |= {"toxicity_audit", "toxicity_free"}
        names |= {f"{lang}_toxicity_free" for lang in ("en", "fr", "hi")}
    assert set(manifest["configs"]) == names
    for name, about in manifest["configs"].items():
        loaded = load_dataset(str(root), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == about["rows"], name
        assert sum(1 for _ in load_dataset(str(root), name, split="train", streaming=True)) == len(
            loaded
        )
    default = load_dataset(str(root), split="train", streaming=True)
    assert (
        sum(1 for _ in default) == manifest["configs"]["toxicity_free" if judged else "all"]["rows"]
    )
    assert {row["toxicity"] for row in default} == {"clean" if judged else None}


def test_pictures_are_there_once_and_every_row_finds_its_own(tmp_path):
    write_source(tmp_path / "in", rows_of(25))
    plan = make_plan(tmp_path, layout=LayoutPlan(images="bytes", image_shard_mb=1))
    translate(plan)
    manifest = assemble(plan)
    root = plan.folder / "dataset"
    pictures = {row["image"]: row for row in read(root, "images/*")}
    assert manifest["images"]["images"] == len(pictures) == 20
    assert manifest["images"]["rows"] == 25
    for row in read(root, "data/*/*"):
        kept = pictures[row["image"]]
        assert row["image_sha256"] == kept["image_sha256"]
        assert hashlib.sha256(kept["picture"]["bytes"]).hexdigest() == kept["image_sha256"]
    assert sum(row["image"] == "3/000000003.png" for row in read(root, "data/hi/*")) == 2
    (tmp_path / "in" / "pictures" / "0" / "000000000.png").write_bytes(picture(9, 9))
    (plan.folder / "assemble" / "images.json").unlink()
    with pytest.raises(
        ValueError, match=r"000000000.png.*expected the bytes that the step source read"
    ):
        assemble(plan)


def test_only_what_changed_is_made_anew(plan, monkeypatch):
    first = assemble(plan)
    root = plan.folder / "dataset"
    inode = {name: (root / name).stat().st_ino for name in first["files"]}
    assert assemble(plan) == first
    assert {name: (root / name).stat().st_ino for name in first["files"]} == inode
    (root / "data/fr/clean-00001.parquet").unlink()
    (root / "data/fr/clean-99999.parquet").write_bytes(b"of another time")
    assert assemble(plan) == first
    changed = {name for name, i in inode.items() if (root / name).stat().st_ino != i}
    assert changed == {n for n in first["files"] if n.startswith(("data/fr/", "rejected/fr"))}
    assert not (root / "data/fr/clean-99999.parquet").exists()


def test_a_killed_assembly_leaves_no_manifest_and_no_half_file(plan, monkeypatch):
    assemble(plan)
    for path in (plan.folder / "assemble").glob("*.json"):
        path.unlink()
    calls = iter(range(100))

    def dies(self, row):
        if next(calls) == 40:
            raise OSError("a full disk")
        return dict(row) | {"caption": row["text"], "source_caption": row["source_text"]}

    monkeypatch.setattr(texts.Texts, "_row", dies)
    with pytest.raises(OSError, match="a full disk"):
        assemble(plan)
    root = plan.folder / "dataset"
    assert not (root / "manifest.json").exists()
    assert not list(root.rglob("*.tmp"))
    for path in root.rglob("*.parquet"):
        pq.ParquetFile(path).read()
    monkeypatch.undo()
    assert assemble(plan)["counts"]["all"]["expected"] == 75


@pytest.mark.parametrize("fails_at", ["the name", "the file"])
def test_a_disk_that_takes_no_file_is_what_is_said(tmp_path, monkeypatch, fails_at):
    if fails_at == "the name":
        (tmp_path / "data").write_text("in the way of the folder")
    else:

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shards.pq, "ParquetWriter", full)
    words = "data/fr/clean-00000.parquet: cannot be written: "
    with pytest.raises(OSError, match=words), Shards(tmp_path) as made:
        made.add("data/fr/clean", pa.schema([("id", pa.string())]), {"id": "1"}, most=1)
    assert not list(tmp_path.rglob("*.tmp"))


def test_decisions_are_hashed_once_for_all_languages(plan, monkeypatch):
    seen = []
    hashed = parts.sha256_file
    monkeypatch.setattr(parts, "sha256_file", lambda path: seen.append(path) or hashed(path))
    assemble(plan)
    assert seen.count(plan.folder / "toxicity" / "decisions.parquet") == 1


def test_a_build_without_progress_is_silent(plan, capsys):
    build._assemble(
        plan, build._Options(retry_failed=False, progress=False, trust_remote_code=False)
    )
    assert capsys.readouterr().out == ""


def test_conversations_keep_the_layout(tmp_path):
    rows = rows_of(12)
    talk = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "On a mat, bad fr."},
    ]
    rows[2]["conversations"] = talk
    rows[4]["conversations"] = talk[:2]
    write_source(tmp_path / "in", rows)
    plan = make_plan(tmp_path, task=None, judged=False)
    translate(plan)
    assemble(plan)
    root = plan.folder / "dataset"
    english = {row["id"]: row for row in read(root, "data/en/*")}
    french = {row["id"]: row for row in read(root, "data/fr/*")}
    assert english["000000004"]["messages"] == [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
    ]
    assert french["000000004"]["source_messages"] == english["000000004"]["messages"]
    assert french["000000004"]["messages"][1]["content"] == "fr: A cat."
    rejected, *_ = read(root, "rejected/fr-*")
    assert rejected["id"] == "000000002"
    assert rejected["source_messages"][3]["content"] == "On a mat, bad fr."


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "translate/hi/00001.parquet").unlink(), "00001.*run the step translate"),
        (lambda f: (f / "translate/hi/00001.parquet").write_bytes(b""), "has changed"),
        (lambda f: (f / "source/00001.parquet").unlink(), "run the step source"),
        (lambda f: (f / "toxicity/decisions.parquet").unlink(), "run the step toxicity"),
    ],
)
def test_unfinished_steps_are_named(plan, damage, words):
    damage(plan.folder)
    with pytest.raises(ValueError, match=words) as caught:
        assemble(plan)
    assert "\n" not in str(caught.value)
    assert not (plan.folder / "dataset" / "manifest.json").exists()


def test_a_row_without_a_decision_is_no_clean_row(plan):
    path = plan.folder / "toxicity" / "decisions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter([i != 30 for i in range(len(table))]), path)
    with pytest.raises(
        ValueError, match=r"expected a decision for its text, found none: run the step toxicity"
    ):
        assemble(plan)


def test_a_changed_source_is_not_mixed_with_old_translations(plan, tmp_path):
    from maya_vlm.training.data.sources.step import build_sources

    assemble(plan)
    rows = json.loads((tmp_path / "in" / "rows.json").read_text())
    rows[-1]["conversations"][1]["value"] = "another caption"
    (tmp_path / "in" / "rows.json").write_text(json.dumps(rows))
    build_sources(plan.source, plan.folder / "source", plan.unit_rows, progress=False)
    with pytest.raises(ValueError, match=r"made from other rows: run the step translate again"):
        assemble(plan)


def test_configs_are_globs_over_one_copy():
    files = {
        "data/en/clean-00000.parquet": {"rows": 3},
        "data/en/flagged-00000.parquet": {"rows": 1},
        "data/fr/review-00000.parquet": {"rows": 2},
        "rejected/fr-00000.parquet": {"rows": 5},
    }
    found = configs(files, ["en", "fr"], judged=True)
    assert next(iter(found)) == "toxicity_free"
    assert {name: about["rows"] for name, about in found.items()} == {
        "toxicity_free": 3,
        "all": 6,
        "en": 4,
        "en_toxicity_free": 3,
        "fr": 2,
        "rejected": 5,
    }
    assert matching(files, "data/*") == []
    assert set(FOLDERS) == {"data", "rejected", "images", "messages", "audit"}


def test_licences_and_pictures_are_checked_with_the_plan(tmp_path):
    (tmp_path / "in").mkdir()
    aya = TranslatorPlan(preset="aya-23-35b", endpoint=EndpointPlan("http://127.0.0.1:1/v1", ""))
    common = {"name": "x", "output_dir": "x", "languages": ["fr"], "translator": aya}
    source = SourcePlan("llava", "rows.json")
    with pytest.raises(
        ValueError,
        match=r"layout.licence: expected a non-commercial licence, found 'mit': texts made by aya-23-35b",
    ):
        Plan(source=source, layout=LayoutPlan(licence="mit"), **common)
    with pytest.raises(ValueError, match=r"layout.images: bytes: expected a place of pictures"):
        Plan(source=source, layout=LayoutPlan(images="bytes"), **common)
    plan = Plan(source=source, **common)
    assert licence_of(plan.translator, plan.layout)[0] == "cc-by-nc-4.0"
    own = LayoutPlan(licence="cc-by-nc-sa-4.0", licence_note="Ours.")
    licence, note = licence_of(plan.translator, own)
    assert licence == "cc-by-nc-sa-4.0"
    assert note.startswith("Ours. aya-23-35b: Non-commercial")


def test_the_command_builds_a_folder_with_a_card_and_exports_it(tmp_path, capsys):
    """A plan without translator and judges lays out its source."""
    from maya_vlm.training.cli import main

    write_source(tmp_path / "in", rows_of(4))
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"name: plain\noutput_dir: {tmp_path}/build\n"
        "source: {kind: llava, path: ./in/rows.json, language: en, task: caption}\n"
    )
    assert main(["data", "build", str(plan)]) == 0
    dataset = tmp_path / "build" / "dataset"
    assert "4 captions in 1 language (English `en`)." in (dataset / "README.md").read_text()
    assert "No judge has looked" in (dataset / "README.md").read_text()
    out = tmp_path / "out"
    export = ["data", "export", str(tmp_path / "build"), "--output", str(out)]
    assert main(export) == 2
    assert "name their place with --images FOLDER_OR_ZIP" in capsys.readouterr().err
    assert main([*export, "--images", str(tmp_path / "in" / "pictures")]) == 0
    assert capsys.readouterr().out == f"{out}/plain.en.json: 4 rows\n4 different pictures\n"
    assert main([*export, "--no-images"]) == 0
    assert f"{out}/plain.en.json: 4 rows" in capsys.readouterr().out
    assert main(["data", "export", str(dataset), "--output", str(out), "--toxicity-free"]) == 2
    assert "expected a dataset with judges" in capsys.readouterr().err
    assert main([*export, "--no-images", "--format", "messages"]) == 2
    assert "--no-images: expected --format llava, found messages" in capsys.readouterr().err
