"""LLaVA JSON: the same rows come back, ids as text, in bounded memory and whole or absent."""

import json

import pytest

from maya_vlm.training.data.export import REQUESTS, export_llava, llava_row
from maya_vlm.training.data.layout import assemble
from maya_vlm.training.data.records import Record
from maya_vlm.training.data.sources import SourcePlan, read_source
from tests.data.tiny_build import make_plan, read, rows_of, translate, write_source


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    write_source(folder / "in", rows_of(25))
    plan = make_plan(folder, languages=("fr",))
    translate(plan)
    assemble(plan)
    return plan


@pytest.mark.parametrize("toxicity_free", [False, True])
def test_what_is_exported_reads_back_as_the_same_rows(built, tmp_path, toxicity_free):
    written = export_llava(built.folder, tmp_path, toxicity_free=toxicity_free)
    kinds = "clean-*" if toxicity_free else "*"
    assert [path.name for path in written] == ["tiny.en.json", "tiny.fr.json"]
    for path, count in written.items():
        lang = path.suffixes[0][1:]
        rows = sorted(read(built.folder / "dataset", f"data/{lang}/{kinds}"), key=lambda r: r["id"])
        found = list(read_source(SourcePlan("llava", str(path), task="caption")))
        assert all(isinstance(each, Record) for each in found)
        assert (
            len(found) == count == len(rows) == (21 if toxicity_free else 23) + 2 * (lang == "en")
        )
        for record, row in zip(found, rows, strict=True):
            expected = (row["id"], row["image"], lang, row["caption"], "caption")
            got = tuple(record.row[name] for name in ("id", "image", "lang", "text", "task"))
            assert got == expected


def test_rows_are_as_the_original_published_them(built, tmp_path):
    (path,) = export_llava(built.folder / "dataset", tmp_path, languages=["fr"])
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert rows[0]["id"] == "000000000"
    assert all(list(row) == ["id", "image", "conversations"] for row in rows)
    said = [row["conversations"][0]["value"] for row in rows]
    assert {value.startswith("<image>\n") for value in said} == {True, False}
    assert all(value.startswith("<image>\n") or value.endswith("\n<image>") for value in said)
    assert {value.replace("<image>", "").strip() for value in said} <= set(REQUESTS)
    assert rows[0]["conversations"][1] == {"from": "gpt", "value": "fr: picture 0"}


def test_conversations_keep_their_turns():
    turns = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "On a mat."},
    ]
    row = llava_row({"id": "7", "image": "a.png", "messages": turns})
    assert row["conversations"][0] == {"from": "human", "value": "<image>\nWhat is it?"}
    assert [turn["value"] for turn in row["conversations"][1:]] == ["A cat.", "Where?", "On a mat."]
    assert "image" not in llava_row({"id": "7", "image": None, "messages": turns})
    caption = [{"role": "user", "content": ""}, {"role": "assistant", "content": "A cat."}]
    asked = llava_row({"id": "7", "image": "a.png", "messages": caption})["conversations"][0]
    assert asked["value"].replace("<image>", "").strip() in REQUESTS


def test_bad_requests_are_refused_and_nothing_is_written(built, tmp_path):
    with pytest.raises(ValueError, match=r"no finished dataset"):
        export_llava(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"language 'hi' is not in it; found en, fr"):
        export_llava(built.folder, tmp_path / "out", languages=["hi"])
    for content, words in (("[1]", "expected the manifest"), ("{", "not JSON")):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=rf"manifest.json: {words}") as caught:
            export_llava(tmp_path, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_requests_in_a_language_of_ones_own(built, tmp_path):
    file = tmp_path / "requests.yaml"
    file.write_text("fr: [Décris cette image.]\n", encoding="utf-8")
    written = export_llava(built.folder, tmp_path / "out", requests=file)
    english, french = (json.loads(path.read_text(encoding="utf-8")) for path in written)
    said = {row["conversations"][0]["value"].replace("<image>", "").strip() for row in french}
    assert said == {"Décris cette image."}
    assert english[0]["conversations"][0]["value"].isascii()
    file.write_text("fr: Décris", encoding="utf-8")
    with pytest.raises(ValueError, match=r"requests.yaml: fr: expected a list of texts"):
        export_llava(built.folder, tmp_path / "out", requests=file)
