"""Test the config `messages` of a built dataset: bounded, clean, balanced, rebuilt only if inputs change."""

import hashlib
import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from datasets import List, Value, load_dataset
from PIL import Image

from maya_vlm.model_card.cards.dataset import write_dataset_card
from maya_vlm.training.data.dataset import layout, messages_config
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.messages import (
    KNOWN_REQUESTS,
    MESSAGES_SCHEMA,
    REQUESTS,
    as_messages,
    known_requests,
    messages_schema,
    share_languages,
)
from maya_vlm.training.data.dataset.messages_config import choose_rows
from maya_vlm.training.data.dataset.plan import LayoutPlan
from maya_vlm.training.data.plan import load_plan, write_plan
from tests.data.tiny_build import TinyTranslator, make_plan, read, rows_of, translate, write_source

LANGUAGES = ("en", "fr", "hi")


def build(folder, rows=25, *, conversations=None, judged=True, **settings):
    """Return a plan with pictures whose steps are finished, except the last."""
    made = rows_of(rows)
    for number, talk in (conversations or {}).items():
        made[number]["conversations"] = talk
    write_source(folder / "in", made)
    plan = make_plan(
        folder,
        task=None if conversations else "caption",
        judged=judged,
        layout=LayoutPlan(images="bytes", shard_rows=9, **settings),
    )
    translate(plan)
    return plan


@pytest.fixture
def plan(tmp_path):
    return build(tmp_path)


def test_every_picture_is_there_once_with_a_clean_text_and_all_languages_evenly(plan):
    manifest = assemble(plan)
    root = plan.folder / "dataset"
    rows = read(root, "messages/*")
    assert manifest["configs"]["messages"] == {"path": "messages/*.parquet", "rows": len(rows)}
    pictures = {row["image"]: row["picture"]["bytes"] for row in read(root, "images/*")}
    clean = {(r["id"], r["lang"]): r for r in read(root, "data/*/clean-*")}
    of_clean = {row["image"] for row in clean.values()}
    assert sorted(row["images"][0]["path"] for row in rows) == sorted(of_clean)
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        text = clean[row["id"], row["lang"]]
        (image,) = row["images"]
        assert image == {"path": text["image"], "bytes": pictures[text["image"]]}
        question, answer = row["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert question["content"] in KNOWN_REQUESTS[row["lang"]]
        assert answer["content"] == text["caption"]
    counts = manifest["messages"]["languages"]
    assert list(counts) == list(LANGUAGES)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == manifest["messages"]["rows"] == len(rows)
    assert manifest["messages"]["bytes"] == sum(len(r["images"][0]["bytes"]) for r in rows)


def test_a_flagged_row_is_never_in_it(plan):
    assemble(plan)
    flagged = {(r["id"], r["lang"]) for r in read(plan.folder / "dataset", "data/*/[fr]*")}
    assert ("000000003", "hi") in flagged
    rows = read(plan.folder / "dataset", "messages/*")
    assert flagged.isdisjoint((row["id"], row["lang"]) for row in rows)


def test_it_has_as_many_pictures_as_the_plan_says_and_the_same_ones_again(tmp_path):
    found = []
    for name in ("one", "two"):
        plan = build(tmp_path / name, messages_images=7)
        assemble(plan)
        found.append((plan.folder / "dataset" / "messages" / "part-00000.parquet").read_bytes())
    assert found[0] == found[1]
    rows = read(plan.folder / "dataset", "messages/*")
    assert len(rows) == 7
    digests = sorted(hashlib.sha256(row["images"][0]["bytes"]).hexdigest() for row in rows)
    everything = sorted(
        {r["image_sha256"] for r in read(plan.folder / "dataset", "data/*/clean-*")}
    )
    assert digests == everything[:7]


@pytest.mark.parametrize("settings", [{"messages_images": 0}, {"images": "paths"}])
def test_it_can_be_left_out(tmp_path, settings):
    write_source(tmp_path / "in", rows_of(12))
    plan = make_plan(tmp_path, layout=LayoutPlan(**{"images": "bytes", **settings}))
    translate(plan)
    manifest = assemble(plan)
    assert manifest["messages"] is None
    assert "messages" not in manifest["configs"]
    assert not (plan.folder / "dataset" / "messages").exists()


def test_fewer_than_no_pictures_are_refused():
    with pytest.raises(ValueError, match=r"layout.messages_images: expected 0 or more, found -1"):
        LayoutPlan(messages_images=-1)


def test_conversations_keep_their_turns(tmp_path):
    talk = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "On a mat."},
    ]
    plan = build(tmp_path, 8, conversations=dict.fromkeys(range(8), talk), judged=False)
    assemble(plan)
    rows = read(plan.folder / "dataset", "messages/*")
    assert {row["lang"] for row in rows} == set(LANGUAGES)
    for row in rows:
        before = "" if row["lang"] == "en" else f"{row['lang']}: "
        said = ["What is it?", "A cat.", "Where?", "On a mat."]
        assert [turn["content"] for turn in row["messages"]] == [before + text for text in said]


