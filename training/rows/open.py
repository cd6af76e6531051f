"""Rows of a dataset in memory: a file of JSON or parquet, a folder, or a dataset on the Hub.

    rows = open_rows(DatasetPath("data.jsonl"))
    rows[3]                 # a mapping of the columns that are wanted
    rows.column("lang")     # of all rows

A row that cannot be read, such as a broken line, is in `unreadable`, with the reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.images import Place
from ..common.places import FolderPictures, PictureTables, is_content, open_place
from ..common.reading import open_file, parse_json
from ..common.telling import one_line
from .conversations import RowReader
from .hub import ARCHIVES, HUB, HubFiles, hub_caches, load_dataset
from .json_rows import Unreadable, read_json_rows, rows_suffix
from .parquet import is_list, item_type
from .tables import card_files, check_column_names, check_single, reading_table

SINGLE = "expected a .json, .jsonl (also .gz) or .parquet file or a dataset folder"


class DatasetPlace(Protocol):
    """Where a dataset is; a recipe's section `data` says it, too.

    path: a file of rows, a dataset folder, or a Hub repository. data_files: the one file of these that has
    the rows. image_folder: a folder or archive of the pictures that rows name, here or in the repository.
    """

    path: str
    config: str | None
    split: str
    revision: str | None
    data_files: str | None
    image_folder: str | None


@dataclass
class DatasetPath:
    """A `DatasetPlace` of which little needs to be said."""

    path: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | None = None
    image_folder: str | None = None


class JsonRows:
    """Rows of a JSON file."""

    def __init__(self, path: str):
        self.unreadable: dict[int, str] = {}
        self._rows: list[dict[str, Any]] = []
        self._numbers: list[int] = []
        names: dict[str, None] = {}
        for number, row in read_json_rows(path):
            if isinstance(row, Unreadable):
                self.unreadable[len(self._rows)] = row.reason
                row = {}
            names.update(dict.fromkeys(row))
            self._numbers.append(number)
            self._rows.append(row)
        self.columns: list[str] = sorted(names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]

    def column(self, name: str) -> list[Any]:
        return [row.get(name) for row in self._rows]

    def cells(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Every row, with these columns at least."""
        return iter(self._rows)

    def number(self, index: int) -> int:
        """The row's place in its file, from 0."""
        return self._numbers[index]

    def reader(self, named: Mapping[str, str]) -> RowReader:
        """How the rows are read. Raises ValueError for columns of no known shape."""
        return RowReader(self.columns, named=named)


class ArrowRows:
    """Rows of an Arrow table as plain dicts, read one at a time, columns at once."""

    def __init__(self, table: pa.Table):
        self.unreadable: dict[int, str] = {}
        self.table = table.combine_chunks()
        self.columns: list[str] = list(self.table.column_names)
        self._columns = {n: self.table.column(n) for n in self.columns}
        self._wanted = self.columns

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {n: self._columns[n][index].as_py() for n in self._wanted}

    def column(self, name: str) -> list[Any]:
        return self._columns[name].to_pylist()

    def cells(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Every row, with these columns."""
        if not columns:
            yield from ({} for _ in range(len(self)))
            return
        for batch in self.table.select(columns).to_batches(max_chunksize=1000):
            yield from batch.to_pylist()

    def number(self, index: int) -> int:
        """The row's place in the dataset, from 0."""
        return index

    def reader(self, named: Mapping[str, str]) -> RowReader:
        """How the rows are read; others of their columns are not. Raises as `JsonRows.reader`."""
        reader = schema_reader(self.table.schema, named)
        self._wanted = [c for c in dict.fromkeys(("id", *reader.wanted)) if c in self._columns]
        return reader


Rows = JsonRows | ArrowRows


def schema_reader(schema: pa.Schema, named: Mapping[str, str]) -> RowReader:
    """How rows of a schema are read. Raises ValueError for columns of no known shape."""
    held = [f.name for f in schema if holds_pictures(schema, f.name)]
    turns = [f.type for f in schema if is_list(f.type) and pa.types.is_struct(f.type.value_type)]
    parts = any(_has_parts(kind.value_type) for kind in turns)
    return RowReader(schema.names, held=held, parts=parts, named=named)


def holds_pictures(schema: pa.Schema, column: str) -> bool:
    """Whether a column's type is that of pictures: structs of bytes, as datasets' Image, or lists of them."""
    kind = item_type(schema.field(column).type)
    # Plain bytes may be anything.
    return (
        pa.types.is_struct(kind) and is_content(kind) and _feature(schema, column) in ("Image", "")
    )


def _feature(schema: pa.Schema, column: str) -> str:
    """What `datasets` has noted of a column: Image, Audio, ...; "" where it has noted nothing."""
    try:
        noted = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "features")
        feature = noted["info"]["features"][column]
        while not isinstance(feature, dict) or "_type" not in feature or "feature" in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return str(feature["_type"])
    except (ValueError, KeyError, TypeError, IndexError):
        return ""


def _has_parts(kind: pa.DataType) -> bool:
    """Whether a turn's content is a list of parts."""
    place = kind.get_field_index("content")
    return place >= 0 and is_list(kind.field(place).type)


# ------------------------------------------------------------------------------ opening


def open_rows(dataset: DatasetPlace) -> Rows:
    """The rows of a dataset. Raises ValueError, OSError in one line that names the file."""
    file = single_file(dataset)
    if file is None:
        return ArrowRows(_load_table(dataset.path, dataset.config, dataset.split, dataset.revision))
    if rows_suffix(file) == ".parquet":
        return ArrowRows(read_parquet([file]))
    return JsonRows(str(file))


