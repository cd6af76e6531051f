"""Pictures of every format, cut, flipped, too large, of another sort, or no files at all."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from .case import Case, Expect, Place
from .world import damaged

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "TGA")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F")
ADDRESSES = (
    "http://127.0.0.1:9/x.png",
    "http://localhost:9/x.png",
    "http://169.254.169.254/latest/meta-data",
    "http://10.0.0.1/x.png",
    "http://[::1]:9/x.png",
    "http://[::ffff:127.0.0.1]:9/x.png",
    "http://[64:ff9b::a9fe:a9fe]/x.png",
    "http://[64:ff9b:1::a9fe:a9fe]/x.png",
    "http://[fec0::1]/x.png",
    "http://0x7f.1:9/x.png",
    "http://2130706433:9/x.png",
    "http://user@127.0.0.1:9/x.png",
    "http://127.0.0.1:99999/x.png",
    "http:///x.png",
    "http://\x1b[2J/x.png",
    "https://127.0.0.1:9/" + "x" * 3000,
    "file:///etc/passwd",
    "ftp://127.0.0.1/x.png",
    "data:image/png;base64,AAAA",
    "data:image/png;base64," + "%" * 3000,
)
Writer = Callable[[Place, Path], object]


def cases(chance: random.Random) -> Iterator[Case]:
    """Pictures, each through one of the commands that open pictures."""
    while True:
        if chance.random() < 0.1:
            yield _address(chance)
            continue
        about, expect, suffix, write = chance.choice(_SORTS)(chance)
        commands = [_validate, _validate, _validate, _chat, _zip, _build, _train, _train, _evaluate]
        command = chance.choice(commands)
        if command is _chat and about == "link out":
            # A link that the user names is the user's; one that a row names is a stranger's.
            command = _validate
        yield command(f"{command.__name__[1:]} {about}", expect, f"bad{suffix}", write)


# ------------------------------------------------------------------------------ commands


def _row(name: str) -> dict[str, Any]:
    turns = [("human", "<image>\nWhat is shown?"), ("gpt", "A small red boat on a blue lake.")]
    said = [{"from": who, "value": text} for who, text in turns]
    return {"id": "row-1", "image": name, "conversations": said}


def _write_rows(place: Place, name: str, write: Writer, good: int = 0) -> Path:
    pictures = place.input / "pictures"
    pictures.mkdir()
    write(place, pictures / name)
    rows = [_row(name)]
    for number in range(good):
        (pictures / f"good-{number}.png").write_bytes(_picture("PNG"))
        rows.append({**_row(f"good-{number}.png"), "id": f"good-{number}"})
    return place.write("rows.json", json.dumps(rows))


def _validate(about: str, expect: Expect, name: str, write: Writer) -> Case:
    def prepare(place: Place) -> list[str]:
        path = _write_rows(place, name, write)
        return ["data", "validate", str(path), "--images", str(path.parent / "pictures")]

    # Whoever validates is told; language: rows need not say theirs.
    return Case(
        about,
        lambda p: [*prepare(p), "--language", "en"],
        expect,
        (name, "row-1"),
        rows=1,
        seconds=15,
    )


def _zip(about: str, expect: Expect, name: str, write: Writer) -> Case:
    def prepare(place: Place) -> list[str]:
        path = _write_rows(place, name, write)
        source = path.parent / "pictures" / name
        with zipfile.ZipFile(place.input / "pictures.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            if source.is_file() and source.stat().st_size < 2**28 and not source.is_symlink():
                archive.write(source, name)
        return ["data", "validate", str(path), "--images", str(place.input / "pictures.zip")]

    return Case(
        about,
        lambda p: [*prepare(p), "--language", "en"],
        expect,
        (name, "row-1"),
        rows=1,
        seconds=15,
    )


def _chat(about: str, expect: Expect, name: str, write: Writer) -> Case:
    def prepare(place: Place) -> list[str]:
        place.input.mkdir(exist_ok=True)
        write(place, place.input / name)
        question = ["What is shown?", "--model", str(place.world.model), "--max-new-tokens", "2"]
        return ["chat", str(place.input / name), *question]

    return Case(about, prepare, expect, (name,), answers=True)


def _build(about: str, expect: Expect, name: str, write: Writer) -> Case:
    def prepare(place: Place) -> list[str]:
        path = _write_rows(place, name, write, good=2)
        source = {"kind": "llava", "path": str(path), "images": str(path.parent / "pictures")}
        plan = {
            "name": "attack",
            "output_dir": str(place.output),
            "source": {**source, "language": "en"},
            "layout": {"images": "bytes"},
        }
        return ["data", "build", str(place.write("plan.yaml", yaml.safe_dump(plan)))]

    # A bad picture is one row's: the build lists it and goes on, or refuses.
    return Case(about, prepare, "either" if expect == "refused" else expect, (name, "row-1"))


def _train(about: str, expect: Expect, name: str, write: Writer) -> Case:
    def prepare(place: Place) -> list[str]:
        path = _write_rows(place, name, write, good=5)
        recipe = place.world.recipe(output_dir=str(place.output))
        source = {"path": str(path), "image_folder": str(path.parent / "pictures")}
        stage = recipe["stages"][0] | {"data": [source], "on_bad_row": "skip"}
        # Both of two steps read all six pictures.
        stage |= {"batch_size": 6, "group_size": 1}
        recipe["stages"] = [stage]
        return ["train", str(place.write("recipe.yaml", yaml.safe_dump(recipe)))]

    # A run that is told to skip ends well.
    return Case(about, prepare, "either" if expect == "either" else "accepted", (name, "row-1"))


def _evaluate(about: str, expect: Expect, name: str, write: Writer) -> Case:
    """A dataset of questions about three pictures, one of which is bad."""

    def prepare(place: Place) -> list[str]:
        place.input.mkdir(exist_ok=True)
        path = place.input / name
        write(place, path)
        small = path.is_file() and not path.is_symlink() and path.stat().st_size < 2**26
        data = path.read_bytes() if small else b""
        folder = place.input / "questions"
        shutil.copytree(place.world.questions, folder)
        table = pq.read_table(folder / "images" / "test.parquet")
        pictures = table.column("picture").to_pylist()
        pictures[1] = {"bytes": data, "path": name}
        cells = pa.array(pictures, table.schema.field("picture").type)
        at = table.schema.get_field_index("picture")
        pq.write_table(table.set_column(at, "picture", cells), folder / "images" / "test.parquet")
        options = ["--data", str(folder), "--output", str(place.output), "--no-baselines"]
        return ["evaluate", str(place.world.model), *options]

    return Case(about, prepare, expect, ("questions", "picture '"), seconds=60)


def _address(chance: random.Random) -> Case:
    """An address that nobody outside of this machine and its network can ask: an argument, or a row's."""
    address = chance.choice(ADDRESSES)
    command = chance.choice([_validate, _build, _train, _train, None])
    if command is not None:
        about = f"{command.__name__[1:]} {address!r:.60}"
        return command(about, "refused", address, lambda place, path: None)
    # Control characters are shown as escapes; a data URI is too long to be shown.
    names = (address[:40], address[7:25], "data: URI", "x1b[2J")

    def prepare(place: Place) -> list[str]:
        return ["chat", address, "What is shown?", "--model", str(place.world.model)]

    return Case(f"chat {address!r:.60}", prepare, "refused", names, answers=True)