def test_a_dataset_without_any_clean_picture_has_no_such_config(tmp_path):
    write_source(tmp_path / "in", rows_of(4)[3:])
    plan = make_plan(tmp_path, languages=("fr",), layout=LayoutPlan(images="bytes"))
    translate(plan)
    manifest = assemble(plan)
    assert manifest["counts"]["all"]["flagged"] == 2
    assert "messages" not in manifest["configs"]
    write_dataset_card(plan.folder / "dataset")


def files(root, pattern):
    return {
        path: path.stat().st_mtime_ns for path in root.rglob("*.parquet") if path.match(pattern)
    }


def test_it_is_remade_only_if_what_it_is_made_from_changed(plan, monkeypatch):
    first = assemble(plan)
    root = plan.folder / "dataset"
    before = files(root, "*")
    assert assemble(plan) == first
    assert files(root, "*") == before
    # Another number of pictures rebuilds only this part.
    plan.layout.messages_images = 5
    assert assemble(plan)["configs"]["messages"]["rows"] == 5
    assert files(root, "data/*/*") == {p: i for p, i in before.items() if p.match("data/*/*")}
    assert files(root, "images/*") == {p: i for p, i in before.items() if p.match("images/*")}
    assert files(root, "messages/*") != {p: i for p, i in before.items() if p.match("messages/*")}
    # New translations that are equal, then new ones that differ.
    again = files(root, "messages/*")
    translate(plan, key="2")
    assemble(plan)
    assert files(root, "messages/*") == again
    answer = TinyTranslator.answer

    def shouted(self, row):
        made = answer(self, row)
        return {**made, "text": made["text"] and made["text"].upper()}

    monkeypatch.setattr(TinyTranslator, "answer", shouted)
    translate(plan, key="3")
    assemble(plan)
    said = {r["messages"][1]["content"] for r in read(root, "messages/*") if r["lang"] != "en"}
    assert said
    assert all(text.isupper() for text in said)
    again = files(root, "messages/*")
    monkeypatch.setattr(messages_config, "VERSION", 99)
    assemble(plan)
    assert files(root, "messages/*") != again
    plan.layout.messages_images = 0
    assert "messages" not in assemble(plan)["configs"]
    assert not files(root, "messages/*")


def test_a_dataset_from_before_gets_it_and_keeps_its_files(plan, tmp_path, monkeypatch):
    """The plan.yaml of an older dataset lacks the key, and its manifest lacks the config."""
    with monkeypatch.context() as before:
        before.setattr(plan.layout, "messages_images", 0)
        old = assemble(plan)
    del old["messages"]
    root = plan.folder / "dataset"
    kept = files(root, "*")
    write_plan(plan, plan.folder / "plan.yaml")
    lines = (plan.folder / "plan.yaml").read_text().splitlines(keepends=True)
    (plan.folder / "plan.yaml").write_text("".join(x for x in lines if "messages_images" not in x))
    again = load_plan(plan.folder / "plan.yaml")
    assert again.layout.messages_images == 2000
    manifest = assemble(again)
    assert manifest["configs"]["messages"]["rows"] == manifest["messages"]["rows"] > 0
    assert {path: i for path, i in files(root, "*").items() if "messages" not in path.parts} == kept
    old["configs"]["messages"] = manifest["configs"]["messages"]
    assert manifest["configs"] == old["configs"]


