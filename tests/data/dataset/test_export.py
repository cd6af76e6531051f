"""Test exports: rows and pictures round-trip, in bounded memory; files are complete or absent."""

import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image as ImageFeature
from datasets import List, get_dataset_config_names, load_dataset
from PIL import Image

from maya_vlm.training.cli import main
from maya_vlm.training.common.names import stays_inside
from maya_vlm.training.data.dataset import export
from maya_vlm.training.data.dataset.export import REQUESTS, export_llava, export_messages, llava_row
from maya_vlm.training.data.dataset.folder import open_dataset
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.messages import KNOWN_REQUESTS, MESSAGES_SCHEMA
from maya_vlm.training.data.dataset.plan import LayoutPlan
from maya_vlm.training.data.sources.plan import SourcePlan
from maya_vlm.training.data.sources.records import Record
from maya_vlm.training.data.sources.rows import read_source
from tests.data.tiny_build import make_plan, read, rows_of, translate, write_source

MINI = Path(__file__).parents[3] / "training" / "data" / "mini"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a dataset that contains its pictures."""
    folder = tmp_path_factory.mktemp("built")
    write_source(folder / "in", rows_of(25))
    layout = LayoutPlan(images="bytes", shard_rows=9, licence="cc-by-4.0")
    plan = make_plan(folder, languages=("fr",), layout=layout)
    translate(plan)
    assemble(plan)
    return plan


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Build a dataset that only names its pictures, which are in `../in/pictures`."""
    folder = tmp_path_factory.mktemp("without")
    write_source(folder / "in", rows_of(25))
    plan = make_plan(folder, languages=("fr",), judged=False)
    translate(plan)
    assemble(plan)
    return plan


@pytest.fixture
def mini(tmp_path):
    """Write the first pictures of the mini dataset, in two languages and in its layout."""
    folder = tmp_path / "small"
    for path in MINI.glob("images/*.parquet"):
        table = pq.read_table(path)
        keep = [concept in CONCEPTS for concept in table["concept"].to_pylist()]
        write_table(folder / "images" / path.name, table.filter(keep))
    for path in MINI.glob("*/*/*.parquet"):
        if path.parent.name in ("en", "hi"):
            table = pq.read_table(path)
            keep = [concept in CONCEPTS for concept in table["concept"].to_pylist()]
            write_table(folder / path.relative_to(MINI), table.filter(keep))
    shutil.copyfile(MINI / "README.md", folder / "README.md")
    shutil.copyfile(MINI / "ATTRIBUTION.md", folder / "ATTRIBUTION.md")
    shutil.copytree(MINI / "LICENSES", folder / "LICENSES")
    return folder


# One of these concepts is flagged.
CONCEPTS = ("1f47d", "1f418", "1f52b", "1f354")


