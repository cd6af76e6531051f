"""Datasets as users have them: LLaVA's repositories, images with metadata, revisions, archives beside files."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.data.dataset.layout import assemble
from maya_vlm.training.data.dataset.plan import LayoutPlan
from maya_vlm.training.data.sources.step import SourcePlan, read_source
from maya_vlm.training.recipe import DataRecipe
from maya_vlm.training.rows.tables import find_files
from tests.data.tiny_build import make_plan, rows_of, translate, write_source
from tests.helpers.hub_server import HubServer, Repository

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("00/a.png", "00/b.png", "01/c.png")

FROM_HUB = """
import json, sys
from maya_vlm.training.data.sources.plan import SourcePlan
from maya_vlm.training.data.sources.rows import read_source
from maya_vlm.training.data.sources.records import Record
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.recipe import DataRecipe

def learned(path, **more):
    try:
        data = GroupData([DataRecipe(path, language="en", **more)])
        pictures = []
        for index in range(len(data)):
            row = data.conversation(index)
            pictures += [data.load_image(0, key, row.id).size[0] for key in row.images]
        return pictures
    except (ValueError, OSError) as error:
        return str(error)

def built(path, **more):
    rows = list(read_source(SourcePlan("hub", path, language="en", **more), decode=True))
    return [r.row["id"] if isinstance(r, Record) and r.row["image_sha256"] else str(r) for r in rows]

