"""The picture files of a source, by name: in a folder, in a zip, or in parquet tables."""

from __future__ import annotations

import functools
import hashlib
import lzma
import zipfile
import zlib
from collections.abc import Container, Iterable
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from ..images import MAX_BYTES, load_image, read_picture

# What a damaged zip raises (its readers are zlib's and lzma's), and a name that no file can have.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


class PictureTables:
    """Pictures in parquet tables with the columns `image` (their names) and `picture` (their bytes).

    Memory holds the place of every name, and the two row groups that were read last.

    Args:
        wanted: only these names; by default all.

    Raises ValueError for a file that is no such table.
    """

    def __init__(self, files: Iterable[Path], wanted: Container[str] | None = None):
        # Name -> file, row group, and row inside of it.
        self._places: dict[str, tuple[Path, int, int]] = {}
        for path in files:
            try:
                self._index(path, wanted)
            except (KeyError, pa.ArrowInvalid) as error:
                raise ValueError(
                    f"{path}: expected a parquet table with the columns image and picture: {error}"
                ) from None
        self._group = functools.lru_cache(maxsize=2)(self._read_group)

    def _index(self, path: Path, wanted: Container[str] | None) -> None:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                names = file.read_row_group(group, columns=["image"])["image"].to_pylist()
                for row, name in enumerate(names):
                    if wanted is None or name in wanted:
                        self._places[name] = (path, group, row)

    def __len__(self) -> int:
        return len(self._places)

    def read(self, name: str) -> bytes | None:
        """Bytes of a picture. Raises KeyError for a name that no table has."""
        path, group, row = self._places[name]
        picture = self._group(path, group)[row].as_py()
        return picture and picture["bytes"]

    @staticmethod
    def _read_group(path: Path, group: int) -> pa.ChunkedArray:
        with pq.ParquetFile(path) as file:
            return file.read_row_group(group, columns=["picture"])["picture"]


class Pictures:
    """Bytes and SHA-256 of the pictures that rows name.

    Args:
        path: a folder, a .zip (its directory is held in memory, about half a kilobyte a picture),
            or a folder with an `images` folder of parquet tables with the columns `image` and
            `picture`, as the mini dataset has.
        decode: decode each picture that is hashed, so that a broken one is found.

    Raises FileNotFoundError when there is no such folder or zip, ValueError for a broken zip
    or table.
    """

    def __init__(self, path: Path, decode: bool = False):
        self.path, self._decode = path, decode
        self._zip: zipfile.ZipFile | None = None
        self._tables: PictureTables | None = None
        if path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path}: not a zip file: {error}") from None
        elif not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder or zip of images")
        else:
            tables = sorted((path / "images").glob("*.parquet"))
            self._tables = PictureTables(tables) if tables else None
        # 665K conversations are about half as many pictures: neighbours share one.
        self.sha256 = functools.lru_cache(maxsize=4096)(self._sha256)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError or ValueError (one line naming the picture)."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r}: expected a path inside {self.path}")
        data: bytes | None
        try:
            if self._zip is not None:
                data = self._zip.read(name)
            elif self._tables is not None:
                data = self._tables.read(name)
            else:
                data = (self.path / name).read_bytes()
        except (KeyError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise FileNotFoundError(f"{name!r}: no such picture in {self.path}") from None
        except _BROKEN as error:
            reason = str(error) or "it is cut off"
            raise ValueError(f"{name!r}: cannot be read from {self.path}: {reason}") from None
        if not data:
            raise ValueError(f"{name!r}: an empty file in {self.path}")
        return data

    def read_checked(self, name: str) -> bytes:
        """Bytes of a picture that is copied for others: opened and decoded as `load_image` does it.

        Raises as `read`, and ValueError for a picture that cannot be decoded, is too large, or is a
        link out of the folder.
        """
        if self._zip is None and self._tables is None:
            try:
                return read_picture(name, root=self.path)
            except FileNotFoundError:
                raise FileNotFoundError(f"{name!r}: no such picture in {self.path}") from None
        if self._zip is not None and name in self._zip.NameToInfo:
            size = self._zip.getinfo(name).file_size
            if size > MAX_BYTES:
                raise ValueError(
                    f"{name!r} in {self.path}: expected at most {MAX_BYTES:,} bytes, found {size:,}"
                )
        data = self.read(name)
        try:
            load_image(data)
        except ValueError as error:
            raise ValueError(f"{name!r} in {self.path}: {error}") from None
        return data

    def _sha256(self, name: str) -> str:
        data = self.read(name)
        if self._decode:
            try:
                load_image(data)
            except ValueError as error:
                raise ValueError(f"{name!r} in {self.path}: {error}") from None
        return hashlib.sha256(data).hexdigest()
