"""Records of a source, one after the other, in bounded memory.

Each reader yields (place, record): the place names the file and the number of the row in it; a row
that cannot even be parsed is a `Problem` in the record's stead.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .records import LANGUAGES, Problem

Place = tuple[str, Any]

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
# English files that LLaVA published; their names do not say it.
_ENGLISH_FILES = ("blip_laion_cc_sbu_558k", "llava_v1_5_mix665k", "llava_instruct_150k", "chat")


def language_of_file(path: Path) -> str | None:
    """`ru` of `maya_russian_blip_laion_cc_sbu_558k.json` or `captions.ru.json`; None if unsaid."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    named = {LANGUAGES[w] for w in words if w in LANGUAGES}
    named = named or {w for w in words[-1:] + words[:1] if w in LANGUAGES.values()}
    if len(named) == 1:
        return named.pop()
    return "en" if path.stem.lower() in _ENGLISH_FILES else None


def read_json(path: Path) -> Iterator[Place]:
    """Objects of a JSON array, or of a file with one object a line (.jsonl).

    Raises ValueError, naming the last whole row, where the file is broken or is no array.
    """
    import ijson

    if path.suffix == ".jsonl":
        yield from _read_lines(path)
        return
    number = -1
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        if start != b"[":
            raise ValueError(f"{path}: expected a JSON array of rows, found {start!r} at its start")
        file.seek(0)
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        try:
            for number, record in enumerate(ijson.items(file, "item", use_float=True)):
                yield f"{path.name}[{number}]", record
        except (ijson.JSONError, UnicodeDecodeError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"{path}: broken JSON after row {number}: {text:.200}") from None


def _read_lines(path: Path) -> Iterator[Place]:
    with path.open("rb") as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                record = Problem(f"{path.name}[{number}]", "row", f"broken JSON: {error}")
            yield f"{path.name}[{number}]", record


def read_tables(files: list[Path], columns: list[str]) -> Iterator[Place]:
    """Rows of parquet tables, only the columns of these names that they have."""
    for path in files:
        with pq.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(1000, columns=names):
                for record in batch.to_pylist():
                    yield f"{path.parent.name}/{path.name}[{number}]", record
                    number += 1


def read_hub(path: str, config: str | None, split: str, revision: str | None) -> Iterator[Place]:
    """Rows of a Hub dataset or a local folder of data files, streamed; pictures undecoded."""
    import datasets

    data = datasets.load_dataset(path, config, split=split, revision=revision, streaming=True)
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    for number, record in enumerate(data):
        yield f"{path} {split}[{number}]", record


def read_folder(folder: Path) -> Iterator[Place]:
    """Pictures with captions: `metadata.jsonl` or `metadata.csv` (file_name, text), or, for each
    picture, a text file of the same name beside it. A picture without either has no text.
    """
    listed = next(
        (folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).exists()),
        None,
    )
    if listed is None:
        for path in files_in(folder):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                image = path.relative_to(folder)
                caption = path.with_suffix(".txt")
                text = _read_caption(caption) if caption.exists() else None
                identity = image.with_suffix("").as_posix()
                yield image.as_posix(), {"id": identity, "image": image.as_posix(), "text": text}
        return
    rows = read_json(listed) if listed.suffix == ".jsonl" else _read_csv(listed)
    for place, record in rows:
        if isinstance(record, dict) and isinstance(name := record.get("file_name"), str):
            record = {"id": Path(name).with_suffix("").as_posix(), "image": name, **record}
        yield place, record


def files_in(folder: Path) -> Iterator[Path]:
    """All files of a folder in a fixed order, with the names of one folder in memory at a time."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(root, name)


def _read_caption(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _read_csv(path: Path) -> Iterator[Place]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if "file_name" not in (reader.fieldnames or []):
            raise ValueError(
                f"{path}: expected the columns file_name and text, found {reader.fieldnames}"
            )
        number = -1
        try:
            for number, record in enumerate(reader):
                yield f"{path.name}[{number}]", {k: v for k, v in record.items() if k and v}
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: broken CSV after row {number}: {error}") from None
