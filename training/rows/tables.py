"""Parquet files of a dataset, in a folder or on the Hub, as tables read by row group.

Memory holds one row group at a time, so files with small row groups need little memory.
"""

import bisect
import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..common.cards import card_metadata, check_cards
from ..common.errors import of_network
from ..common.images import StorageError
from ..common.names import stays_inside
from ..common.reading import open_file, read_json, read_text
from ..common.shapes import check_shape
from ..common.telling import one_line, printable, reason
from .hub import HUB, HubFiles, dataset_builder, not_fetched
from .json_rows import rows_suffix
from .parquet import is_list
from .parquet import is_text as is_text_type

# Format of the manifest that `maya data build` writes.
_BUILT = "maya-dataset-1"
# Read-ahead in bytes for sequential reads of remote files.
AHEAD = 8 << 20


@dataclass(frozen=True)
class DatasetFiles:
    """The parquet files of a split, and those of its image table if there is one.

    Files on the Hub have addresses with a fixed commit: `hf://datasets/user/name@.../`.
    """

    rows: list[str]
    images: list[str]


def find_files(
    path: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    data_files: str | None = None,
) -> DatasetFiles:
    """Find the files of a dataset's rows: in a folder or Hub repository, or a single parquet file.

    The YAML of the dataset card maps configs and splits to files; without a card, the rules of
    `datasets` apply. The image table is `images/*.parquet`.

    Args:
        revision: revision of a Hub repository.
        data_files: the one file of a folder or repository to read.

    Raises:
        FileNotFoundError, ValueError: if dataset, config or split do not exist, or the files have
            another format.
    """
    place = Path(path)
    images: list[str] = []
    if data_files is not None and place.is_dir():
        path, place = str(place / data_files), place / data_files
    if place.exists() and not place.is_dir():
        check_single(path, config, split)
        found = [path]
    elif place.is_dir():
        found = [str(f) for f in card_files(place, config, split)] or _by_datasets(
            path, config, split, revision
        )
        images = [str(f) for f in sorted(place.glob("images/*.parquet"))]
    elif path.startswith((".", "/", "~")) or rows_suffix(path):
        raise FileNotFoundError(f"{path}: expected a dataset folder or file, found nothing")
    elif data_files is not None:
        check_single(path, config, split)
        found = [HubFiles(path, revision).address(data_files)]
    else:
        from huggingface_hub import HfFileSystem

        found = _by_datasets(path, config, split, revision)
        root = re.match(rf"{HUB}[^/]+/[^/]+/", found[0])
        images = sorted(HfFileSystem().glob(f"{root[0]}images/*.parquet")) if root else []
        images = [f"hf://{name}" for name in images]
    for name in (f for f in (*found, *images) if not f.startswith(HUB)):
        open_file(name).close()  # refuses pipes and devices
    other = [f for f in found if not f.endswith(".parquet")]
    if other:
        raise ValueError(
            f"{path}: expected parquet files, the only format that can be streamed, found {other[0]}: convert it "
            "(Dataset.to_parquet, or the branch refs/convert/parquet on the Hub), or leave "
            "streaming out"
        )
    return DatasetFiles(found, [f for f in images if f not in found])


def check_single(path: str, config: str | None, split: str) -> None:
    """Raise ValueError if a config or split is named for a dataset that is a single file."""
    for name, value, default in (("split", split, "train"), ("config", config, None)):
        if value != default:
            raise ValueError(
                f"{path}: {name}: expected none, because all rows of a single file are read, found {value!r}: "
                "leave it out, or name a dataset folder"
            )


