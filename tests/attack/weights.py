"""Weights: safetensors with odd headers, cut, or another sort of file under their name."""

from __future__ import annotations

import json
import pickle
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .case import Case, Expect, Place
from .configs import use
from .world import ODD, damaged, deep

HEADERS = (
    "gone",
    "renamed",
    "offsets",
    "overlap",
    "shape",
    "dtype",
    "name",
    "entry",
    "metadata",
    "deep",
    "length",
    "long",
)


def cases(chance: random.Random) -> Iterator[Case]:
    """Folders with one odd file of weights, of a Maya or of a base."""
    yield _base("good", lambda folder: None, "accepted")
    while True:
        name, change, expect = chance.choice([_header, _header, _bytes, _other])(chance)
        if chance.random() < 0.25:
            yield _base(name, change, "refused" if expect == "refused" else "either")
        elif chance.random() < 0.2:
            yield _convert(name, change)
        else:
            yield use(chance, name, change, expect, "model")


def _base(about: str, change: Any, expect: Expect) -> Case:
    """A decoder with these weights is trained."""

    def prepare(place: Place) -> list[str]:
        import shutil

        folder = place.input / "language"
        shutil.copytree(place.world.training / "bases" / "language", folder)
        change(folder)
        recipe = place.world.recipe(output_dir=str(place.output))
        recipe["model"]["language_model"] = str(folder)
        return ["train", str(place.write("recipe.yaml", yaml.safe_dump(recipe)))]

    return Case(f"base {about}", prepare, expect, ("language",))


def _convert(about: str, change: Any) -> Case:
    """A Maya with these weights is converted back to the original's form."""

    def prepare(place: Place) -> list[str]:
        import shutil

        folder = place.input / "model"
        shutil.copytree(place.world.model, folder)
        change(folder)
        return ["convert", str(folder), str(place.output), "--to", "llava_cohere"]

    return Case(f"convert {about}", prepare, "either", ("model",))


def _split(folder: Path) -> tuple[dict[str, Any], bytes]:
    data = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _header(chance: random.Random) -> tuple[str, Any, Expect]:
    sort, seed, odd = chance.choice(HEADERS), chance.randrange(2**32), chance.choice(ODD)

    def change(folder: Path) -> None:
        draw = random.Random(seed)
        header, rest = _split(folder)
        names = sorted(name for name in header if name != "__metadata__")
        name, other = draw.sample(names, 2)
        entry = header[name]
        text = None
        if sort == "gone":
            del header[name]
        elif sort == "renamed":
            header["a\x1b[2J\nb"] = header.pop(name)
        elif sort == "offsets":
            entry["data_offsets"] = draw.choice([[0, 10**18], [-8, 0], ["0", "8"], [8, 0], 1, odd])
        elif sort == "overlap":
            same = [n for n in names if header[n]["shape"] == entry["shape"] and n != name]
            other = same[0] if same else other
            entry |= header[other]
        elif sort == "shape":
            entry["shape"] = draw.choice([[2**40, 2**40], [-1], ["4"], [], [0], 4, odd])
        elif sort == "dtype":
            entry["dtype"] = draw.choice(["F8", "I64", "float32", 4, None, "C64", odd])
        elif sort == "name":
            header[draw.choice(["", "../x", "x" * 5000, "\0"])] = header.pop(name)
        elif sort == "entry":
            header[name] = odd
        elif sort == "metadata":
            header["__metadata__"] = odd
        elif sort == "deep":
            text = deep(50_000)
        data = (text or json.dumps(header)).encode()
        size = {"length": 2**62, "long": len(data) + 10**9}.get(sort, len(data))
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + data + rest)

    # What is gone may be tied to another; other metadata is nobody's concern.
    either = sort in ("gone", "metadata") or (sort == "entry" and odd is None)
    return f"header {sort} ({seed})", change, "either" if either else "refused"


def _bytes(chance: random.Random) -> tuple[str, Any, Expect]:
    seed = chance.randrange(2**32)

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(damaged(random.Random(seed), path.read_bytes())[1])

    return f"bytes ({seed})", change, "either"


class _Program:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("true",)


def _other(chance: random.Random) -> tuple[str, Any, Expect]:
    sort = chance.choice(["pickle", "bin pickle", "bin empty", "no weights", "index", "index deep"])

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        if sort == "pickle":
            path.write_bytes(pickle.dumps(_Program()))
            return
        data = path.read_bytes()
        path.unlink()
        if sort == "bin pickle":
            (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Program()))
        elif sort == "bin empty":
            import torch

            torch.save({}, folder / "pytorch_model.bin")
        elif sort.startswith("index"):
            (folder / "model-00001-of-00001.safetensors").write_bytes(data)
            shard = chance.choice(["../../secret.txt", "gone.safetensors", "a\0b", 1, None])
            index = json.dumps({"weight_map": {"lm_head.weight": shard}})
            text = deep(50_000) if sort == "index deep" else index
            (folder / "model.safetensors.index.json").write_text(text)

    return f"file {sort}", change, "refused"