found = {
    "archive": learned("user/llava", data_files="llava.json", image_folder="images.zip"),
    "only archive": learned("user/llava", data_files="llava.json"),
    "revision": learned("user/llava", data_files="llava.json", revision="v1"),
    "folder": learned("user/files", data_files="rows.jsonl", image_folder="pictures"),
    "files": learned("user/files", data_files="rows-by-path.jsonl"),
    "imagefolder": learned("user/imagefolder"),
    "no choice": learned("user/llava"),
    "no file": learned("user/llava", data_files="other.json"),
    "no revision": learned("user/llava", data_files="llava.json", revision="v9"),
    "no pictures": learned("user/llava", data_files="llava.json", image_folder="other.zip"),
    "no dataset": learned("user/other", data_files="llava.json"),
    "built": built("user/llava", data_files="llava.json", images="images.zip"),
    "built at a revision": built("user/llava", data_files="llava.json", images="images.zip", revision="v1"),
    "built imagefolder": built("user/imagefolder"),
}
print("FOUND" + json.dumps(found))
"""


def png(width: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, 3)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = {name: png(width) for width, name in enumerate(NAMES, 5)}


def row(name: str) -> dict:
    said = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    return {"id": name, "image": name, "conversations": said}


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in PICTURES.items():
            file.writestr(name, data)
    return buffer.getvalue()


def lines(rows) -> bytes:
    return "\n".join(json.dumps(each) for each in rows).encode()


def test_datasets_of_the_hub_by_their_files(tmp_path):
    rows = [row(name) for name in NAMES]
    with HubServer() as hub:

        def commit(name: str, files: dict[str, bytes]) -> str:
            repository = hub.repositories.setdefault(("dataset", name), Repository("dataset", name))
            return repository.commit("main", files, "m")

        old = {"llava.json": json.dumps(rows[:2]).encode(), "images.zip": archive()}
        first = commit("user/llava", old)
        commit("user/llava", {**old, "llava.json": json.dumps(rows).encode()})
        hub.repositories["dataset", "user/llava"].tags["v1"] = (first, "")
        commit(
            "user/files",
            {
                "rows.jsonl": lines(rows),
                "rows-by-path.jsonl": lines(row(f"pictures/{name}") for name in NAMES),
                **{f"pictures/{name}": data for name, data in PICTURES.items()},
            },
        )
        metadata = [{"file_name": name, "text": "a boat"} for name in NAMES]
        commit(
            "user/imagefolder",
            {
                "train/metadata.jsonl": lines(metadata),
                **{f"train/{name}": data for name, data in PICTURES.items()},
            },
        )
        done = subprocess.run(
            [sys.executable, "-c", FROM_HUB],
            env={**os.environ, **hub.environment(tmp_path / "hf"), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("FOUND")[1])
    for name in ("archive", "only archive", "folder", "files"):
        assert found[name] == [5, 6, 7], name
    assert sorted(found["imagefolder"]) == [5, 6, 7]
    assert found["revision"] == [5, 6]
    assert "name one of its files: data_files: llava.json" in found["no choice"]
    assert "expected a file 'other.json', found images.zip, llava.json" in found["no file"]
    assert "revision" in found["no revision"]
    assert (
        "other.zip: image_folder: expected a folder or archive, found none" in found["no pictures"]
    )
    assert "user/other: no such dataset" in found["no dataset"]
    assert not [text for text in found.values() if "\n" in text]
    assert found["built"] == list(NAMES)
    assert found["built at a revision"] == list(NAMES[:2])
    assert found["built imagefolder"] == [f"train/{name.removesuffix('.png')}" for name in NAMES]


def local(tmp_path, **more) -> GroupData:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(row(name) for name in NAMES))
    return GroupData([DataRecipe(str(path), language="en", **more)])


def test_an_archive_or_folder_of_links_beside_a_file_of_rows(tmp_path):
    (tmp_path / "images.zip").write_bytes(archive())
    links = tmp_path / "links"
    for name, data in PICTURES.items():
        (tmp_path / "blobs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "blobs" / name).write_bytes(data)
        (links / name).parent.mkdir(parents=True, exist_ok=True)
        (links / name).symlink_to(tmp_path / "blobs" / name)
    for place in ("images.zip", "links"):
        data = local(tmp_path, image_folder=str(tmp_path / place))
        sizes = [data.load_image(0, data.conversation(i).images[0], "r").size[0] for i in range(3)]
        assert sizes == [5, 6, 7]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            {"image_folder": "{}/gone"},
            r"gone: expected a folder, \.zip or \.tar of images, found nothing",
        ),
        (
            {"split": "validation"},
            "split: expected none, because all rows of a single file are read",
        ),
        ({"split": "train[:1]"}, "split: expected none"),
        ({"config": "en"}, "config: expected none"),
        ({"limit": -1}, "limit: expected 1 image or more, found -1"),
        ({"limit": 0}, "limit: expected 1 image or more, found 0"),
        ({"tasks": {"chat": float("nan")}}, r"tasks\.chat: expected how often .* found nan"),
        ({"tasks": {"chat": -1.0}}, r"tasks\.chat: expected how often .* found -1"),
        ({"columns": {"picture": "image"}}, "columns: expected some of image, text, turns"),
        ({"columns": {"image": "photo"}}, r"columns\.image: expected one of the columns"),
        ({"data_files": "x.json"}, "data_files: expected a folder or Hub dataset"),
    ],
)
def test_what_a_recipe_asks_in_vain_is_told_by_its_key(tmp_path, more, reason):
    more = {k: v.format(tmp_path) if isinstance(v, str) else v for k, v in more.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as error:
        local(tmp_path, **more)
    assert "\n" not in str(error.value)


def test_a_built_dataset_is_read_before_it_has_a_card(tmp_path):
    plan = make_plan(tmp_path, languages=("fr",), judged=False, layout=LayoutPlan(images="bytes"))
    write_source(tmp_path / "in", rows_of(3))
    translate(plan)
    assemble(plan, progress=False)
    folder = str(plan.folder / "dataset")
    data = GroupData([DataRecipe(folder)])
    assert len(data) == 6
    assert [data.load_image(0, key, "row").size for key in data.conversation(0).images]
    assert len(GroupData([DataRecipe(folder, config="fr")])) == 3
    assert [Path(file).parent.name for file in find_files(folder).rows] == ["en", "fr"]
    rows = list(read_source(SourcePlan("hub", folder, images=folder), decode=True))
    assert [row.row["lang"] for row in rows] == ["en"] * 3 + ["fr"] * 3
    for more, reason in (
        ({"config": "de"}, "config: expected one of all, "),
        ({"split": "test"}, "split: "),
    ):
        with pytest.raises(ValueError, match=reason):
            GroupData([DataRecipe(folder, **more)])
    manifest = Path(folder, "manifest.json")
    manifest.write_text(manifest.read_text().replace("data/*/*.parquet", "../../*.parquet"))
    with pytest.raises(ValueError, match=r"manifest.json: configs: expected files below"):
        GroupData([DataRecipe(folder)])
