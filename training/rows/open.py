"""Load the rows of a dataset: a JSON or parquet file, a folder, or a dataset on the Hub.

    rows = open_rows(DatasetPath("data.jsonl"))
    rows[3]                 # a mapping of the columns that the reader needs
    rows.column("lang")     # the values of all rows

`unreadable` holds the rows that cannot be read, such as broken lines, with the reasons.
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
    """Location of a dataset; a recipe's `data` section has these fields too.

    path: a file of rows, a dataset folder, or a Hub repository.
    data_files: the one file of that folder or repository that has the rows.
    image_folder: a folder or archive of the images that rows name, local or in the repository.
    """

    path: str
    config: str | None
    split: str
    revision: str | None
    data_files: str | None
    image_folder: str | None


@dataclass
class DatasetPath:
    """A `DatasetPlace` with defaults."""

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
        """Return a column's values of all rows."""
        return [row.get(name) for row in self._rows]

    def cells(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Iterate over all rows, with at least these columns."""
        return iter(self._rows)

    def number(self, index: int) -> int:
        """Return the row's index in its file, from 0."""
        return self._numbers[index]

    def reader(self, named: Mapping[str, str]) -> RowReader:
        """Return a reader of the rows. Raises ValueError if the columns have no known shape."""
        return RowReader(self.columns, named=named)


class ArrowRows:
    """Rows of an Arrow table as plain dicts, read singly or by column."""

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
        """Return a column's values of all rows."""
        return self._columns[name].to_pylist()

    def cells(self, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Iterate over all rows, with these columns."""
        if not columns:
            yield from ({} for _ in range(len(self)))
            return
        for batch in self.table.select(columns).to_batches(max_chunksize=1000):
            yield from batch.to_pylist()

    def number(self, index: int) -> int:
        """Return the row's index in the dataset, from 0."""
        return index

    def reader(self, named: Mapping[str, str]) -> RowReader:
        """Return a reader; rows then hold only the columns it needs. Raises as `JsonRows.reader`."""
        reader = schema_reader(self.table.schema, named)
        self._wanted = [c for c in dict.fromkeys(("id", *reader.wanted)) if c in self._columns]
        return reader


Rows = JsonRows | ArrowRows


def schema_reader(schema: pa.Schema, named: Mapping[str, str]) -> RowReader:
    """Return a reader for rows of a schema. Raises ValueError if the columns have no known shape."""
    held = [f.name for f in schema if holds_pictures(schema, f.name)]
    turns = [f.type for f in schema if is_list(f.type) and pa.types.is_struct(f.type.value_type)]
    parts = any(_has_parts(kind.value_type) for kind in turns)
    return RowReader(schema.names, held=held, parts=parts, named=named)


def holds_pictures(schema: pa.Schema, column: str) -> bool:
    """Return whether a column's type is datasets' Image (a struct with bytes) or a list of it."""
    kind = item_type(schema.field(column).type)
    # Columns of plain bytes may hold anything.
    return (
        pa.types.is_struct(kind) and is_content(kind) and _feature(schema, column) in ("Image", "")
    )


def _feature(schema: pa.Schema, column: str) -> str:
    """Return the feature that `datasets` recorded for a column (Image, Audio, ...), "" without one."""
    try:
        noted = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "features")
        feature = noted["info"]["features"][column]
        while not isinstance(feature, dict) or "_type" not in feature or "feature" in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return str(feature["_type"])
    except (ValueError, KeyError, TypeError, IndexError):
        return ""


def _has_parts(kind: pa.DataType) -> bool:
    """Return whether a turn's content is a list of parts."""
    place = kind.get_field_index("content")
    return place >= 0 and is_list(kind.field(place).type)


# ------------------------------------------------------------------------------ opening


def open_rows(dataset: DatasetPlace) -> Rows:
    """Load the rows of a dataset. Raises ValueError or OSError, one line that names the file."""
    file = single_file(dataset)
    if file is None:
        return ArrowRows(_load_table(dataset.path, dataset.config, dataset.split, dataset.revision))
    if rows_suffix(file) == ".parquet":
        return ArrowRows(read_parquet([file]))
    return JsonRows(str(file))


def single_file(dataset: DatasetPlace) -> Path | None:
    """Return the single file with a dataset's rows, fetched if on the Hub; None for a whole dataset.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: one line that names the file.
    """
    path = Path(dataset.path)
    if dataset.data_files is not None:
        if path.is_dir():
            path = path / dataset.data_files
        elif path.exists() or dataset.path.startswith((".", "/", "~")):
            raise ValueError(
                f"{dataset.path}: data_files: expected a folder or Hub dataset that holds them"
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
    """Read and check parquet files as one table. Raises ValueError or OSError naming the file."""
    tables = []
    for file in files:
        open_file(file).close()  # refuses pipes and devices
        with reading_table(str(file)):
            opened = pq.ParquetFile(file)
            check_column_names(opened.schema_arrow.names, str(file))
            tables.append(opened.read())
            # Without this, invalid UTF-8 would be found only when its row is read.
            tables[-1].validate(full=True)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(
            one_line(f"{files[0]} and the files beside it: expected the same columns: {error}")
        ) from None


def _load_table(path: str, config: str | None, split: str, revision: str | None) -> pa.Table:
    """Load one split of a dataset as an Arrow table; images stay encoded."""
    folder = Path(path)
    if (folder.exists() or path.startswith((".", "/"))) and not folder.is_dir():
        raise FileNotFoundError(f"{path}: expected a dataset folder, found nothing")
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
    """Return advice for a Hub dataset that consists of files and archives, such as LLaVA's."""
    if Path(path).exists():
        return ""
    try:
        files = HubFiles(path, revision).files
    except OSError:
        return ""
    rows = sorted(name for name in files if rows_suffix(name))
    return f"; or name one of its files: data_files: {', '.join(rows[:5])}" if rows else ""


# ------------------------------------------------------------------------------ images


def open_pictures(
    dataset: DatasetPlace, names: Sequence[str] | None = None, streamed: bool = False
) -> Place | None:
    """Open the storage of the images that a dataset's rows name; None if they name none.

    Symbolic links are followed, because the user chose the data.

    Args:
        names: all image names in the rows; None if not known yet.
        streamed: do not keep images of a Hub dataset on this machine.

    Raises:
        FileNotFoundError: if `image_folder` does not exist. Otherwise as `open_place`.
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
    """Images of a dataset on the Hub: its image table, its only archive, or its files.

    Absolute paths name files that `datasets` has downloaded.
    """

    def __init__(self, dataset: DatasetPlace, streamed: bool):
        self.name = dataset.path
        self._dataset, self._streamed = dataset, streamed
        self._cached = FolderPictures(*hub_caches())
        self._place: Place | None = None

    def read(self, name: str) -> bytes:
        return self.open(name).read(name)

    def open(self, name: str) -> Place:
        """Return the place that holds a name. Raises as `open_place`, and ConnectionError."""
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
    """Return a folder or archive in the Hub repository of a dataset."""
    files = HubFiles(dataset.path, dataset.revision, folder=name, keep=not streamed)
    if any(file.startswith(f"{files.folder}/") for file in files.files):
        return files
    if files.folder not in files.files:
        raise FileNotFoundError(
            f"{name}: image_folder: expected a folder or archive, found none here or in {dataset.path} on the Hub"
        )
    return open_place(files.fetch(files.folder))