# ------------------------------------------------------------------------------ pictures


@functools.cache
def _picture(format: str, mode: str = "RGB", size: tuple[int, int] = (24, 20)) -> bytes:
    noise = random.Random(size[0]).randbytes(size[0] * size[1] * 3)
    picture = Image.frombytes("RGB", size, noise)
    if mode in ("I;16", "F", "I"):
        picture = picture.convert("L").convert("I" if mode == "I;16" else mode)
    picture = picture.convert("RGBA").convert(mode) if mode == "LA" else picture.convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return buffer.getvalue()


def _bytes(data: bytes) -> Writer:
    return lambda place, path: path.write_bytes(data)


def _good(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    format = chance.choice(["PNG", "JPEG", "GIF", "WEBP", "BMP"])
    return f"good {format}", "accepted", _suffix(format), _bytes(_picture(format))


def _suffix(format: str) -> str:
    return {"JPEG": ".jpg", "TIFF": ".tif"}.get(format, f".{format.lower()}")


def _damaged(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    format = chance.choice(FORMATS)
    data = _picture(format)
    way, found = damaged(chance, data)
    known = (
        format in ("PNG", "JPEG", "GIF") and way.startswith("cut") and len(found) < len(data) / 2
    )
    refused = known or way in ("empty", "html", "lfs")
    return f"{format} {way}", "refused" if refused else "either", _suffix(format), _bytes(found)


def _mode(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    mode = chance.choice(MODES)
    format = "PNG" if mode in ("1", "L", "LA", "P", "RGBA", "I;16") else "TIFF"
    return f"{format} of mode {mode}", "either", _suffix(format), _bytes(_picture(format, mode))


def _png(width: int, height: int, data: bytes, mode: int = 0) -> bytes:
    """A PNG that declares this size, of this compressed data."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    head = struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _zeros(size: int) -> bytes:
    packer, whole = zlib.compressobj(1), []
    while size > 0:
        whole.append(packer.compress(bytes(min(size, 2**22))))
        size -= 2**22
    return b"".join([*whole, packer.flush()])


def _sized(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    width, height = chance.choice(
        [(20000, 1), (1, 60000), (30000, 30000), (2**31 - 1, 2**31 - 1), (0, 0), (0, 5)]
    )
    whole = width * height < 10**6
    data = _zeros((width + 1) * height) if whole else zlib.compress(bytes(1000))
    return f"PNG of {width}x{height}", "refused", ".png", _bytes(_png(width, height, data))


def _bomb(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    sort = chance.choice(["png", "gif", "gz text", "icc"])
    if sort == "png":
        side = chance.choice([13000, 20000])
        return (
            f"bomb {side}",
            "refused",
            ".png",
            _bytes(_png(side, side, _zeros((side + 1) * side))),
        )
    if sort == "gif":
        frame = b"\x2c\0\0\0\0\xff\xff\xff\xff\0\x02\x02\x4c\x01\0"
        head = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff"
        return "bomb gif", "refused", ".gif", _bytes(head + frame * 1000 + b";")
    if sort == "icc":
        name = b"iCCPx\0\0" + _zeros(2**27)
        profile = struct.pack(">I", len(name) - 4) + name + struct.pack(">I", zlib.crc32(name))
        good = _picture("PNG")
        return "bomb icc", "either", ".png", _bytes(good[:33] + profile + good[33:])
    return "gz as png", "refused", ".png", _bytes(gzip.compress(bytes(2**24)))


def _exif(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    size = chance.choice([4, 40, 4000])
    exif = b"Exif\0\0" + chance.choice([b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0"])
    exif += chance.randbytes(size)
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, "JPEG", exif=exif)
    return f"EXIF of {size} random bytes", "either", ".jpg", _bytes(buffer.getvalue())


def _foreign(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(x) print\n%%EOF\n"
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect/></svg>"
    name, data = chance.choice(
        [
            ("EPS", eps),
            ("SVG", svg),
            ("HTML", b"<!DOCTYPE html><html>Not found</html>"),
            ("text", b"-----BEGIN PRIVATE KEY-----\nabc\n"),
            ("0 bytes", b""),
            ("WMF", b"\xd7\xcd\xc6\x9a" + bytes(60)),
            ("FITS", b"SIMPLE  =                    T" + bytes(3000)),
            ("PDF", b"%PDF-1.4\n%%EOF"),
            ("random bytes", chance.randbytes(500)),
        ]
    )
    return f"{name} as PNG", "refused", ".png", _bytes(data)


def _no_file(chance: random.Random) -> tuple[str, Expect, str, Writer]:
    def sparse(place: Place, path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(2**32)

    ways: dict[str, Writer] = {
        "pipe": lambda place, path: os.mkfifo(path),
        "device": lambda place, path: path.symlink_to("/dev/zero"),
        "sparse file": sparse,
        "link out": lambda place, path: path.symlink_to(place.secret),
        "link to itself": lambda place, path: path.symlink_to(path.name),
        "link to nothing": lambda place, path: path.symlink_to("gone"),
        "folder": lambda place, path: path.mkdir(),
        "no file": lambda place, path: None,
    }
    name = chance.choice(sorted(ways))
    return name, "refused", ".png", ways[name]


_SORTS = (
    _good,
    _damaged,
    _damaged,
    _damaged,
    _mode,
    _sized,
    _bomb,
    _exif,
    _foreign,
    _no_file,
    _no_file,
)
