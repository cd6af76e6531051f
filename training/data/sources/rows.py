"""Yield every row of a source with its picture checked, or the reason why the row is rejected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...common.files import write_bytes
from ...rows.conversations import RowReader
from ...rows.hub import HubFiles
from ...rows.json_rows import rows_suffix
from ...rows.tables import built_files
from ..checks.identify import Identifier
from .pictures import Pictures, fault_of
from .plan import SourcePlan
from .readers import SourceTable, language_of_file, open_folder, open_hub, open_rows, open_tables
from .records import Problem, Record, to_row


def read_source(
    plan: SourcePlan,
    extract_to: Path | None = None,
    decode: bool = False,
    look: Callable[[str, Any, RowReader], None] | None = None,
) -> Iterator[Record | Problem]:
    """Yield every row of the source, or the reason why it is rejected, in the source's order.

    Args:
        plan: plan of the source.
        extract_to: folder for pictures that are embedded in rows.
        decode: also reject rows whose picture does not decode; takes a few milliseconds per picture.
        look: called before each record is read, with its place, the record and the reader of its table.

    Raises:
        OSError: a file is missing.
        ValueError: a file is broken as a whole.
    """
    place = plan.pictures()
    pictures = Pictures(place, decode, plan.follow_links) if place is not None else None
    detect = _detector(plan.detect_among) if plan.language == "detect" else None
    for file, file_language, table in _tables(plan):
        language = plan.language or file_language if detect is None else "und"
        reader = _reader(file, table, plan)
        for where, record in table.records:
            if look is not None:
                look(where, record, reader)
            read = to_row(
                record, where, reader, language=language, task=plan.task, columns=plan.columns
            )
            if isinstance(read, Record) and detect is not None:
                read = detect(read)
            if isinstance(read, Record):
                read = _with_picture(read, pictures, extract_to, decode)
            yield read


def _reader(file: str, table: SourceTable, plan: SourcePlan) -> RowReader:
    try:
        return table.reader(plan.columns)
    except ValueError as error:
        if str(error).startswith(("columns.", "expected columns")):
            raise ValueError(f"{file}: {error}: name them in source.columns") from None
        raise


def _tables(plan: SourcePlan) -> Iterator[tuple[str, str | None, SourceTable]]:
    """Yield (name, language given by the name, records) of each file or dataset."""
    path = Path(plan.paths[0])
    if plan.kind == "llava":
        for name in plan.paths:
            yield name, language_of_file(Path(name)), open_rows(Path(name))
    elif plan.kind == "hub" and plan.data_files is not None:
        file = path / plan.data_files
        if not path.exists():
            file = HubFiles(plan.paths[0], plan.revision).fetch(plan.data_files)
        yield plan.data_files, language_of_file(Path(plan.data_files)), open_rows(file)
    elif plan.kind == "hub" and rows_suffix(path) and not path.is_dir():
        yield plan.paths[0], language_of_file(path), open_rows(path)
    elif plan.kind == "hub":
        split = plan.split or "train"
        if files := built_files(path, plan.config, split):
            yield plan.paths[0], None, open_tables(files)
            return
        yield plan.paths[0], None, open_hub(plan.paths[0], plan.config, split, plan.revision)
    elif plan.kind == "folder":
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: expected a folder of pictures, found none")
        yield plan.paths[0], None, open_folder(path, plan.follow_links)
    else:
        columns = ["id", "image", "image_sha256", "lang", "text"]
        yield plan.paths[0], None, open_tables(mini_files(plan), columns)


def mini_files(plan: SourcePlan) -> list[Path]:
    """Return the caption tables of the plan's language and splits, in mini's layout."""
    folder = Path(plan.paths[0]) / "texts" / (plan.language or "en")
    splits = (plan.split or "").split(",")
    files = [f for split in splits for f in sorted(folder.glob(f"{split.strip()}-*.parquet"))]
    if not files:
        raise FileNotFoundError(f"{folder}: expected tables of the splits {splits}, found none")
    return files


def _with_picture(
    read: Record, pictures: Pictures | None, extract_to: Path | None, decode: bool
) -> Record | Problem:
    row = read.row
    if read.data is not None and (decode or extract_to is not None):
        fault = fault_of(read.data, str(row["image"]))
        if fault is not None:
            return Problem(read.place, "image", fault.removesuffix("."))
    if read.data is not None and extract_to is not None:
        suffix = Path(row["image"]).suffix or ".img"
        name = f"{row['image_sha256'][:2]}/{row['image_sha256']}{suffix}"
        if not (extract_to / name).exists():
            write_bytes(extract_to / name, read.data)
        return dataclasses.replace(read, row={**row, "image": name}, data=None)
    if pictures is None or read.data is not None or row["image"] is None:
        return read
    try:
        sha256 = pictures.sha256(row["image"])
    except (OSError, ValueError) as error:
        return Problem(read.place, "image", str(error).removesuffix("."))
    if row["image_sha256"] not in (None, sha256):
        return Problem(
            read.place,
            "image_sha256",
            f"the picture's is {sha256}, the row says {row['image_sha256']}",
        )
    return dataclasses.replace(read, row={**row, "image_sha256": sha256})


def _detector(languages: list[str]) -> Callable[[Record], Record | Problem]:
    """Return a function that sets the language of `und` (undetermined) rows from their text."""
    identifier = Identifier(languages)

    def detect(read: Record) -> Record | Problem:
        row = read.row
        if row["lang"] != "und":
            return read
        text = row["text"] or " ".join(t["content"] for t in row["turns"])
        found = identifier.identify(text[:2000], languages[0]).language
        if not found:
            reason = "too little text to tell it from; name it in the row"
            return Problem(read.place, "lang", reason)
        return dataclasses.replace(read, row={**row, "lang": found})

    return detect
