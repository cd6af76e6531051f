"""ImageStore in every kind of place: what it finds, what it refuses, and its limits."""

import io
import os
import pickle
import struct
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maya_vlm.training.common import places
from maya_vlm.training.common.images import ImageStore, StorageError
from maya_vlm.training.common.places import open_place


def png(color: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), color).save(buffer, "PNG")
    return buffer.getvalue()


FILES = {"a.png": png(), "deep/b.png": png("blue"), "text.png": b"a key", "empty.png": b""}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "pictures"
    for name, data in FILES.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def packed(folder, form):
    """Open the folder's images from a place of some kind."""
    if form == "folder":
        return folder
    path = folder.parent / f"pictures.{form}"
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in FILES.items():
                archive.writestr(name, data)
    elif form == "tar":
        with tarfile.open(path, "w") as archive:
            for name in FILES:
                archive.add(folder / name, f"./{name}")
    else:
        path = folder.parent / "dataset"
        (path / "images").mkdir(parents=True)
        rows = [{"image": name, "bytes": data} for name, data in FILES.items()]
        pq.write_table(pa.Table.from_pylist(rows), path / "images" / "0.parquet", row_group_size=2)
    return path


@pytest.mark.parametrize("form", ["folder", "zip", "tar", "tables"])
def test_every_place_gives_the_same_pictures_and_faults(folder, form):
    store = ImageStore(open_place(packed(folder, form)))
    for reader in (store, pickle.loads(pickle.dumps(store))):
        for name in ("a.png", "./a.png"):
            assert reader.load(name).getpixel((0, 0)) == (255, 0, 0)
        for name in ("deep/b.png", "deep\\b.png", "./deep/../deep/b.png"):
            assert reader.load(name).getpixel((0, 0)) == (0, 0, 255)
        for name, reason in {
            "gone.png": "No such image file",
            "A.PNG": "No such image file",
            "text.png": "not a picture in a known format",
            "empty.png": "empty",
            "../x.png": "No such image file|lies outside",
            "/etc/passwd": "No such image file|lies outside",
            "a\0.png": "No such image file|null",
            "x" * 5000: "No such image file|too long",
        }.items():
            with pytest.raises((ValueError, OSError), match=reason) as error:
                reader.load(name)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 6000
            assert not isinstance(error.value, StorageError)


def test_a_file_by_its_address_or_whole_path(folder):
    store = ImageStore(open_place(folder))
    for name in (str(folder / "a.png"), f"file://{folder}/a.png"):
        assert store.load(name).size == (5, 3)
    with pytest.raises(ValueError, match="lies outside"):
        store.load(f"file://{folder.parent}/other.png")


def test_links_are_followed_only_where_that_is_allowed(folder):
    (folder.parent / "out.png").write_bytes(png())
    os.symlink("../out.png", folder / "link.png")
    os.symlink("loop.png", folder / "loop.png")
    os.symlink("a.png", folder / "inside.png")
    closed, follows = (ImageStore(open_place(folder, follow_links=f)) for f in (False, True))
    assert follows.load("link.png").size == (5, 3)
    with pytest.raises(ValueError, match=r"lies outside of .* allow such links"):
        closed.load("link.png")
    for store in (closed, follows):
        assert store.load("inside.png").size == (5, 3)
        with pytest.raises((ValueError, OSError), match="link"):
            store.load("loop.png")
        with pytest.raises(ValueError, match="lies outside"):
            store.load("../out.png")


def test_what_is_no_file_or_too_large_is_refused_before_it_is_read(folder):
    os.mkfifo(folder / "pipe.png")
    os.symlink("/dev/zero", folder / "device.png")
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    store = ImageStore(open_place(folder, follow_links=True))
    for name, reason in {
        "pipe.png": "not a regular file",
        "device.png": "not a regular file",
        "deep": "not a regular file",
        "sparse.png": "bytes, found 1099511627776",
    }.items():
        with pytest.raises(ValueError, match=reason):
            store.load(name)


@pytest.mark.parametrize("lies", [False, True])
def test_a_zip_bomb_is_refused_by_its_declared_and_by_its_real_size(tmp_path, monkeypatch, lies):
    monkeypatch.setattr(places, "MAX_BYTES", 10_000)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        archive.writestr("bomb.png", bytes(1 << 22))
    if lies:
        data = bytearray(path.read_bytes())
        for signature, size in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
            struct.pack_into("<I", data, data.rfind(signature) + size, 100)
        path.write_bytes(bytes(data))
    store = ImageStore(open_place(path))
    assert store.load("a.png").size == (5, 3)
    with pytest.raises(
        ValueError, match="CRC" if lies else "at most 10,000 bytes, found 4,194,304"
    ):
        store.load("bomb.png")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone", None, r"expected a folder, \.zip or \.tar of images, found nothing"),
        ("gone.zip", None, r"expected a folder, \.zip or \.tar of images, found nothing"),
        ("a.zip", b"PK\x03\x04 cut", "found a file that is not a zip"),
        ("a.jpg", b"text", "found a file that is not a zip"),
        ("a.tar", b"\x1f\x8b packed", "expected a complete, uncompressed tar"),
        ("a.tgz", b"\x1f\x8b packed", "expected a complete, uncompressed tar"),
    ],
)
def test_a_place_that_is_none_is_told_at_once(tmp_path, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{name}: .*{reason}") as error:
        open_place(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_member_of_an_archive_that_is_no_file_is_not_there(folder):
    os.symlink("/etc/passwd", folder / "link.png")
    path = folder.parent / "links.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(folder / "link.png", "link.png")
    with pytest.raises(FileNotFoundError, match="No such image file"):
        ImageStore(open_place(path)).load("link.png")


def test_a_pipe_among_tables_of_pictures_is_refused(folder):
    place = packed(folder, "tables")
    os.mkfifo(place / "images" / "1.parquet")
    with pytest.raises(ValueError, match=r"1\.parquet: expected an ordinary file, found a"):
        open_place(place)
