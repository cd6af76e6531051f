"""Read parquet files of builds and of users, with every error in one line."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..common.telling import one_line

Row = dict[str, Any]


@contextlib.contextmanager
def parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file.

    Raises:
        ValueError: naming the file, if it is not parquet, or damaged anywhere that the block reads.
        FileNotFoundError: if it does not exist.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            # Opening a pipe would block until a writer opens it.
            raise ValueError("not an ordinary file")
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        told = str(error)
        if told.startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a readable parquet file: {one_line(told, 300)}") from None


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a parquet file, reading 2,000 at a time. Raises as `parquet_file`.

    Args:
        columns: read only these; missing ones are ignored.
    """
    with parquet_file(path) as file:
        for batch in file.iter_batches(2000, columns=columns):
            yield from batch.to_pylist()


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a parquet file. Raises as `parquet_file`, also for a missing column."""
    with parquet_file(path) as file:
        return file.read(columns=list(columns)).select(list(columns))


def count_rows(path: Path) -> int:
    """Return the row count in a parquet file's footer. Raises as `parquet_file`."""
    with parquet_file(path) as file:
        return file.metadata.num_rows


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of this type are strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are lists, of fixed or variable size."""
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(holds(kind) for holds in kinds)


def item_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of a list's items; other types are returned unchanged."""
    return kind.value_type if is_list(kind) else kind


def check_columns(path: Path, kinds: Mapping[str, Any]) -> None:
    """Raise ValueError, naming file and column, unless a file has these columns with these types.

    Args:
        kinds: column -> a pyarrow type, or a predicate on types.
    """
    with parquet_file(path) as file:
        schema = file.schema_arrow
    for name, kind in kinds.items():
        if schema.names.count(name) != 1:
            there = one_line(", ".join(schema.names), 200)
            raise ValueError(f"{path}: expected one column {name!r}, found {there}")
        found = schema.field(name).type
        if not (kind(found) if callable(kind) else found == kind):
            told = getattr(kind, "__name__", str(kind)).removeprefix("is_")
            raise ValueError(
                f"{path}: column {name!r}: expected {told}, found {one_line(str(found), 100)}"
            )
