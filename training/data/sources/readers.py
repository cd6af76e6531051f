"""Read the records of a source one after the other, in bounded memory.

A `SourceTable` yields (place, record) and knows the columns, which decide how to read a record. The place names the
file and the row number in it. A row that cannot be parsed is yielded as `Unreadable`.
"""

from __future__ import annotations

import csv
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from ...common.images import SUFFIXES, ImageStore, Place, read_picture_file
from ...common.languages import CODES
from ...common.places import FolderPictures
from ...common.reading import open_file
from ...common.telling import one_line
from ...rows.conversations import RowReader
from ...rows.hub import HUB, HubFiles, dataset_builder, reading_dataset
from ...rows.json_rows import Unreadable, check_lines, read_json_rows, rows_suffix
from ...rows.open import schema_reader
from ...rows.parquet import parquet_file
from ...rows.tables import check_column_names

# (place of a record, record).
Placed = tuple[str, Any]

# Stems of English files that LLaVA published; the names do not give the language.
_ENGLISH_FILES = ("blip_laion_cc_sbu_558k", "llava_v1_5_mix665k", "llava_instruct_150k", "chat")
_MOST_CAPTION_BYTES = 1 << 20


@dataclass(frozen=True)
class SourceTable:
    """One file or dataset, with its records.

    reader: returns the reader of a record, given {field: column} for fields that no column name gives; raises
        ValueError if the columns fit no known shape.
    """

    reader: Callable[[Mapping[str, str]], RowReader]
    records: Iterator[Placed]


def language_of_file(path: Path) -> str | None:
    """Return `ru` for `maya_russian_blip_laion_cc_sbu_558k.json` or `captions.ru.json`; None if unclear."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    named = {CODES[w] for w in words if w in CODES}
    named = named or {w for w in words[-1:] + words[:1] if w in CODES.values()}
    if len(named) == 1:
        return named.pop()
    return "en" if path.stem.lower() in _ENGLISH_FILES else None


def open_rows(path: Path) -> SourceTable:
    """Open a .json, .jsonl (also .gz) or .parquet file; raise ValueError or OSError that name the file."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected a .json, .jsonl or .parquet file, found no such file"
        )
    if rows_suffix(path) == ".parquet":
        return open_tables([path])
    return SourceTable(functools.partial(_json_reader, path), _json_records(path))


def _json_reader(path: Path, named: Mapping[str, str], also: Sequence[str] = ()) -> RowReader:
    """Return the reader of a JSON file, whose columns are known only after all rows have been read."""
    columns = dict.fromkeys(also)
    unreadable = None
    for _, row in read_json_rows(path):
        if isinstance(row, Unreadable):
            unreadable = unreadable or row.reason
        else:
            columns.update(dict.fromkeys(row))
    if not columns:
        fault = unreadable or "expected rows, found none: add some, or correct source.path"
        raise ValueError(f"{path}: {fault}")
    return RowReader(columns, named=named)


def _json_records(path: Path) -> Iterator[Placed]:
    for number, row in read_json_rows(path):
        yield f"{path.name}[{number}]", row


def open_tables(files: Sequence[Path], columns: Sequence[str] | None = None) -> SourceTable:
    """Open parquet tables of one schema, and read `columns`, as far as they exist.

    Raises:
        ValueError, OSError: name the file; also raised while records are read.
    """
    open_file(files[0]).close()
    with parquet_file(files[0]) as file:
        schema = file.schema_arrow
    check_column_names(schema.names, str(files[0]))
    if columns is not None:
        schema = pa.schema([f for f in schema if f.name in columns], schema.metadata)
    return SourceTable(
        functools.partial(schema_reader, schema), _table_records(files, schema.names)
    )


