"""Storage of images: a folder, a .zip or .tar, or parquet tables with image bytes and names."""

from __future__ import annotations

import functools
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .images import MAX_BYTES, Place, StorageError, normal_name, read_picture_file, shown_name
from .reading import open_file
from .telling import one_line, printable

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# Exceptions of zipfile, zlib and lzma for a damaged or encrypted archive.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    OverflowError,
    ValueError,
)


def open_place(path: Path, follow_links: bool = False, keep: bool = False) -> Place:
    """Open a folder of images, a .zip or .tar of images, or a folder with tables in `images/*.parquet`.

    Args:
        follow_links: symbolic links in a folder may lead out of it.
        keep: hold the images of tables in memory.

    Raises:
        FileNotFoundError: if the path does not exist.
        ValueError: if it is another kind of file or a broken archive.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise FileNotFoundError(
            f"{path}: expected a folder, .zip or .tar of images, found nothing: correct the path"
        ) from None
    if stat.S_ISDIR(mode):
        tables = sorted((path / "images").glob("*.parquet"))
        if tables:
            return PictureTables(tables, str(path), keep=keep)
        return FolderPictures(path, follow_links=follow_links)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: expected a folder, .zip or .tar of images, found a special file")
    return _Tar(path) if path.name.lower().endswith(_TARS) else _Zip(path)


class FolderPictures:
    """Images in the files of a folder.

    Args:
        folder: the folder that relative names start from.
        others: further folders whose files may be named by absolute paths.
        follow_links: symbolic links may lead out of the folder.
    """

    def __init__(self, folder: Path, *others: Path, follow_links: bool = True):
        self.name = str(folder)
        self._folders = [
            each for found in (folder, *others) for each in (found.absolute(), found.resolve())
        ]
        self._follow_links = follow_links

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises as `Place.read`."""
        root = self._folders[0]
        if os.path.isabs(name):
            root = next((f for f in self._folders if Path(name).is_relative_to(f)), root)
        try:
            return read_picture_file(name, root=root, follow_links=self._follow_links)
        except FileNotFoundError:
            raise KeyError(name) from None
        except ValueError as error:
            if "lies outside" in str(error):
                raise ValueError(f"{error} {self._way_out(name)}") from None
            raise

    def _way_out(self, name: str) -> str:
        if not self._follow_links:
            return "Copy the image into it, or allow such links (follow_links of a plan's source)"
        if os.path.isabs(name):
            return "Name a folder that contains all images; / contains every file"
        return "Name a folder that contains all images"


class _Zip:
    """Images in a .zip. Its directory is held in memory, about 0.5 kB per file."""

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self._open()

    def _open(self) -> None:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _BROKEN_ZIP as error:
            raise ValueError(
                f"{self.path}: expected a folder, .zip or .tar of images, found a file that is not a zip: "
                f"{printable(str(error))}"
            ) from None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, name: str) -> bytes:
        if self._process != os.getpid():
            # A forked process must not share its parent's file position.
            self._zip.fp = self.path.open("rb")
            self._process = os.getpid()
        try:
            info = self._zip.getinfo(name)
            if info.file_size > MAX_BYTES:
                raise _too_large(name, self.name, info.file_size)
            with self._zip.open(info) as member:
                data = member.read(MAX_BYTES + 1)
        except _BROKEN_ZIP as error:
            if str(error).startswith("Cannot read"):
                raise
            reason = printable(str(error)) or "it is truncated"
            raise ValueError(f"Cannot read {shown_name(name)} from {self.name}: {reason}") from None
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror or error}") from None
        return data


