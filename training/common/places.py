"""Places of pictures: a folder, a .zip or .tar, or a folder of parquet tables."""

from __future__ import annotations

import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

from .images import MAX_BYTES, Place, StorageError, normal_name, read_picture_file, shown_name
from .picture_tables import PictureTables
from .telling import printable

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
# What a damaged zip raises (its readers are zlib's and lzma's), or one with a password.
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
    """A folder of pictures, a .zip or .tar of them, or a folder whose `images` folder has tables of them.

    Args:
        follow_links: links in a folder may lead out of it.
        keep: hold the pictures of tables in memory.

    Raises FileNotFoundError where there is nothing, ValueError for another file or a broken archive.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise FileNotFoundError(
            f"{path}: no such folder, .zip or .tar of pictures: correct the path"
        ) from None
    if stat.S_ISDIR(mode):
        tables = sorted((path / "images").glob("*.parquet"))
        if tables:
            return PictureTables(tables, str(path), keep=keep)
        return FolderPictures(path, follow_links=follow_links)
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: expected a folder, .zip or .tar of pictures, found no file")
    return _Tar(path) if path.name.lower().endswith(_TARS) else _Zip(path)


class FolderPictures:
    """Files of a folder; a place of pictures.

    Args:
        folder: where names begin. others: folders whose files may be named by their whole paths.
        follow_links: links may lead out of the folder.
    """

    def __init__(self, folder: Path, *others: Path, follow_links: bool = True):
        self.name = str(folder)
        self._folders = [
            each for found in (folder, *others) for each in (found.absolute(), found.resolve())
        ]
        self._follow_links = follow_links

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises as `Place` says."""
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
            return "Copy the picture into it, or allow such links (follow_links of a plan's source)"
        if os.path.isabs(name):
            return "Name a folder that holds all pictures; / holds every file"
        return "Name a folder that holds all pictures"


class _Zip:
    """Memory holds the directory, about half a kilobyte a file."""

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self._open()

    def _open(self) -> None:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except _BROKEN_ZIP as error:
            raise ValueError(
                f"{self.path}: expected a folder, .zip or .tar of pictures: not a zip file: "
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
            # A forked process must not share its parent's position in the file.
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
            reason = printable(str(error)) or "it is cut off"
            raise ValueError(f"Cannot read {shown_name(name)} from {self.name}: {reason}") from None
        except OSError as error:
            raise StorageError(f"{self.name}: {error.strerror or error}") from None
        return data


class _Tar:
    """Memory holds names and places; the archive is not compressed, so any file can be read alone."""

    def __init__(self, path: Path):
        self.path, self.name = path, str(path)
        self._places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        self._places[normal_name(member.name)] = (member.offset_data, member.size)
                    archive.members = []  # type: ignore[attr-defined] # else all are kept
        except tarfile.ReadError as error:
            raise ValueError(
                f"{path}: expected a tar that is whole and not compressed, as its pictures are read in "
                f"any order: {printable(str(error))}: unpack it"
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
            raise ValueError(f"Cannot read {shown_name(name)}: {self.name} is cut off")
        return data


def _too_large(name: str, place: str, size: int) -> ValueError:
    return ValueError(
        f"Cannot read {shown_name(name)} in {place}: expected at most {MAX_BYTES:,} bytes, found {size:,}"
    )