def _table_records(files: Sequence[Path], columns: Sequence[str]) -> Iterator[Placed]:
    for path in files:
        open_file(path).close()  # fail on a pipe or a device
        # Add the folder's name: files of several folders may have the same name.
        name = f"{path.parent.name}/{path.name}" if len(files) > 1 else path.name
        number = 0
        with parquet_file(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(1000, columns=names):
                batch.validate(full=True)
                for record in batch.to_pylist():
                    yield f"{name}[{number}]", record
                    number += 1


def open_hub(path: str, config: str | None, split: str, revision: str | None) -> SourceTable:
    """Open a Hub dataset or a local folder of data files, as a stream; pictures come with their bytes.

    Raises:
        ValueError, OSError: name the dataset; also raised while records are read.
    """
    import datasets

    what = f"config {config!r}, split {split!r}"
    if Path(path).is_dir():
        for file in files_in(Path(path)):
            if rows_suffix(file) == ".jsonl":
                check_lines(file)
    builder = dataset_builder(path, config, revision, what)
    of_files = type(builder).__module__.rpartition(".")[2] == "imagefolder"
    with reading_dataset(path, what):
        data = datasets.load_dataset(path, config, split=split, revision=revision, streaming=True)
        features = data.features
        if features is not None:
            data = data.decode(False)
        records = iter(data)
        first = list(itertools.islice(records, 1))
    pictured = [
        name
        for name, feature in (features or {}).items()
        if isinstance(getattr(feature, "feature", feature), datasets.Image)
    ]
    place: Place = (
        FolderPictures(Path(path)) if Path(path).exists() else HubFiles(path, revision, keep=False)
    )
    columns = list(features or (first[0] if first else ()))
    held = [name for name in pictured if name in columns]

    def reader(named: Mapping[str, str]) -> RowReader:
        return RowReader(columns, held=held, named=named)

    def read() -> Iterator[Placed]:
        with reading_dataset(path, what):
            for number, record in enumerate(itertools.chain(first, records)):
                with_bytes = {
                    name: _with_bytes(record.get(name), ImageStore(place)) for name in pictured
                }
                about = _id_of_file(record, pictured, path) if of_files else {}
                yield f"{path} {split}[{number}]", {**about, **record, **with_bytes}

    return SourceTable(reader, read())


def _id_of_file(record: Any, pictured: Sequence[str], path: str) -> dict[str, str]:
    """Return the id of a picture in a folder: its relative path without suffix, as in `open_folder`."""
    cell = record.get(pictured[0]) if pictured else None
    name = cell.get("path") if isinstance(cell, dict) else None
    if not name:
        return {}
    if name.startswith(HUB):
        name = name.removeprefix(f"{HUB}{path}@").partition("/")[2]
    elif Path(name).is_relative_to(Path(path).absolute()):
        name = Path(name).relative_to(Path(path).absolute()).as_posix()
    return {"id": PurePosixPath(name).with_suffix("").as_posix()}


def _with_bytes(cell: Any, pictures: ImageStore) -> Any:
    """Return a cell of datasets' Image feature; bytes are added for files that `datasets` only names."""
    if isinstance(cell, list):
        return [_with_bytes(each, pictures) for each in cell]
    named = isinstance(cell, dict) and not cell.get("bytes") and cell.get("path")
    if not named or not (os.path.isabs(cell["path"]) or cell["path"].startswith(HUB)):
        return cell
    try:
        return {**cell, "bytes": pictures.read(cell["path"])}
    except ConnectionError:
        raise
    except (ValueError, OSError):
        return cell  # the row's reader reports the picture


def open_folder(folder: Path, follow_links: bool = False) -> SourceTable:
    """Open a folder of pictures with captions.

    Captions are in `metadata.jsonl` or `metadata.csv` (file_name, text), or in a text file with the name of
    the picture. A picture without either has no text.

    Args:
        folder: the folder.
        follow_links: also read captions through links that lead out of the folder.
    """
    listed = next(
        (folder / name for name in ("metadata.jsonl", "metadata.csv") if (folder / name).exists()),
        None,
    )
    if listed is None:
        columns = ("id", "image", "text")
        return SourceTable(
            lambda named: RowReader(columns, named=named), _captioned(folder, follow_links)
        )
    if listed.suffix == ".jsonl":
        reader = functools.partial(_json_reader, listed, also=("id", "image"))
        return SourceTable(reader, _named_files(_json_records(listed)))
    header = _csv_header(listed)
    return SourceTable(
        lambda named: RowReader(dict.fromkeys(("id", "image", *header)), named=named),
        _named_files(_csv_records(listed)),
    )


def _captioned(folder: Path, follow_links: bool) -> Iterator[Placed]:
    for path in files_in(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        image = path.relative_to(folder)
        record = {"id": image.with_suffix("").as_posix(), "image": image.as_posix(), "text": None}
        caption = image.with_suffix(".txt")
        if os.path.lexists(folder / caption):
            try:
                data = read_picture_file(
                    caption, root=folder, follow_links=follow_links, max_bytes=_MOST_CAPTION_BYTES
                )
                record["text"] = data.decode("utf-8", "surrogateescape")
            except (ValueError, OSError) as error:
                yield image.as_posix(), Unreadable(f"its caption: {error}")
                continue
        yield image.as_posix(), record


def _named_files(records: Iterator[Placed]) -> Iterator[Placed]:
    for place, record in records:
        if isinstance(record, dict) and isinstance(name := record.get("file_name"), str):
            record = {"id": Path(name).with_suffix("").as_posix(), "image": name, **record}
        yield place, record


def files_in(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder in a fixed order; memory holds the names of one folder at a time."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield Path(root, name)


def _csv_header(path: Path) -> list[str]:
    open_file(path).close()
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            header = next(csv.reader(file), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(one_line(f"{path}: broken CSV: {error}")) from None
    if "file_name" not in header:
        raise ValueError(
            one_line(f"{path}: expected the columns file_name and text, found {header}")
        )
    return header


def _csv_records(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        number = -1
        try:
            for number, record in enumerate(csv.DictReader(file)):
                yield f"{path.name}[{number}]", {k: v for k, v in record.items() if k and v}
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(one_line(f"{path}: broken CSV after row {number}: {error}")) from None
