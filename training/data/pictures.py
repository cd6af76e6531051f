"""The picture files of a source, by name: in a folder, in a zip, or in parquet tables."""

from __future__ import annotations

import functools
import hashlib
import lzma
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from ..images import load_image

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
        self._tables: dict[str, tuple[Path, int]] = {}
        if path.is_file():
            try:
                self._zip = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise ValueError(f"{path}: not a zip file: {error}") from None
        elif not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder or zip of images")
        else:
            for file in sorted((path / "images").glob("*.parquet")):
                try:
                    names = pq.read_table(file, columns=["image"], partitioning=None)["image"]
                except (KeyError, pa.ArrowInvalid) as error:
                    raise ValueError(
                        f"{file}: expected a parquet table with the columns image and picture: {error}"
                    ) from None
                self._tables |= {name: (file, n) for n, name in enumerate(names.to_pylist())}
        # 665K conversations are about half as many pictures: neighbours share one.
        self.sha256 = functools.lru_cache(maxsize=4096)(self._sha256)

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError or ValueError (one line naming the picture)."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r}: expected a path inside {self.path}")
        try:
            if self._zip is not None:
                data = self._zip.read(name)
            elif self._tables:
                file, number = self._tables[name]
                picture = self._column(file)[number].as_py()
                data = picture and picture["bytes"]
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

    def _sha256(self, name: str) -> str:
        data = self.read(name)
        if self._decode:
            try:
                load_image(data)
            except ValueError as error:
                raise ValueError(f"{name!r} in {self.path}: {error}") from None
        return hashlib.sha256(data).hexdigest()

    @functools.lru_cache(maxsize=1)  # noqa: B019 - one store lives as long as its source is read
    def _column(self, file: Path) -> pa.ChunkedArray:
        return pq.read_table(file, columns=["picture"], partitioning=None)["picture"]