def write_table(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def change(plan, tmp_path, **values):
    """Copy a dataset, and change values of its first clean English row."""
    folder = Path(shutil.copytree(plan.folder / "dataset", tmp_path / "changed"))
    path = folder / "data/en/clean-00000.parquet"
    rows = pq.ParquetFile(path).read().to_pylist()
    schema = pq.read_schema(path)
    pq.write_table(pa.Table.from_pylist([rows[0] | values, *rows[1:]], schema=schema), path)
    return folder


@pytest.mark.parametrize("toxicity_free", [False, True])
def test_what_is_exported_reads_back_as_the_same_rows(built, tmp_path, toxicity_free):
    written = export_llava(built.folder, tmp_path, toxicity_free=toxicity_free)
    kinds = "clean-*" if toxicity_free else "*"
    assert [path.name for path in written.files] == ["tiny.en.json", "tiny.fr.json"]
    for path, count in written.files.items():
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
    (path,) = export_llava(built.folder / "dataset", tmp_path, languages=["fr"]).files
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
    with pytest.raises(ValueError, match=r"found none: name a finished dataset"):
        export_llava(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"language: expected one of en, fr, found 'hi'"):
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
    english, french = (json.loads(path.read_text(encoding="utf-8")) for path in written.files)
    said = {row["conversations"][0]["value"].replace("<image>", "").strip() for row in french}
    assert said == {"Décris cette image."}
    assert english[0]["conversations"][0]["value"].isascii()
    file.write_text("fr: Décris", encoding="utf-8")
    with pytest.raises(ValueError, match=r"requests.yaml: fr: expected a list of texts"):
        export_llava(built.folder, tmp_path / "out", requests=file)


# Pictures next to the JSON


def pictures_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.png")}


def test_pictures_lie_beside_the_json_under_the_names_that_it_uses(built, tmp_path):
    written = export_llava(built.folder, tmp_path)
    held = {r["image"]: r["picture"]["bytes"] for r in read(built.folder / "dataset", "images/*")}
    named = {row["image"] for path in written.files for row in json.loads(path.read_text())}
    assert pictures_in(tmp_path) == {name: held[name] for name in named}
    assert written.pictures == len(named) == 20
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert export_llava(built.folder, tmp_path) == written
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_exported_with_pictures_is_a_source_again(built, tmp_path):
    (path,) = export_llava(built.folder, tmp_path, languages=["fr"]).files
    source = SourcePlan("llava", str(path), images=str(tmp_path), task="caption")
    found = list(read_source(source))
    assert all(isinstance(each, Record) for each in found)
    rows = {row["id"]: row for row in read(built.folder / "dataset", "data/fr/*")}
    assert {r.row["id"]: r.row["image_sha256"] for r in found} == {
        key: row["image_sha256"] for key, row in rows.items()
    }


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_the_dataset_does_not_hold_come_from_a_folder_or_zip(
    without, tmp_path, packed
):
    place = without.folder.parent / "in" / "pictures"
    files = pictures_in(place)
    if packed:
        place = tmp_path / "pictures.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    out = tmp_path / "out"
    written = export_llava(without.folder, out, images=place)
    assert pictures_in(out) == files
    assert written.pictures == 25
    embedded = export_messages(without.folder, tmp_path / "rows", images=place)
    assert embedded.pictures == 25


def test_without_pictures_only_the_json_is_written(without, tmp_path):
    written = export_llava(without.folder, tmp_path, with_images=False)
    assert sorted(tmp_path.iterdir()) == sorted(written.files)
    assert written.pictures == 0
    assert json.loads((tmp_path / "tiny.en.json").read_text())[0]["image"] == "0/000000000.png"


def test_a_place_of_pictures_is_asked_for_where_it_is_needed_and_only_there(
    built, without, tmp_path
):
    out = tmp_path / "out"
    for write in (export_llava, export_messages):
        with pytest.raises(ValueError, match=r"name their place with --images FOLDER_OR_ZIP"):
            write(without.folder, out)
        with pytest.raises(
            ValueError, match=r"--images: expected none, because the dataset contains its"
        ):
            write(built.folder, out, images=tmp_path)
        with pytest.raises(
            FileNotFoundError,
            match=r"nowhere: expected a folder, \.zip or \.tar of images, found nothing",
        ):
            write(without.folder, out, images=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"--images: expected none with --no-images"):
        export_llava(without.folder, out, images=tmp_path, with_images=False)
    assert not out.exists()


@pytest.mark.parametrize("write", [export_llava, export_messages])
def test_a_missing_or_broken_picture_is_named_with_its_row(without, tmp_path, write):
    place = Path(shutil.copytree(without.folder.parent / "in" / "pictures", tmp_path / "pictures"))
    out = tmp_path / "out"
    lost = place / "3" / "000000003.png"
    data = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ValueError) as caught:
        write(without.folder, out, images=place)
    assert str(caught.value) == (
        f"{without.folder / 'dataset'}: row '000000003' (en): image: expected the picture "
        f"'3/000000003.png' in {place}, found none: add it, or name another place with --images"
    )
    for bad, words in ((data[:50], "Cannot read"), (b"<svg/>", "not a picture in a known")):
        lost.write_bytes(bad)
        with pytest.raises(ValueError, match=rf"row '000000003' \(en\): image: .*{words}") as found:
            write(without.folder, out, images=place)
        assert "\n" not in str(found.value)
    lost.unlink()
    (tmp_path / "elsewhere.png").write_bytes(data)
    lost.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(ValueError, match=r"row '000000003' \(en\): image: .*lies outside of"):
        write(without.folder, out, images=place)
    assert not list(out.glob("*.json"))
    assert not list(out.rglob("*.parquet"))
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize(
    "name",
    ["../x.png", "a/../../x.png", "/tmp/x.png", "", ".", "a\\..\\x.png", "C:\\x.png", "\\x.png"],
)
def test_no_name_leads_out_of_the_output_folder(built, tmp_path, name):
    assert not stays_inside(name)
    folder = change(built, tmp_path, image=name)
    out = tmp_path / "a" / "b" / "out"
    words = r"changed: row '000000000' \(en\): image: expected a path inside the folder"
    for write in (export_llava, export_messages):
        with pytest.raises(ValueError, match=words):
            write(folder, out)
    with pytest.raises(ValueError, match=words):
        export_llava(folder, out, with_images=False)
    assert not [path for path in tmp_path.rglob("x.png") if path.is_file()]
    assert not list(out.rglob("*.json"))


