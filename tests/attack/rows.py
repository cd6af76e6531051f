"""Rows and their files: JSON, JSON lines, CSV and parquet with odd values, encodings and shapes."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .case import Case, Expect, Fault, Outcome, Place
from .world import ODD, changed, damaged, deep, dotted, paths_of

ROWS = 5


def cases(chance: random.Random) -> Iterator[Case]:
    """Odd rows and odd files, validated and trained on."""
    for shape in (_llava, _messages):
        good = _dump([shape(number) for number in range(ROWS)], "jsonl")
        yield _validate("good", "rows.jsonl", good, expect="accepted", rows=ROWS)
        yield _train("good", "rows.jsonl", good, False, expect="accepted", check=_skipped(0))
    while True:
        make = chance.choice([_odd_row, _odd_row, _odd_row, _odd_file, _odd_file, _odd_tables])
        yield make(chance)


# ------------------------------------------------------------------------------ good rows


def _llava(number: int) -> dict[str, Any]:
    turns = [("human", "<image>\nWhat is shown?"), ("gpt", f"A small red boat, number {number}.")]
    return {
        "id": f"row-{number}",
        "image": f"{number}.png",
        "lang": "en",
        "conversations": [{"from": who, "value": text} for who, text in turns],
    }


def _messages(number: int) -> dict[str, Any]:
    said = _llava(number)["conversations"]
    roles = ("user", "assistant")
    turns = [{"role": r, "content": t["value"]} for r, t in zip(roles, said, strict=True)]
    turns[0]["content"] = "What is shown?"
    row = {"id": f"row-{number}", "lang": "en", "images": [f"{number}.png"], "messages": turns}
    return row


def _turns(row: dict[str, Any]) -> list[Any]:
    return row["conversations"] if "conversations" in row else row["messages"]


def _pictures(place: Place) -> Path:
    from tests.helpers.tiny_maya import tiny_picture

    folder = place.input / "pictures"
    folder.mkdir(exist_ok=True)
    for number in range(ROWS):
        tiny_picture(number).save(folder / f"{number}.png")
    return folder


# ------------------------------------------------------------------------------ commands


def _validate(about: str, name: str, data: bytes, **known: Any) -> Case:
    def prepare(place: Place) -> list[str]:
        path = place.write(name, data)
        return ["data", "validate", str(path), "--images", str(_pictures(place))]

    return Case(f"validate {about}", lambda p: [*prepare(p), "--language", "en"], **known)


def _train(about: str, name: str, data: bytes, skip: bool, **known: Any) -> Case:
    def prepare(place: Place) -> list[str]:
        path = place.write(name, data)
        source = {"path": str(path), "image_folder": str(_pictures(place))}
        recipe = place.world.recipe(output_dir=str(place.output))
        stage = recipe["stages"][0] | {"data": [source], "batch_size": 6, "group_size": 1}
        stage["on_bad_row"] = "skip" if skip else "stop"
        recipe["stages"] = [stage]
        return ["train", str(place.write("recipe.yaml", yaml.safe_dump(recipe)))]

    return Case(f"train {'skip' if skip else 'stop'} {about}", prepare, **known)


def _skipped(bad: int) -> Any:
    """A check: a run that skips lists every bad row once."""

    def check(place: Place, outcome: Outcome) -> list[Fault]:
        # The run's folder has a copy of its last stage's list.
        lists = list(place.output.glob("*/bad_rows.jsonl"))
        listed = sum(len(path.read_bytes().splitlines()) for path in lists)
        if outcome.code == 0 and listed != bad:
            return [Fault("counts do not add up", f"{bad} rows are bad, {listed} are listed")]
        return []

    return check


# ------------------------------------------------------------------------------ kinds of cases


def _odd_row(chance: random.Random) -> Case:
    """One row with an odd value; the others are good."""
    shape = chance.choice([_llava, _messages])
    rows = [shape(number) for number in range(ROWS)]
    at = chance.randrange(ROWS)
    sort = chance.choice(["value", "value", "value", "gone", "marks", "ids", "roles"])
    expect: Expect = "either"
    bad: int | None = None
    about = f"{shape.__name__[1:]} {sort}"
    if sort == "value":
        path = chance.choice(paths_of(rows[at]))
        value = chance.choice(ODD)
        rows[at] = changed(rows[at], path, value)
        about += f" {dotted(path)} = {value!r:.40}"
        content = path[0] in ("conversations", "messages")
        if (content and not isinstance(value, str)) or value in ("", " "):
            expect = "refused" if content else "either"
        if path[:2] == ("messages", 0) and value in ("", " "):
            # Whoever asks may show a picture and say nothing.
            expect = "either"
        if value == "\ud83d" and content:
            expect = "refused"
    elif sort == "gone":
        key = chance.choice(sorted(rows[at]))
        del rows[at][key]
        about += f" {key}"
        expect = "refused" if key in ("conversations", "messages") else "either"
    elif sort == "marks":
        first = _turns(rows[at])[0]
        name = "value" if "value" in first else "content"
        first[name] = chance.choice(["<image>" * 2, "<image> and <image>", "<image>" * 9])
        about += f" {first[name]}"
        # All marks of one turn stand for its one picture, as in LLaVA's own reader.
    elif sort == "ids":
        repeated = chance.sample(range(ROWS), 3)
        for number in repeated:
            rows[number]["id"] = "same"
            turns = _turns(rows[number])
            turns[1]["value" if "value" in turns[1] else "content"] = ""
        bad, expect = 3, "refused"
        at = repeated[0]
    else:
        turns = _turns(rows[at])
        turns[chance.randrange(2)]["from" if "from" in turns[0] else "role"] = chance.choice(ODD)
        expect = "refused"
    kind = chance.choice(["json", "jsonl"])
    data = _dump(rows, kind)
    names = (f"row-{at}", f"[{at}]", f"row {at}", f"row {at - 1}", f"line {at + 1}", "same")
    if chance.random() < 0.75:
        return _validate(about, f"rows.{kind}", data, expect=expect, names=names, rows=ROWS)
    skip = chance.random() < 0.6
    if not skip:
        return _train(about, f"rows.{kind}", data, skip, expect=expect, names=names)
    check = None if bad is None else _skipped(bad)
    return _train(about, f"rows.{kind}", data, skip, names=names, check=check)


def _dump(rows: Any, kind: str) -> bytes:
    text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)) + "\n"
    return text.encode()


@functools.cache
def _zeros() -> bytes:
    return gzip.compress(bytes(2**29), 1)


def _odd_file(chance: random.Random) -> Case:
    """A whole file that is odd."""
    kind = chance.choice(["json", "jsonl"])
    good = _dump([_llava(number) for number in range(ROWS)], kind)
    latin = good.replace(b"boat", "b\xe2teau".encode("latin-1"))
    zeros = "\\u0000"
    shapes: dict[str, tuple[bytes, Expect]] = {
        "BOM": (b"\xef\xbb\xbf" + good, "accepted"),
        "UTF-16": (good.decode().encode("utf-16"), "refused"),
        "Latin-1": (latin, "refused"),
        "surrogate": (good.replace(b"boat", b"\\ud83d"), "refused"),
        "null letter": (good.replace(b"boat", zeros.encode()), "either"),
        "deep": (deep(200_000).encode(), "refused"),
        "deep open": (b"[" * 200_000, "refused"),
        "deep row": (good.replace(b'"en"', deep(50_000).encode(), 1), "refused"),
        "number": (b"1", "refused"),
        "null": (b"null", "refused"),
        "text": (b'"rows"', "refused"),
        "empty": (b"", "refused"),
        "empty list": (b"[]", "refused"),
        "lines of spaces": (b" \n \n", "refused"),
        "blank lines": (good.replace(b"\n", b"\n\n"), "accepted"),
        "NaN": (good.replace(b'"en"', b"NaN"), "refused"),
        "infinity": (good.replace(b'"en"', b"-Infinity"), "refused"),
        "10**5 digits": (good.replace(b'"en"', b"1" * 100_000), "refused"),
        "double key": (good.replace(b'"id"', b'"id": "x", "id"'), "refused"),
        "raw control": (good.replace(b"boat", b"bo\x01\x1b[2Jat"), "refused"),
        "long": (good.replace(b"boat", b"a" * 3_000_000), "either"),
        "html": (b"<!DOCTYPE html><title>404</title>", "refused"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "refused"),
        "trailing": (good + b"\n]", "refused"),
        "cut": (good[: chance.randrange(20, len(good) - 5)], "refused"),
    }
    sort = chance.choice([*sorted(shapes), "damaged", "gz cut", "gz bomb"])
    name = f"rows.{kind}"
    known: dict[str, Any] = {"names": ("rows.json", "row-", "rows")}
    if sort == "damaged":
        way, data = damaged(chance, good)
        return _validate(f"{kind} {way}", name, data, **known)
    if sort.startswith("gz"):
        packed = gzip.compress(good)[:-20] if sort == "gz cut" else _zeros()
        return _folder(f"{sort}", {f"{name}.gz": packed}, "refused", (name, "folder"))
    data, expect = shapes[sort]
    if chance.random() < 0.7:
        return _validate(f"{kind} {sort}", name, data, expect=expect, **known)
    if sort == "long":
        # The recipe sets no longest row, so a run would learn from all of it.
        data = good.replace(b"boat", b"a" * 10_000)
    return _train(f"{kind} {sort}", name, data, chance.random() < 0.5, **_of_train(sort, expect))


def _of_train(sort: str, expect: Expect) -> dict[str, Any]:
    # A bad row in a good file is skipped where that is asked; a bad file is refused.
    of_rows = ("surrogate", "NaN", "infinity", "deep row", "double key", "10**5 digits")
    in_rows = expect == "refused" and sort in of_rows
    return {"expect": "either" if in_rows else expect, "names": ("rows.json", "row-")}


# ------------------------------------------------------------------------------ tables


def _folder(about: str, files: dict[str, bytes], expect: Expect, names: tuple[str, ...]) -> Case:
    def prepare(place: Place) -> list[str]:
        for name, data in files.items():
            place.write(f"folder/{name}", data)
        images = str(_pictures(place))
        folder = str(place.input / "folder")
        return ["data", "validate", folder, "--images", images, "--language", "en"]

    return Case(f"validate folder {about}", prepare, expect, names)


def _parquet(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _odd_tables(chance: random.Random) -> Case:
    """Parquet and CSV whose columns are of odd types, or whose bytes are damaged."""
    rows = [_messages(number) for number in range(ROWS)]
    columns: dict[str, Any] = {key: [row[key] for row in rows] for key in rows[0]}
    names = ("part.parquet", "folder", "row-", "rows.")
    sort = chance.choice(["type", "type", "null", "damaged", "damaged", "csv", "foreign"])
    if sort in ("type", "null"):
        key = chance.choice(sorted(columns))
        others = [[1] * ROWS, [b"\xff\x00"] * ROWS, [{"a": 1}] * ROWS, [[["x"]]] * ROWS]
        some = columns[key][: ROWS - 1]
        columns[key] = [*some, None] if sort == "null" else chance.choice(others)
        about, data = f"parquet {key} {sort}", _parquet(columns)
        expect: Expect = "refused" if key == "messages" else "either"
    elif sort == "damaged":
        way, data = damaged(chance, _parquet(columns))
        about, expect = f"parquet {way}", "refused" if way in ("empty", "html", "lfs") else "either"
    elif sort == "csv":
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["id", "image", "lang", "text"])
        odd = [value for value in ODD if isinstance(value, str)]
        for number in range(ROWS):
            writer.writerow([f"row-{number}", f"{number}.png", "en", chance.choice(odd)])
        data = re.sub("[\ud800-\udfff]", "?", text.getvalue()).encode()
        return _folder("csv", {"rows.csv": data}, "either", names)
    else:
        foreign = {
            "script.py": b"import os; os.system('true')",
            "rows.zip": b"PK\x03\x04 and nothing",
            "rows.arrow": b"ARROW1\0\0",
            "README.md": b"---\ndata_files: ../../secret.txt\n---\n",
        }
        name = chance.choice(sorted(foreign))
        return _folder(f"of {name}", {name: foreign[name]}, "refused", ("folder",))
    if chance.random() < 0.7:
        return _folder(about, {"part.parquet": data}, expect, names)
    return _train(about, "part.parquet", data, False, expect=expect, names=names)