class _Tar:
    """Images in an uncompressed .tar, read in any order. Names and offsets are held in memory."""

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        self._places[normal_name(member.name)] = (member.offset_data, member.size)
                    archive.members = []  # type: ignore[attr-defined] # otherwise tarfile keeps them all
        except tarfile.ReadError as error:
            raise ValueError(
                f"{path}: expected a complete, uncompressed tar, because its images are read in any "
                f"order: {printable(str(error))}: unpack it"
            ) from None

    def read(self, name: str) -> bytes:
        start, size = self._places[name]
        if size > MAX_BYTES:
            raise _too_large(name, self.name, size)
        try:
            with self.path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror or error}") from None
        if len(data) < size:
            raise ValueError(f"Cannot read {shown_name(name)}: {self.name} is truncated")
        return data


def _too_large(name: str, place: str, size: int) -> ValueError:
    return ValueError(
        f"Cannot read {shown_name(name)} in {place}: expected at most {MAX_BYTES:,} bytes, found {size:,}"
    )


# Possible columns of image names, for tables whose struct of bytes holds no name.
_NAMES = ("image", "path")


def is_content(kind: pa.DataType) -> bool:
    """Return whether values are file bytes, or structs with file bytes such as datasets' Image."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        if place < 0:
            return False
        kind = kind.field(place).type
        if pa.types.is_null(kind):
            return True
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class PictureTables:
    """Images in parquet tables; implements `images.Place`.

    The position of every name and the two row groups read last are held in memory.

    Args:
        name: name of the place in messages; by default the first file.
        wanted: index only these names; by default all.
        keep: read all images into memory now, so that any order of access is fast.

    Raises:
        ValueError: if a file is not a table of images and names.
    """

    def __init__(
        self,
        files: Iterable[Path],
        name: str | None = None,
        wanted: Container[str] | None = None,
        keep: bool = False,
    ):
        # Name -> (file, row group, row in the group).
        self._places: dict[str, tuple[Path, int, int]] = {}
        found = list(files)
        self.name = name if name is not None else str(found[0]) if found else "no table"
        for path in found:
            try:
                open_file(path).close()  # refuses pipes and devices
                with pq.ParquetFile(path) as file:
                    for group in range(file.num_row_groups):
                        columns = _name_columns(file.schema_arrow)
                        self._index(
                            file.read_row_group(group, columns=columns), path, group, wanted
                        )
            except (KeyError, pa.ArrowException, OSError) as error:
                raise ValueError(
                    f"{path}: expected a parquet table with a column of image bytes and a column of image "
                    f"names (image or path): {one_line(str(error), 200)}"
                ) from None
        self._keep = keep
        self._make_cache()

    @classmethod
    def of_table(cls, table: pa.Table, name: str) -> PictureTables:
        """Return the images of a table in memory. Raises ValueError if its columns do not fit."""
        try:
            columns = _name_columns(table.schema)
            content = table.column(_column(table.schema))
        except KeyError as error:
            raise ValueError(
                f"{name}: images: expected a column of image bytes and a column of image names (image or "
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
        """Return the bytes of an image; empty if its cell is empty. Raises as `images.Place.read`."""
        path, group, row = self._places[name]
        try:
            value = self._group(path, group)[row].as_py()
        except (pa.ArrowException, OSError) as error:
            raise StorageError(
                one_line(f"{path}: cannot be read as a parquet file: {error}")
            ) from None
        data = (value.get("bytes") if isinstance(value, dict) else value) or b""
        if len(data) > MAX_BYTES:
            raise _too_large(name, self.name, len(data))
        return data

    @staticmethod
    def _read_group(path: Path, group: int) -> pa.ChunkedArray:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=[_column(file.schema_arrow)]).column(0)


def _column(schema: pa.Schema) -> str:
    """Return the column of image bytes. Raises KeyError if there is none."""
    for field in schema:
        if is_content(field.type):
            return field.name
    raise KeyError(f"found the columns {', '.join(schema.names)}")


def _name_columns(schema: pa.Schema) -> list[str]:
    """Return the column of image names, or the struct field that holds them. Raises KeyError."""
    held = _column(schema)
    for name in _NAMES:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return [name]
    kind = schema.field(held).type
    if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
        return [f"{held}.path"]
    raise KeyError(f"found the columns {', '.join(schema.names)}")