def test_killed_while_it_is_written_it_is_made_by_the_next_call(plan, monkeypatch):
    def dies(*_):
        yield {"id": "1", "lang": "en", "images": [{"bytes": b"1", "path": "1"}], "messages": []}
        raise OSError("a full disk")

    monkeypatch.setattr(layout.messages_config, "config_rows", dies)
    with pytest.raises(OSError, match="a full disk"):
        assemble(plan)
    root = plan.folder / "dataset"
    assert not (root / "manifest.json").exists()
    assert not list(root.glob("messages/*"))
    monkeypatch.undo()
    assert assemble(plan)["messages"]["rows"] == len(read(root, "messages/*"))


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_what_is_chosen_in_bounded_memory_is_what_is_chosen_at_once(tmp_path, most, monkeypatch):
    draw = random.Random(most)
    clean, rows = {}, []
    for lang in LANGUAGES:
        own = [
            {
                "id": f"{n:04d}",
                "image": None if n % 7 == 0 else f"{n // 2}.png",
                "image_sha256": None
                if n % 7 == 0
                else hashlib.sha256(b"%d" % (n // 2)).hexdigest(),
            }
            for n in range(120)
            if draw.random() < 0.7
        ]
        schema = pa.schema([(name, pa.string()) for name in ("id", "image", "image_sha256")])
        clean[lang] = [f"{lang}-0.parquet", f"{lang}-1.parquet"]
        for name, part in zip(clean[lang], (own[:30], own[30:]), strict=True):
            table = pa.Table.from_pylist(part, schema=schema)
            pq.write_table(table, tmp_path / name, row_group_size=5)
        rows += [{**row, "lang": lang} for row in own]
    known: dict = {}
    for row in sorted((r for r in rows if r["image"]), key=lambda r: r["id"]):
        known.setdefault(row["image_sha256"], {}).setdefault(row["lang"], row)
    expected = share_languages({sha: known[sha] for sha in sorted(known)[:most]}, LANGUAGES)
    chosen = choose_rows(tmp_path, clean, most)
    assert {(lang, i, image) for lang, own in chosen.items() for i, image in own.items()} == {
        (lang, known[sha][lang]["id"], known[sha][lang]["image"]) for sha, lang in expected.items()
    }


def test_languages_are_shared_as_evenly_as_what_is_there_allows():
    available = {"a": LANGUAGES, "b": LANGUAGES, "c": LANGUAGES, "d": ["hi"], "e": ["hi", "fr"]}
    shared = share_languages(available, LANGUAGES)
    assert shared == {"d": "hi", "e": "fr", "a": "en", "b": "en", "c": "fr"}
    many = dict.fromkeys(range(1000), LANGUAGES)
    counts = [list(share_languages(many, LANGUAGES).values()).count(lang) for lang in LANGUAGES]
    assert sorted(counts) == [333, 333, 334]


def test_requests_are_in_the_rows_language_where_they_are_known():
    assert known_requests("pt-BR") == known_requests("en") == REQUESTS
    assert known_requests("zh-Hant") == KNOWN_REQUESTS["zh"]
    row = {"id": "7", "caption": "Ein Bild."}
    (question, answer) = as_messages(row, known_requests("de"))
    assert question["content"] in REQUESTS
    assert answer == {"role": "assistant", "content": "Ein Bild."}
    empty = [{"role": "user", "content": ""}, {"role": "assistant", "content": "Ein Bild."}]
    assert as_messages({"id": "7", "messages": empty}, known_requests("de")) == [question, answer]


def test_datasets_reads_pictures_whole_and_streamed(plan, tmp_path):
    assemble(plan)
    root = plan.folder / "dataset"
    write_dataset_card(root)
    whole = load_dataset(str(root), "messages", split="train", cache_dir=str(tmp_path / "cache"))
    streamed = load_dataset(str(root), "messages", split="train", streaming=True)
    for data in (whole, streamed):
        assert data.features["images"] == List(ImageFeature())
        assert data.features["messages"] == List(
            {"role": Value("string"), "content": Value("string")}
        )
        row = next(iter(data))
        assert set(row) == {"id", "lang", "images", "messages"}
        (picture,) = row["images"]
        assert isinstance(picture, Image.Image)
        assert picture.size == (8, 8)
    stored = read(root, "messages/*")[0]["images"][0]["bytes"]
    assert whole[0]["images"][0].tobytes() == Image.open(io.BytesIO(stored)).tobytes()


def test_our_own_trainer_reads_it_too(plan):
    from maya_vlm.training.batches.groups import GroupData
    from maya_vlm.training.recipe import DataRecipe

    manifest = assemble(plan)
    root = plan.folder / "dataset"
    write_dataset_card(root)
    data = GroupData([DataRecipe(path=str(root), config="messages")])
    assert len(data) == manifest["messages"]["rows"]
    assert sorted(data.languages) == sorted(LANGUAGES)
    stored = read(root, "messages/*")[0]
    first = data.conversation(0)
    assert (first.id, first.language) == (stored["id"], stored["lang"])
    assert data.load_image(0, first.images[0], first.id).size == (8, 8)


def test_further_columns_are_features_too():
    schema = messages_schema(style="string", seen="bool")
    assert schema.names == [*MESSAGES_SCHEMA.names, "style", "seen"]
    assert b'"seen": {"dtype": "bool", "_type": "Value"}' in schema.metadata[b"huggingface"]