def test_names_inside_of_the_folder_are_taken():
    assert all(map(stays_inside, ("a.png", "a/b.png", "./a.png", "..a.png", "a..b/c", "猫.png")))


def test_links_in_the_output_folder_are_not_followed_out_of_it(built, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    other.mkdir()
    (out / "0").symlink_to(other)
    with pytest.raises(ValueError, match=r"row '000000000' \(en\): image: expected a path inside"):
        export_llava(built.folder, out)
    assert not list(other.iterdir())


def test_no_other_file_is_overwritten_by_a_picture(built, tmp_path):
    (tmp_path / "out" / "0").mkdir(parents=True)
    mine = tmp_path / "out" / "0" / "000000000.png"
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"expected no file .*000000000.png, found one with other"):
        export_llava(built.folder, tmp_path / "out")
    assert mine.read_text() == "mine"
    folder = change(built, tmp_path, image="./tiny.fr.json")
    table = pq.read_table(folder / "images/part-00000.parquet")
    names = pa.array(["./tiny.fr.json", *table["image"].to_pylist()[1:]])
    pq.write_table(table.set_column(1, "image", names), folder / "images/part-00000.parquet")
    with pytest.raises(ValueError, match=r"found './tiny.fr.json', the name of a JSON file"):
        export_llava(folder, tmp_path / "second")


def test_names_of_languages_and_datasets_stay_names(built, tmp_path):
    folder = Path(shutil.copytree(built.folder / "dataset", tmp_path / "copy"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"name": "../user/tiny"}))
    assert open_dataset(folder).name == "user-tiny"
    export_llava(folder, tmp_path / "out" / "in")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["in"]
    manifest["counts"]["languages"]["../fr"] = manifest["counts"]["languages"].pop("fr")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for write in (export_llava, export_messages):
        with pytest.raises(
            ValueError, match=r"language.*: expected a .*BCP-47 code.*, found '../fr'"
        ):
            write(folder, tmp_path / "out" / "in")


def test_a_row_without_a_text_is_named(built, tmp_path):
    folder = change(built, tmp_path, caption=None)
    for write in (export_llava, export_messages):
        with pytest.raises(
            ValueError, match=r"row '000000000' \(en\): expected texts, found \[None\]"
        ):
            write(folder, tmp_path / "out")


def test_a_full_disk_is_told_once(built, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"000000000.png: cannot be written: No space") as caught:
        export_llava(built.folder, tmp_path)
    assert str(caught.value).count("cannot be written") == 1


# Messages


