"""Read the picture files of a source by name, from a folder, a zip or tar, or parquet tables."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...common.files import sha256_bytes
from ...common.images import ImageStore, decode_picture, load_image, to_rgb
from ...common.places import open_place


class Looked(NamedTuple):
    """The result of decoding a picture: its fault, or None; width and height in pixels."""

    fault: str | None
    size: tuple[int, int] = (0, 0)


@functools.lru_cache(maxsize=2)
def look_at(data: bytes) -> Looked:
    """Decode a picture as training does; the cache serves both readers of a row."""
    try:
        picture = load_image(data)
    except ValueError as error:
        return Looked(str(error).partition(": ")[2])
    try:
        to_rgb(picture)
    except ValueError as error:
        return Looked(str(error))
    return Looked(None, picture.size)


def fault_of(data: bytes, name: str) -> str | None:
    """Return the fault of the picture `name`, or None."""
    fault = look_at(data).fault
    return None if fault is None else f"Cannot read {name!r}: {fault}"


class Pictures:
    """Read bytes and SHA-256 of the pictures that rows name.

    Args:
        path: a folder; a .zip or .tar, whose directory is kept in memory (about 0.5 KB per picture); or a
            folder with parquet tables of names and bytes in `images`, like the mini dataset.
        decode: decode each picture that is hashed, to find broken ones.
        follow_links: follow links in the folder that lead out of it. Never for pictures that are
            published: the folder's author may have linked to any file of this machine.

    Raises:
        FileNotFoundError: the folder or archive is missing.
        ValueError: the archive or table is broken.
    """

    def __init__(self, path: Path, decode: bool = False, follow_links: bool = False):
        self.path, self._decode = path, decode
        self._store = ImageStore(open_place(path, follow_links))
        # Neighbouring conversations share a picture: LLaVA's 665K have about half as many pictures.
        self.sha256 = functools.lru_cache(maxsize=4096)(self._sha256)

    def read(self, name: str) -> bytes:
        """Read a picture.

        Raises:
            FileNotFoundError, ValueError, OSError: one line that names the picture.
        """
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"expected a path inside {self.path}, found {name!r}")
        return self._store.read(name)

    def read_checked(self, name: str) -> bytes:
        """Read a picture for publishing; raise like `read`, and ValueError if it does not decode."""
        data = self.read(name)
        decode_picture(data, name)
        return data

    def _sha256(self, name: str) -> str:
        data = self.read(name)
        if self._decode and (fault := fault_of(data, name)) is not None:
            raise ValueError(fault)
        return sha256_bytes(data)
