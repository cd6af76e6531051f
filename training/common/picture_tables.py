"""Pictures in parquet tables: a column of their bytes and one of their names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .images import MAX_BYTES, StorageError
from .reading import open_file
from .telling import one_line

# What a row's name of a picture may be called, where the struct of bytes does not hold it.
_NAMES = ("image", "path")


def is_content(kind: pa.DataType) -> bool:
    """Whether values are the bytes of files, or structs with them, as datasets' Image."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        if place < 0:
            return False
        kind = kind.field(place).type
        if pa.types.is_null(kind):
            return True
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class PictureTables:
    """A place of pictures, see `images.Place`.

    Memory holds the place of every name, and the two row groups that were read last.

    Args:
        name: of the place in messages; by default the first file.
        wanted: only these names; by default all.
        keep: hold all pictures in memory, read now: they are then found in any order at no cost.

    Raises ValueError for a file that is no such table.
    """

    def __init__(
        self,
        files: Iterable[Path],
        name: str | None = None,
        wanted: Container[str] | None = None,
        keep: bool = False,
    ):
        # Name -> file, row group, and row inside of it.
        self._places: dict[str, tuple[Path, int, int]] = {}
        found = list(files)
        self.name = name if name is not None else str(found[0]) if found else "no table"
        for path in found:
            try:
                open_file(path).close()  # a pipe or a device is no table
                with pq.ParquetFile(path) as file:
                    for group in range(file.num_row_groups):
                        columns = _name_columns(file.schema_arrow)
                        self._index(
                            file.read_row_group(group, columns=columns), path, group, wanted
                        )
            except (KeyError, pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"{path}: expected a parquet table with a column of image bytes and one of their "
                    f"names (image or path): {one_line(str(error), 200)}"
                ) from None
        self._keep = keep
        self._make_cache()

    @classmethod
    def of_table(cls, table: pa.Table, name: str) -> PictureTables:
        """The pictures of a table in memory. Raises ValueError for a table of another form."""
        try:
            columns = _name_columns(table.schema)
            content = table.column(_column(table.schema))
        except KeyError as error:
            raise ValueError(
                f"{name}: images: expected a column of image bytes and one of their names (image or "
                f"path): {error.args[0]}"
            ) from None
        pictures = cls([], name)
        column = columns[0].partition(".")[0]
        pictures._index(table.select([column]), Path(name), 0, None)
        pictures._group = lambda path, group: content
        return pictures

    def _index(
        self, table: pa.Table, path: Path, group: int, wanted: Container[str] | None
    ) -> None:
        column = table.column(0)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "path")
        for row, name in enumerate(column.to_pylist()):
            if name is not None and (wanted is None or name in wanted):
                self._places[name] = (path, group, row)

    def _make_cache(self) -> None:
        self._group: Callable[[Path, int], pa.ChunkedArray] = functools.lru_cache(
            maxsize=None if self._keep else 2
        )(self._read_group)
        if self._keep:
            for path, group in dict.fromkeys((p, g) for p, g, _ in self._places.values()):
                self._group(path, group)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_group"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._make_cache()

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str) -> bytes:
        """Bytes of a picture; empty where the table has none. Raises as `images.Place` says."""
        path, group, row = self._places[name]
        try:
            value = self._group(path, group)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                one_line(f"{path}: cannot be read as a parquet file: {error}")
            ) from None
        data = (value.get("bytes") if isinstance(value, dict) else value) or b""
        if len(data) > MAX_BYTES:
            raise ValueError(
                f"Cannot read {name!r} in {self.name}: expected at most {MAX_BYTES:,} bytes, found "
                f"{len(data):,}"
            )
        return data

    @staticmethod
    def _read_group(path: Path, group: int) -> pa.ChunkedArray:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[_column(file.schema_arrow)]).column(0)


def _column(schema: pa.Schema) -> str:
    """The column of the pictures' bytes. Raises KeyError."""
    for field in schema:
        if is_content(field.type):
            return field.name
    raise KeyError(f"found the columns {', '.join(schema.names)}")


def _name_columns(schema: pa.Schema) -> list[str]:
    """The column of the pictures' names, or that part of the struct that holds them. Raises KeyError."""
    held = _column(schema)
    for name in _NAMES:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return [name]
    kind = schema.field(held).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        return [f"{held}.path"]
    raise KeyError(f"found the columns {', '.join(schema.names)}")