@pytest.mark.parametrize("toxicity_free", [False, True])
def test_messages_have_every_row_with_its_picture_embedded(built, tmp_path, toxicity_free):
    written = export_messages(built.folder, tmp_path, toxicity_free=toxicity_free)
    kinds = "clean-*" if toxicity_free else "*"
    root = built.folder / "dataset"
    held = {row["image"]: row["picture"]["bytes"] for row in read(root, "images/*")}
    for lang in ("en", "fr"):
        (path,) = (path for path in written.files if path.parent.name == lang)
        assert path == tmp_path / lang / "train-00000.parquet"
        schema = pq.read_schema(path)
        assert schema.equals(MESSAGES_SCHEMA)
        assert schema.metadata == MESSAGES_SCHEMA.metadata
        found = pq.ParquetFile(path).read().to_pylist()
        rows = sorted(read(root, f"data/{lang}/{kinds}"), key=lambda row: row["id"])
        assert len(found) == len(rows) == written.files[path]
        for made, row in zip(found, rows, strict=True):
            assert (made["id"], made["lang"]) == (row["id"], lang)
            assert made["images"] == [{"bytes": held[row["image"]], "path": row["image"]}]
            question, answer = made["messages"]
            assert question["content"] in KNOWN_REQUESTS[lang]
            assert answer == {"role": "assistant", "content": row["caption"]}
    card = (tmp_path / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert str(tmp_path) not in card
    assert not list(tmp_path.glob(".export-*"))


def test_messages_load_by_config_whole_and_streamed(built, tmp_path):
    out = tmp_path / "out"
    written = export_messages(built.folder, out)
    counts = {path.parent.name: rows for path, rows in written.files.items()}
    assert get_dataset_config_names(str(out)) == ["all", "en", "fr"]
    for config, rows in {"all": sum(counts.values()), **counts}.items():
        cache = str(tmp_path / "cache")
        whole = load_dataset(str(out), config, split="train", cache_dir=cache)
        streamed = load_dataset(str(out), config, split="train", streaming=True)
        assert len(whole) == sum(1 for _ in streamed) == rows
        for data in (whole, streamed):
            assert data.features["images"] == List(ImageFeature())
            assert next(iter(data))["images"][0].size == (8, 8)
    by_files = load_dataset(
        "parquet", data_files=str(out / "fr" / "*.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert isinstance(by_files["train"][0]["images"][0], Image.Image)


def test_large_exports_are_sharded_and_an_earlier_one_is_replaced(built, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 1500)
    export_messages(built.folder, tmp_path)
    many = sorted(path.name for path in tmp_path.glob("fr/*"))
    assert len(many) > 2
    assert many[0] == "train-00000.parquet"
    monkeypatch.undo()
    written = export_messages(built.folder, tmp_path, languages=["fr"])
    assert [path.relative_to(tmp_path).as_posix() for path in written.files] == [
        "fr/train-00000.parquet"
    ]
    assert list(tmp_path.rglob("*.parquet")) == list(written.files)
    assert get_dataset_config_names(str(tmp_path)) == ["all", "fr"]


def test_a_folder_of_something_else_is_left_alone(built, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    words = r"expected an empty folder or an earlier export of messages, found README.md"
    with pytest.raises(ValueError, match=words):
        export_messages(built.folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_an_export_that_fails_leaves_the_earlier_one(built, tmp_path):
    out = tmp_path / "out"
    export_messages(built.folder, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    folder = change(built, tmp_path, image="gone.png")
    with pytest.raises(ValueError, match=r"expected the picture 'gone.png'"):
        export_messages(folder, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / ".export-killed").mkdir()
    export_messages(built.folder, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (out / ".export-killed").exists()


def test_rows_without_a_picture_have_an_empty_list(built, tmp_path):
    folder = change(built, tmp_path, image=None, image_sha256=None)
    (path,) = export_messages(folder, tmp_path / "out", languages=["en"]).files
    first, second, *_ = pq.ParquetFile(path).read().to_pylist()
    assert first["images"] == []
    assert len(second["images"]) == 1
    assert export_llava(folder, tmp_path / "llava", languages=["en"]).pictures == 19


def test_messages_take_requests_of_ones_own(built, tmp_path):
    file = tmp_path / "requests.yaml"
    file.write_text("fr: [Décris cette image.]\n", encoding="utf-8")
    export_messages(built.folder, tmp_path / "out", requests=file)
    asked = {
        lang: {r["messages"][0]["content"] for r in read(tmp_path / "out", f"{lang}/*")}
        for lang in ("en", "fr")
    }
    assert asked["fr"] == {"Décris cette image."}
    assert asked["en"] <= set(REQUESTS)


# The mini dataset


def mini_rows(folder, lang, split, state="*"):
    captions = [
        {**row, "said": [row["prompt"], row["text"]]}
        for row in read(folder, f"texts/{lang}/{split}-{state}.parquet")
    ]
    questions = [
        {**row, "said": [turn["content"] for turn in row["messages"]]}
        for row in read(folder, f"instruct/{lang}/{split}-{state}.parquet")
    ]
    return {row["id"]: row for row in captions + questions}


@pytest.mark.parametrize("state", ["*", "clean"])
def test_mini_is_exported_as_messages_by_language_and_split(mini, tmp_path, state):
    out = tmp_path / "out"
    written = export_messages(mini, out, toxicity_free=state == "clean")
    assert sorted(path.relative_to(out).as_posix() for path in written.files) == [
        f"{lang}/{split}-00000.parquet"
        for lang in ("en", "hi")
        for split in ("test", "train", "validation")
    ]
    held = {row["image"]: row["picture"]["bytes"] for row in read(mini, "images/*")}
    for path in written.files:
        lang, split = path.parent.name, path.name.split("-")[0]
        rows = mini_rows(mini, lang, split, state)
        made = pq.ParquetFile(path).read().to_pylist()
        assert [row["id"] for row in made] == sorted(rows)
        for row in made:
            (image,) = row["images"]
            assert image["bytes"] == held[rows[row["id"]]["image"]]
            assert [turn["content"] for turn in row["messages"]] == rows[row["id"]]["said"]
    assert (out / "ATTRIBUTION.md").read_bytes() == (MINI / "ATTRIBUTION.md").read_bytes()
    assert (out / "LICENSES" / "MIT.txt").is_file()
    loaded = load_dataset(str(out), "hi", split="test", streaming=True)
    assert next(iter(loaded))["images"][0].size == (64, 64)
    assert "license_link: LICENSES" in (out / "README.md").read_text()


def test_mini_is_exported_as_llava_with_its_own_questions(mini, tmp_path):
    written = export_llava(mini, tmp_path / "out", languages=["hi"])
    assert [path.name for path in written.files] == [
        f"small-{split}.hi.json" for split in ("train", "validation", "test")
    ]
    for path in written.files:
        rows = mini_rows(mini, "hi", path.name.split("-")[1].split(".")[0])
        for row in json.loads(path.read_text(encoding="utf-8")):
            said = [turn["value"] for turn in row["conversations"]]
            assert said[0].startswith("<image>\n")
            assert [said[0].removeprefix("<image>\n"), *said[1:]] == rows[row["id"]]["said"]
            picture = (tmp_path / "out" / row["image"]).read_bytes()
            held = rows[row["id"]].get("image_sha256")
            assert held is None or hashlib.sha256(picture).hexdigest() == held
            assert Image.open(io.BytesIO(picture)).size == (64, 64)
    assert (tmp_path / "out" / "ATTRIBUTION.md").is_file()


def test_a_folder_in_the_layout_of_mini_need_not_be_judged_but_needs_its_columns(mini, tmp_path):
    for path in sorted(mini.glob("*/*/*-flagged.parquet")):
        path.unlink()
    for path in sorted(mini.glob("*/*/*-clean.parquet")):
        os.replace(path, path.with_name(path.name.replace("-clean", "-0")))
    with pytest.raises(ValueError, match="expected a dataset with judges"):
        export_messages(mini, tmp_path / "out", toxicity_free=True)
    assert export_messages(mini, tmp_path / "out", languages=["en"]).pictures > 0
    write_table(mini / "texts" / "en" / "train-1.parquet", pa.table({"id": ["1"], "image": ["1"]}))
    with pytest.raises(ValueError, match=r"train-1.parquet: expected one column 'text', found"):
        export_messages(mini, tmp_path / "out")


def test_the_command_writes_messages(mini, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["data", "export", str(mini), "--format", "messages", "--languages", "hi"]
    assert main([*command, "--output", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{out}/hi/test-00000.parquet: ")
    assert said[-1].endswith(" different pictures")


@pytest.mark.parametrize(
    "name",
    ["../../escaped", "/tmp/escaped", "C:\\escaped", "..", "a\x1b[2J\n---\nb", "nul", "x" * 400],
)
def test_names_of_datasets_lead_nowhere(built, tmp_path, name):
    folder = Path(shutil.copytree(built.folder / "dataset", tmp_path / "a" / "b" / "in"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"name": name, "licence": name}))
    out = tmp_path / "a" / "b" / "out"
    for number, write in enumerate((export_llava, export_messages)):
        written = write(folder, out / str(number))
        assert written.files
        for path in written.files:
            assert path.resolve().is_relative_to(out)
            assert path.name.isprintable()
    card = (out / "1" / "README.md").read_text()
    assert card.count("\n---\n") == 1
    assert all(line.isprintable() for line in card.split("\n"))
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["in", "out"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_credits_of_a_linked_folder_stay_where_they_are(built, tmp_path):
    folder = Path(shutil.copytree(built.folder / "dataset", tmp_path / "in"))
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key.txt").write_text("a key")
    (folder / "LICENSES").symlink_to(tmp_path / "private")
    (folder / "ATTRIBUTION.md").symlink_to(tmp_path / "private" / "key.txt")
    export_llava(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("key.txt"))
    assert not (tmp_path / "out" / "ATTRIBUTION.md").exists()