def card_files(folder: Path, config: str | None, split: str) -> list[Path]:
    """Return the parquet files of a split by the YAML of the dataset card, or without a card by the
    manifest of `maya data build`; empty if neither names them.

    This does not use `datasets`, whose cache would hold a second copy of a local folder.

    Raises:
        ValueError, FileNotFoundError: if the card is broken, or lacks the config, split or file.
    """
    check_cards(folder)
    card = folder / "README.md"
    if not card.is_file():
        return built_files(folder, config, split)
    header = card_metadata(read_text(card), str(card))
    configs = header.get("configs") or []
    if not isinstance(configs, list) or not all(
        isinstance(each, dict) and "config_name" in each for each in configs
    ):
        raise ValueError(
            f"{card}: configs: expected a list of mappings with config_name: correct the card"
        )
    if not configs:
        return []
    names = [str(c["config_name"]) for c in configs]
    if config is None:
        chosen = next((c for c in configs if c.get("default")), configs[0])
    elif config in names:
        chosen = configs[names.index(config)]
    else:
        raise ValueError(
            f"{folder}: config: expected one in the dataset card, found {config!r}: use one of {', '.join(names)}"
        )
    listed = chosen.get("data_files")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        return []  # no data_files, or patterns without splits: the rules of `datasets` apply
    for item in listed:
        if "split" not in item or "path" not in item:
            raise ValueError(
                f"{card}: config {chosen['config_name']!r}: data_files: expected items with split "
                f"and path, found {item}: correct the card"
            )
    splits = {str(item["split"]): item["path"] for item in listed}
    if split not in splits:
        raise ValueError(
            f"{folder}: split: config {chosen['config_name']!r} has no {split!r}; "
            f"found {', '.join(splits)}"
        )
    patterns = splits[split] if isinstance(splits[split], list) else [splits[split]]
    try:
        files = sorted({f for pattern in patterns for f in folder.glob(str(pattern))})
    except (ValueError, NotImplementedError) as error:  # an empty or absolute pattern
        raise ValueError(f"{card}: data_files: {patterns}: {error}: correct the card") from None
    if not files:
        raise FileNotFoundError(f"{folder}: no file matches {', '.join(map(str, patterns))}")
    return files if all(f.suffix == ".parquet" for f in files) else []


def built_files(folder: Path, config: str | None, split: str) -> list[Path]:
    """Return the parquet files of a build without a dataset card; empty for any other folder.

    Raises:
        ValueError, FileNotFoundError: if the manifest is broken, or lacks the config, split or file.
    """
    path = folder / "manifest.json"
    if (folder / "README.md").exists() or not path.is_file():
        return []
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != _BUILT:
        return []
    check_shape(manifest, {"configs": {...: {"path": str}}}, str(path))
    configs = manifest["configs"]
    config = next(iter(configs), None) if config is None else config
    if config not in configs or split != "train":
        key, value = ("split", split) if config in configs else ("config", config)
        known = "train" if config in configs else ", ".join(configs)
        raise ValueError(one_line(f"{folder}: {key}: expected one of {known}, found {value!r}"))
    pattern = configs[config]["path"]
    if not stays_inside(pattern):
        raise ValueError(
            one_line(f"{path}: configs: expected files below {folder}, found {pattern!r}")
        )
    if files := sorted(folder.glob(pattern)):
        return files
    raise FileNotFoundError(one_line(f"{folder}: no file matches {pattern!r}"))


def _by_datasets(path: str, config: str | None, split: str, revision: str | None) -> list[str]:
    builder = dataset_builder(path, config, revision, f"config {config!r}")
    splits = builder.config.data_files or {}
    if split not in splits:
        raise ValueError(
            f"{path}: split: config {builder.config.name!r} has no {split!r}; "
            f"found {', '.join(map(str, splits))}"
        )
    return [str(f) for f in splits[split]]


def no_images(path: str) -> str:
    """Return the error text for a `limit` on rows that have no image."""
    return (
        f"{path}: limit: expected rows with images, which limit counts, found none in the recipe's languages "
        "and tasks: leave limit out"
    )