def single_file(dataset: DatasetPlace) -> Path | None:
    """The one file that a dataset's rows are in; of a Hub dataset, in Hugging Face's cache. None: a dataset.

    Raises ValueError, FileNotFoundError, ConnectionError.
    """
    path = Path(dataset.path)
    if dataset.data_files is not None:
        if path.is_dir():
            path = path / dataset.data_files
        elif path.exists() or dataset.path.startswith((".", "/", "~")):
            raise ValueError(
                f"{dataset.path}: data_files: expected a folder or Hub dataset to have them"
            )
        else:
            path = HubFiles(dataset.path, dataset.revision).fetch(dataset.data_files)
    elif path.is_dir() or not (rows_suffix(path) or path.exists()):
        return None
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not rows_suffix(path):
        raise ValueError(f"{path}: {SINGLE}")
    check_single(str(path), dataset.config, dataset.split)
    return path


def read_parquet(files: Sequence[Path]) -> pa.Table:
    """Parquet files as one table, checked. Raises ValueError, OSError that name the file."""
    tables = []
    for file in files:
        open_file(file).close()  # a pipe or a device is no table
        with reading_table(str(file)):
            opened = pq.ParquetFile(file)
            check_column_names(opened.schema_arrow.names, str(file))
            tables.append(opened.read())
            # Else a text that is not UTF-8 would be found when its row is.
            tables[-1].validate(full=True)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            one_line(f"{files[0]} and the files beside it: their columns differ: {error}")
        ) from None


def _load_table(path: str, config: str | None, split: str, revision: str | None) -> pa.Table:
    """One split of a dataset as an Arrow table. Images stay undecoded."""
    folder = Path(path)
    if (folder.exists() or path.startswith((".", "/"))) and not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such dataset folder")
    files = card_files(folder, config, split) if folder.is_dir() else []
    if files:
        return read_parquet(files)
    try:
        data = load_dataset(path, config, split, revision)
    except ValueError as error:
        raise ValueError(f"{error}{_other_files(path, revision)}") from None
    if len(data) != data.data.num_rows:
        data = data.flatten_indices()
    return data.data.table


def _other_files(path: str, revision: str | None) -> str:
    """What to do about a Hub dataset that is files and archives, such as LLaVA's."""
    if Path(path).exists():
        return ""
    try:
        files = HubFiles(path, revision).files
    except OSError:
        return ""
    rows = sorted(name for name in files if rows_suffix(name))
    return f"; or name one of its files: data_files: {', '.join(rows[:5])}" if rows else ""


# ------------------------------------------------------------------------------ pictures


def open_pictures(
    dataset: DatasetPlace, names: Sequence[str] | None = None, streamed: bool = False
) -> Place | None:
    """Where the pictures are that a dataset's rows name; None where they name none.

    The user names the data, so links are followed.

    Args:
        names: all that rows have; None where these are not known yet.
        streamed: pictures of a Hub dataset are not kept on this machine.

    Raises FileNotFoundError for an `image_folder` that is not there, else as `open_place`.
    """
    path = Path(dataset.path)
    if dataset.image_folder is not None:
        folder = Path(dataset.image_folder)
        if folder.exists() or path.exists() or os.path.isabs(folder):
            return open_place(folder, follow_links=True, keep=not streamed)
        return _repository_place(dataset, dataset.image_folder, streamed)
    if names is not None and not names:
        return None
    if path.is_dir() and dataset.data_files is None:
        return open_place(path, follow_links=True, keep=not streamed)
    if path.exists():
        file = single_file(dataset)
        assert file is not None
        return FolderPictures(file.parent)
    place = _Repository(dataset, streamed)
    if names:
        place.open(names[0])
    return place


class _Repository:
    """The pictures of a dataset on the Hub: its table of them, its only archive, or its files.

    Absolute paths name files that `datasets` has fetched.
    """

    def __init__(self, dataset: DatasetPlace, streamed: bool):
        self.name = dataset.path
        self._dataset, self._streamed = dataset, streamed
        self._cached = FolderPictures(*hub_caches())
        self._place: Place | None = None

    def read(self, name: str) -> bytes:
        return self.open(name).read(name)

    def open(self, name: str) -> Place:
        """The place of a name. Raises as `open_place`, and ConnectionError."""
        if os.path.isabs(name):
            return self._cached
        if self._place is None:
            self._place = self._found(name)
        return self._place

    def _found(self, name: str) -> Place:
        dataset = self._dataset
        files = HubFiles(dataset.path, dataset.revision, keep=not self._streamed)
        if name.startswith(HUB):
            return files
        if dataset.data_files is None:
            try:
                table = load_dataset(dataset.path, "images", "train", dataset.revision).data.table
                return PictureTables.of_table(table, dataset.path)
            except ValueError:
                tables = (f for f in files.files if f.startswith("images/"))
                if any(file.endswith(".parquet") for file in tables):
                    raise
        archives = [file for file in files.files if file.lower().endswith(ARCHIVES)]
        if len(archives) == 1:
            return _repository_place(dataset, archives[0], self._streamed)
        return files


def _repository_place(dataset: DatasetPlace, name: str, streamed: bool) -> Place:
    """A folder or archive in the Hub repository of a dataset."""
    files = HubFiles(dataset.path, dataset.revision, folder=name, keep=not streamed)
    if any(file.startswith(f"{files.folder}/") for file in files.files):
        return files
    if files.folder not in files.files:
        raise FileNotFoundError(
            f"{name}: image_folder: no such folder or archive, here or in {dataset.path} on the Hub"
        )
    return open_place(files.fetch(files.folder))
