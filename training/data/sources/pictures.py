"""Read the picture files of a source by name, from a folder, a zip or tar, or parquet tables."""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...common.files import sha256_bytes
from ...common.images import ImageStore, decode_picture, load_image, to_rgb
from ...common.places import open_place


class Looked(NamedTuple):
    """The result of decoding a picture: its fault, or None; its width and height."""

    fault: str | None
    size: tuple[int, int] = (0, 0)


@functools.lru_cache(maxsize=2)
def look_at(data: bytes) -> Looked:
    """Decode a picture as training does, once for both readers of a row."""
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
    """Describe the fault of the picture `name`; return None if there is none."""
    fault = look_at(data).fault
    return None if fault is None else f"Cannot read {name!r}: {fault}"


class Pictures:
    """Bytes and SHA-256 of the pictures that rows name.

    Args:
        path: a folder, a .zip or .tar (its directory is held in memory, about half a kilobyte a
            picture), or a folder with an `images` folder of parquet tables of names and bytes, as the
            mini dataset has.
        decode: decode each picture that is hashed, so that a broken one is found.
        follow_links: take pictures from outside of a folder, where links in it lead there. What is
            published must not: whoever made the folder may have linked to any file of this machine.

    Raises FileNotFoundError when there is no such folder or archive, ValueError for a broken archive or
    table.
    """

    def __init__(self, path: Path, decode: bool = False, follow_links: bool = False):
        self.path, self._decode = path, decode
        self._store = ImageStore(open_place(path, follow_links))
        # 665K conversations are about half as many pictures: neighbours share one.
        self.sha256 = functools.lru_cache(maxsize=4096)(self._sha256)

    def read(self, name: str) -> bytes:
        """Read a picture. Raises FileNotFoundError, ValueError or another OSError (one line naming the picture)."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r}: expected a path inside {self.path}")
        return self._store.read(name)

    def read_checked(self, name: str) -> bytes:
        """Bytes of a picture that is copied for others. Raises as `read`, and ValueError for what is no picture."""
        data = self.read(name)
        decode_picture(data, name)
        return data

    def _sha256(self, name: str) -> str:
        data = self.read(name)
        if self._decode and (fault := fault_of(data, name)) is not None:
            raise ValueError(fault)
        return sha256_bytes(data)
