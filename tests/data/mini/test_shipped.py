"""Test the shipped mini dataset: complete, balanced, and without leaks."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from maya_vlm.training.common.files import files_sha256
from maya_vlm.training.data.mini_dataset.build import SAMPLES
from maya_vlm.training.data.mini_dataset.card import configs, write_attribution, write_card
from maya_vlm.training.data.mini_dataset.concepts import CATEGORIES, LANGUAGES, load_sensitive
from maya_vlm.training.data.mini_dataset.draw import load_prompts
from maya_vlm.training.data.mini_dataset.messages import PICTURES, message_rows
from maya_vlm.training.data.mini_dataset.render import load_refused
from maya_vlm.training.data.mini_dataset.sources import SOURCES, SPLITS
from maya_vlm.training.evaluation.tasks.mini import data_files

ROOT = Path(__file__).parents[3] / "training" / "data" / "mini"
TOXIC = {reason for reason, entry in load_sensitive().items() if entry["toxic"]}
EVALUATED = ("validation", "test")


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((ROOT / "manifest.json").read_text(encoding="utf-8"))


def _columns(pattern: str, *names: str) -> Iterator[tuple]:
    """Yield tuples of the named columns, over all rows of matching files."""
    paths = sorted(ROOT.glob(pattern))
    assert paths, pattern
    for path in paths:
        table = pq.read_table(path, columns=list(names))
        yield from zip(*(table[name].to_pylist() for name in names), strict=True)


@pytest.fixture(scope="module")
def held_out_names(manifest: dict[str, Any]) -> dict[str, set[str]]:
    held_out = set(manifest["held_out"])
    return {
        language: {
            text.casefold()
            for concept, text in _columns(f"texts/{language}/validation-*", "concept", "text")
            if concept in held_out
        }
        for language in LANGUAGES
    }


def test_files_are_those_of_the_manifest(manifest: dict[str, Any]) -> None:
    found = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.parquet")}
    assert found == set(manifest["files"])
    for name, entry in manifest["files"].items():
        data = (ROOT / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], name
        assert pq.ParquetFile(io.BytesIO(data)).metadata.num_rows == entry["rows"], name


def test_sources_are_the_pinned_ones(manifest: dict[str, Any]) -> None:
    listed = {
        (entry["package"], entry["version"], entry["sha512"]) for entry in manifest["sources"]
    }
    assert listed == {(s.package, s.version, s.sha512) for s in SOURCES.values()}


def test_every_config_of_the_card_has_the_rows_of_the_manifest(manifest: dict[str, Any]) -> None:
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("---")[1]
    card = {
        entry["config_name"]: {
            files["split"]: sum(
                pq.read_metadata(path).num_rows
                for pattern in files["path"]
                for path in ROOT.glob(pattern)
            )
            for files in entry["data_files"]
        }
        for entry in yaml.safe_load(head)["configs"]
    }
    assert card == manifest["configs"]
    assert set(card) == set(configs(SPLITS))
    assert all(rows > 0 for splits in card.values() for rows in splits.values())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("config", ["bn", "instruct_ur_toxicity_free", "images", "messages"])
def test_datasets_loads_it(
    config: str, streaming: bool, manifest: dict[str, Any], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(str(ROOT), config, streaming=streaming, cache_dir=str(tmp_path))
    assert set(loaded) == set(manifest["configs"][config])
    if not streaming:
        assert {split: len(rows) for split, rows in loaded.items()} == manifest["configs"][config]
    row = next(iter(loaded["test"]))
    if config == "images":
        assert row["picture"].size == (64, 64)
    elif config == "messages":
        assert [picture.size for picture in row["images"]] == [(64, 64)]
        assert [turn["role"] for turn in row["messages"]][:2] == ["user", "assistant"]
    else:
        assert row["lang"] == config.removeprefix("instruct_")[:2]
        assert row["style"] == "twemoji"


def test_every_config_is_known_to_datasets(manifest: dict[str, Any]) -> None:
    datasets = pytest.importorskip("datasets")
    assert set(datasets.get_dataset_config_names(str(ROOT))) == set(manifest["configs"])
    assert datasets.get_dataset_default_config_name(str(ROOT)) == "all"


def test_pictures() -> None:
    names = ("image", "image_sha256", "picture", "style", "concept")
    digests = {}
    for image, digest, picture, style, concept in _columns("images/*.parquet", *names):
        assert image == picture["path"] == f"{style}/{concept}.png"
        assert hashlib.sha256(picture["bytes"]).hexdigest() == digest
        with Image.open(io.BytesIO(picture["bytes"])) as opened:
            assert (opened.format, opened.mode, opened.size) == ("PNG", "P", (64, 64))
            low, high = opened.convert("L").getextrema()
        assert low < high, f"{image} is blank"
        digests[image] = digest
    for language in LANGUAGES:
        texts = dict(_columns(f"texts/{language}/*.parquet", "image", "image_sha256"))
        assert texts.items() <= digests.items()
        assert len(texts) >= len(digests) - len(SPLITS)  # one emoji has no Hindi name
        asked = {image for (image,) in _columns(f"instruct/{language}/*.parquet", "image")}
        assert asked == set(texts)


def test_no_refused_picture_is_in() -> None:
    for style, refused in load_refused().items():
        concepts = {concept for (concept,) in _columns(f"images/{style}.parquet", "concept")}
        assert concepts.isdisjoint(refused)


def test_held_out_concepts_are_in_no_training_row(
    manifest: dict[str, Any], held_out_names: dict[str, set[str]]
) -> None:
    held_out = set(manifest["held_out"])
    assert len(held_out) == manifest["concepts"]["held_out"] == 144
    for style, split in SPLITS.items():
        concepts = {concept for (concept,) in _columns(f"images/{style}.parquet", "concept")}
        if split == "train":
            assert concepts.isdisjoint(held_out)
    for language in LANGUAGES:
        hidden = held_out_names[language]
        assert len(hidden) >= 143
        names = ("concept", "seen", "text", "keywords")
        for concept, seen, text, keywords in _columns(f"texts/{language}/train-*", *names):
            assert seen
            assert concept not in held_out
            assert hidden.isdisjoint(word.casefold() for word in (text, *keywords))
        names = ("concept", "about", "task", "messages")
        for concept, about, task, messages in _columns(f"instruct/{language}/train-*", *names):
            assert concept not in held_out
            assert about not in held_out
            for message in messages:
                said = message["content"]
                words = re.split(r", |、|، ", said) if task == "keywords" else [said]
                assert hidden.isdisjoint(word.casefold() for word in words)
        for split in EVALUATED:
            rows = _columns(f"*/{language}/{split}-*", "concept", "seen")
            assert all(seen == (concept not in held_out) for concept, seen in rows)


def test_toxicity_free_has_no_flagged_concept() -> None:
    flagged = {
        concept
        for concept, sensitive in _columns("texts/en/*-flagged.parquet", "concept", "sensitive")
        if TOXIC & set(sensitive)
    }
    assert len(flagged) == 70
    for concept, sensitive in _columns("texts/*/*-clean.parquet", "concept", "sensitive"):
        assert concept not in flagged
        assert not TOXIC & set(sensitive)
    for concept, about in _columns("instruct/*/*-clean.parquet", "concept", "about"):
        assert concept not in flagged
        assert about not in flagged
    kept = {
        reason for (row,) in _columns("texts/en/*-clean.parquet", "sensitive") for reason in row
    }
    assert kept == {"religion-politics"}


def test_messages_are_clean_rows_of_other_tables_each_picture_once() -> None:
    names = ("id", "images", "messages", "concept", "style", "licence", "seen", "lang")
    for style, split in SPLITS.items():
        pattern = f"messages/{split}-{style}.parquet"
        rows = {row[0]: dict(zip(names, row, strict=True)) for row in _columns(pattern, *names)}
        assert list(rows) == sorted(rows)
        assert Counter(row["lang"] for row in rows.values()) == dict.fromkeys(LANGUAGES, 15)
        assert len({row["concept"] for row in rows.values()}) == len(rows) == PICTURES
        pictures = dict(_columns(f"images/{style}.parquet", "concept", "picture"))
        for row in rows.values():
            assert row["images"] == [pictures[row["concept"]]]
            assert (row["style"], row["licence"]) == (style, SOURCES[style].licence)
        for language in LANGUAGES:
            own = ("id", "messages", "concept", "style", "seen", "lang")
            kept = 0
            for row in _columns(f"instruct/{language}/{split}-clean.parquet", *own):
                found = rows.get(row[0])
                if found is not None and found["lang"] == language:
                    assert row == tuple(found[name] for name in own)
                    kept += 1
            assert kept == 15


def test_messages_are_what_the_builder_makes_of_the_other_tables() -> None:
    for style in ("openmoji", "streamline"):
        path = ROOT / f"messages/{SPLITS[style]}-{style}.parquet"
        assert message_rows(ROOT, style) == pq.read_table(path).to_pylist()


def test_messages_add_two_megabytes_and_change_no_file_that_was_evaluated() -> None:
    assert sum(path.stat().st_size for path in ROOT.glob("messages/*")) < 2_000_000
    recorded = ROOT.parents[2] / "tests" / "benchmarks" / "results" / "main_job_mini.json"
    text = recorded.read_text(encoding="utf-8")
    (digest,) = set(re.findall(r'"files_sha256": "(\w+)"', text))
    assert files_sha256(data_files(str(ROOT))) == digest


def test_the_list_of_flagged_names_is_what_is_flagged() -> None:
    names = dict(_columns("texts/en/validation-*.parquet", "text", "sensitive"))
    for reason, entry in load_sensitive().items():
        assert {name for name, reasons in names.items() if reason in reasons} == set(entry["names"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_question_alone_does_not_tell_yes_from_no(language: str) -> None:
    words = load_prompts()[language]
    for style, split in SPLITS.items():
        for part in ("clean", "flagged"):
            names = ("style", "task", "concept", "about", "answer", "seen")
            said: dict[str, Counter[str]] = {words["yes"]: Counter(), words["no"]: Counter()}
            for own, task, concept, about, answer, seen in _columns(
                f"instruct/{language}/{split}-{part}.parquet", *names
            ):
                if own == style and task == "yesno":
                    assert (answer == words["yes"]) == (about == concept)
                    said[answer][(about, seen)] += 1
            assert said[words["yes"]] == said[words["no"]]
            assert set(said[words["yes"]].values()) == {1}


def test_tasks_of_each_picture() -> None:
    for split in set(SPLITS.values()):
        tasks: dict[str, list[str]] = {}
        for image, task in _columns(f"instruct/zh/{split}-*.parquet", "image", "task"):
            tasks.setdefault(image, []).append(task)
        kinds = {tuple(sorted(own)) for own in tasks.values()}
        basic = ("category", "name", "yesno", "yesno")
        if split in EVALUATED:
            assert kinds == {basic}
        else:
            assert kinds == {tuple(sorted((*basic, extra))) for extra in ("chat", "keywords")}


def test_rows_are_well_formed_and_sorted() -> None:
    for path in sorted(ROOT.glob("instruct/*/*.parquet")):
        table = pq.read_table(path, columns=["id", "messages", "answer"]).to_pydict()
        assert table["id"] == sorted(set(table["id"]))
        for messages, answer in zip(table["messages"], table["answer"], strict=True):
            roles = [message["role"] for message in messages]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert messages[-1]["content"] == answer
            assert all(message["content"].strip() for message in messages)
    for path in sorted(ROOT.glob("texts/*/*.parquet")):
        table = pq.read_table(path, columns=["id", "lang", "category"]).to_pydict()
        assert table["id"] == sorted(set(table["id"]))
        assert set(table["lang"]) == {path.parent.name}
        assert set(table["category"]) <= set(CATEGORIES)


def test_names_are_unique_in_each_language() -> None:
    for language in LANGUAGES:
        names = dict(_columns(f"texts/{language}/validation-*.parquet", "concept", "text"))
        assert len(set(names.values())) == len(names)
        categories = set(_columns(f"texts/{language}/*.parquet", "category", "category_name"))
        assert len(categories) == len({name for _, name in categories}) == len(CATEGORIES)


def test_licences_and_credits() -> None:
    attribution = (ROOT / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert attribution == write_attribution(SPLITS)
    for source in SOURCES.values():
        assert source.package in attribution
        text = (ROOT / "LICENSES" / f"{source.licence}.txt").read_text(encoding="utf-8")
        assert len(text) > 1000
    assert "Copyright (c) Microsoft Corporation" in (ROOT / "LICENSES/MIT.txt").read_text()


def test_the_card_is_what_the_builder_writes(manifest: dict[str, Any]) -> None:
    names = dict(_columns("texts/en/*.parquet", "concept", "text"))
    concepts = [SimpleNamespace(id=key, names={"en": name}) for key, name in names.items()]
    card = write_card(manifest, SimpleNamespace(concepts=concepts), SAMPLES.name)  # type: ignore[arg-type]
    assert card == (ROOT / "README.md").read_text(encoding="utf-8")
    assert SAMPLES.is_file()


def test_questions_have_every_language_and_task() -> None:
    prompts = load_prompts()
    assert tuple(prompts) == LANGUAGES
    for language, own in prompts.items():
        assert [len(own[task]) for task in ("name", "yesno", "category", "keywords")] == [
            3,
            2,
            2,
            2,
        ]
        assert all(question.count("{name}") == 1 for question in own["yesno"]), language
        assert own["yes"] != own["no"]
    assert (prompts["zh"]["yes"], prompts["zh"]["no"]) == ("是", "否")


def test_the_data_room_needs_neither_torch_nor_the_trainer() -> None:
    code = (
        "import sys; import maya_vlm.training.data.mini_dataset.build; "
        "bad = [m for m in ('torch', 'transformers', 'maya_vlm.training.run.trainer') if m in sys.modules]; "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