class ParquetTable:
    """Several parquet files as one table, with rows numbered across files.

    Only the files' footers are read at first. Every process opens the files itself.

    Raises:
        StorageError: if a file cannot be read or lacks a column.
        ConnectionError: if a file on the Hub cannot be fetched.
    """

    def __init__(self, files: Sequence[str]):
        self.files = list(files)
        self._open: dict[tuple[int, int, bool], pq.ParquetFile] = {}
        self.schema: pa.Schema = self._file(0).schema_arrow
        self.columns: list[str] = self.schema.names
        # (file, row group) of every row group. `first` has their first rows and the total.
        self.groups: list[tuple[int, int]] = []
        first = [0]
        for number in range(len(self.files)):
            footer = self._file(number).metadata
            for group in range(footer.num_row_groups):
                self.groups.append((number, group))
                first.append(first[-1] + footer.row_group(group).num_rows)
        self.first: np.ndarray = np.array(first, np.int64)

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    @property
    def remote(self) -> bool:
        """Whether the files are on the Hub."""
        return self.files[0].startswith(HUB)

    def _file(self, number: int, ahead: bool = False) -> pq.ParquetFile:
        # A forked process must not share its parent's file position.
        key = (os.getpid(), number, ahead)
        if key not in self._open:
            name = self.files[number]
            with reading_table(name):
                if name.startswith(HUB):
                    from huggingface_hub import HfFileSystem

                    cache = {"cache_type": "readahead", "block_size": AHEAD}
                    source = HfFileSystem().open(
                        name, "rb", **(cache if ahead else {"cache_type": "none"})
                    )
                    opened = pq.ParquetFile(source, pre_buffer=not ahead)
                else:
                    opened = pq.ParquetFile(name)
                check_column_names(opened.schema_arrow.names, name)
            self._open[key] = opened
        return self._open[key]

    def _read(self, group: int, columns: Sequence[str], ahead: bool = False) -> pa.Table:
        number, inside = self.groups[group]
        name = self.files[number]
        with reading_table(name):
            found = self._file(number, ahead).read_row_group(inside, columns=list(columns))
            # Without this, invalid UTF-8 would be found only when its row is read.
            found.validate(full=True)
        missing = [c for c in columns if c not in found.column_names]
        if missing:
            raise StorageError(
                f"{name}: expected the column {missing[0]!r}, which {self.files[0]} has, because files of one table "
                f"have the same columns, found {', '.join(found.column_names)}"
            )
        return found

    def scan(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield all rows by row group, for one sequential pass."""
        if not columns:
            yield from (pa.table({"": pa.nulls(rows)}) for rows in np.diff(self.first).tolist())
            return
        for group in range(len(self.groups)):
            yield self._read(group, columns, ahead=True)

    def read(
        self, ranges: Sequence[tuple[int, int]], columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        """Read the rows of [start, stop) ranges, ascending and disjoint; also their numbers, (n,) int64.

        Each row group touched is read once, and released before the next is read.
        """
        parts: list[pa.Table] = []
        wanted = [np.arange(start, stop) for start, stop in ranges]
        rows: np.ndarray = np.concatenate([np.zeros(0, np.int64), *wanted])
        group_of = np.searchsorted(self.first, rows, side="right") - 1
        for group in np.unique(group_of).tolist():
            inside = rows[group_of == group] - self.first[group]
            found = self._read(group, columns)
            # Copy: a slice would keep the whole row group in memory.
            parts.append(found.take(pa.array(inside)) if len(inside) < len(found) else found)
        if not parts:
            return self.schema.empty_table().select(list(columns)), rows
        return pa.concat_tables(parts), rows

    def bounds(self, column: str) -> list[tuple[str, str] | None]:
        """Return the smallest and largest text of a column per row group; None for empty ones.

        The values come from the files' statistics, or from the column if these are missing.
        """
        result: list[tuple[str, str] | None] = []
        for group, (number, inside) in enumerate(self.groups):
            footer = self._file(number).metadata.row_group(inside)
            paths = [footer.column(i).path_in_schema for i in range(footer.num_columns)]
            statistics = footer.column(paths.index(column)).statistics if column in paths else None
            if statistics is not None and statistics.has_min_max:
                result.append((statistics.min, statistics.max))
                continue
            found = pc.min_max(self._read(group, [column], ahead=True).column(0)).as_py()
            result.append(None if found["min"] is None else (found["min"], found["max"]))
        return result


class Unsorted(ValueError):
    """A table is not in the order required for merging."""


class SortedCursor:
    """Reads a table sequentially, up to a requested point.

    Raises:
        Unsorted: naming file and row, if the column `order` is not ascending.
    """

    def __init__(self, table: ParquetTable, columns: Sequence[str], order: str | None):
        self.table, self.order = table, order
        self._chunks = table.scan(columns)
        self._rest: list[pa.Table] = []
        self._before: Any = None
        self.row = 0  # rows returned so far
        self._read = 0

    def _more(self) -> bool:
        found = next(self._chunks, None)
        if found is None:
            return False
        if self.order is not None and len(found):
            values = flat(found[self.order])
            if values.null_count:
                raise Unsorted(f"{self.table.files[0]}: a row has no {self.order}")
            before = [] if self._before is None else [self._before]
            joined = pa.concat_arrays([pa.array(before, values.type), values])
            wrong = np.flatnonzero(pc.greater(joined[:-1], joined[1:]).to_numpy(False))
            if len(wrong):
                i = int(wrong[0])
                raise Unsorted(
                    f"{self.table.files[0]}: row {self._read + i + 1 - len(before)}: "
                    f"{self.order} {joined[i + 1].as_py()!r} comes after {joined[i].as_py()!r}"
                )
            self._before = values[-1].as_py()
        self._read += len(found)
        self._rest.append(found)
        return True

    def up_to(self, cut: Any) -> pa.Table:
        """Return the next rows before a key (with an order) or row number; None returns all others."""
        given: list[pa.Table] = []
        while True:
            if not self._rest and not self._more():
                break
            chunk = self._rest[0]
            if cut is None:
                count = len(chunk)
            elif self.order is None:
                count = min(len(chunk), cut - self.row)
            elif len(chunk) and chunk[self.order][-1].as_py() < cut:
                count = len(chunk)
            else:
                count = bisect.bisect_left(chunk[self.order], cut, key=lambda value: value.as_py())
            given.append(chunk.slice(0, count))
            self.row += count
            if count < len(chunk):
                self._rest[0] = chunk.slice(count)
                break
            self._rest.pop(0)
        return pa.concat_tables(given) if given else pa.table({})


@contextlib.contextmanager
def reading_table(name: str) -> Iterator[None]:
    """Turn exceptions from reading a table into one line that names the file."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        remote = name.startswith(HUB)
        if not (isinstance(error, (OSError, ValueError, pa.ArrowException)) or of_network(error)):
            raise
        if isinstance(error, pa.ArrowException) or not remote:
            raise StorageError(
                one_line(
                    f"{name}: cannot be read as a parquet file: {reason(error)}: write or download it again"
                )
            ) from None
        raise not_fetched(name, error) from None


def check_column_names(names: Sequence[str], file: str) -> None:
    """Raise StorageError if two columns of a table have the same name."""
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise StorageError(
            f"{file}: the column {printable(twice)!r} appears twice: write the file again"
        )


def as_tables(files: Sequence[str]) -> list[ParquetTable]:
    """Group files into tables. The shards of a table share the folder and the name except the number.

    `data/en/clean-00000-of-00002.parquet` and `...-00001-of-...` are one table; `data/fr/...` and
    `data/en/flagged-...` are others.
    """
    shards: dict[tuple[str, str], list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        stem = re.sub(r"(^|[-_])\d+(-of-\d+)?$", "", name.removesuffix(".parquet"))
        shards.setdefault((folder, stem), []).append(file)
    return [ParquetTable(found) for found in shards.values()]


def is_text(schema: pa.Schema, column: str) -> bool:
    """Return whether the column exists and holds strings."""
    return column in schema.names and is_text_type(schema.field(column).type)


def is_texts(schema: pa.Schema, column: str) -> bool:
    """Return whether the column exists and holds lists of strings."""
    kind = schema.field(column).type if column in schema.names else None
    return kind is not None and is_list(kind) and is_text_type(kind.value_type)


def row_name(row_id: str, language: str, path: str) -> str:
    """Return a row's name for errors; with its language, since translations share an id."""
    return f"row {printable(repr(row_id))} ({language}) of {path}"


def flat(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    found = column.combine_chunks()
    if isinstance(found, pa.ChunkedArray):  # no chunks, or too many bytes for one array
        found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], found.type)
    return found
