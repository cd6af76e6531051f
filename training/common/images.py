"""ImageStore, the one guarded reader of images, wherever they are stored.

    store = ImageStore(open_place(Path("images.zip")))
    picture = store.load("00453/004539375.jpg")

The decoder is `processing_maya/image_loading_maya.py`, which every saved Maya carries as Hub code.
Sizes are limited both before a file is read and before it is decoded.
"""

from __future__ import annotations

import base64
import io
import posixpath
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit

from .hub_code import processing_module
from .telling import printable

if TYPE_CHECKING:
    from PIL import Image

    from processing_maya.image_loading_maya import (
        MAX_BYTES,
        check_padded_side,
        decode_picture,
        is_base64_picture,
        load_image,
        read_picture_file,
        to_rgb,
        upright,
    )
else:
    _loading = processing_module("image_loading_maya")
    MAX_BYTES, check_padded_side = _loading.MAX_BYTES, _loading.check_padded_side
    decode_picture, is_base64_picture = _loading.decode_picture, _loading.is_base64_picture
    load_image, read_picture_file = _loading.load_image, _loading.read_picture_file
    to_rgb, upright = _loading.to_rgb, _loading.upright

__all__ = [
    "MAX_BYTES",
    "SUFFIXES",
    "ImageStore",
    "Place",
    "StorageError",
    "check_padded_side",
    "decode_picture",
    "is_address",
    "load_image",
    "normal_name",
    "read_picture_file",
    "shown_name",
    "to_rgb",
    "upright",
]

# Extensions of image files.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_ADDRESSES = ("http://", "https://", "data:")


class StorageError(OSError):
    """The storage behind the data failed. It is not a ValueError, because no single row is at fault."""


class Place(Protocol):
    """Storage from which images are read by name."""

    name: str  # for messages

    def read(self, name: str) -> bytes:
        """Return the encoded bytes of an image, at most MAX_BYTES.

        Raises:
            KeyError: if there is no image of that name.
            ValueError: if the image cannot be read or access is not allowed.
            StorageError, ConnectionError: if the storage itself fails.
        """


def is_address(source: str) -> bool:
    """Return whether a text is an image's URL or base64 content, and not a file name."""
    return source.lower().startswith(_ADDRESSES) or is_base64_picture(source)


def png_url(picture: Image.Image) -> str:
    """Return an image as a `data:` URL of a PNG, the form that servers and web pages accept."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class ImageStore:
    """Reads images given by name in a place, URL, base64 text or bytes.

    Args:
        place: the storage of named images; None if rows may not name files.
    """

    def __init__(self, place: Place | None):
        self.place = place

    def load(self, source: str | bytes) -> Image.Image:
        """Return the decoded image, in its own PIL mode.

        Raises:
            ValueError, OSError: one line that names the image; FileNotFoundError if it is missing.
        """
        if not isinstance(source, str) or is_address(source):
            return load_image(source, allow_files=False)
        return decode_picture(self.read(source), source)

    def read(self, name: str) -> bytes:
        """Return the encoded bytes of an image in the place. Raises as `load`."""
        if self.place is None:
            raise ValueError(
                f"Cannot read {shown_name(name)}: it is a file name, and no folder or archive of images is given"
            )
        if name.lower().startswith("file://"):
            name = unquote(urlsplit(name).path)
        slashes = name.replace("\\", "/")
        for spelled in dict.fromkeys((name, normal_name(name), slashes, normal_name(slashes))):
            try:
                data = self.place.read(spelled)
            except KeyError:
                continue
            if not data:
                raise ValueError(
                    f"Cannot read {shown_name(name)} in {self.place.name}: an empty file"
                )
            return data
        raise FileNotFoundError(f"No such image file in {self.place.name!r}: {shown_name(name)}")


def normal_name(name: str) -> str:
    """Return a name without `./`, as archives store it; a name that starts with `..` is unchanged."""
    normal = posixpath.normpath(name) if name else name
    return name if normal.startswith("..") else normal


def shown_name(name: str) -> str:
    """Return a name quoted and printable, cut to 200 characters, for messages."""
    text = printable(repr(name))
    return text if len(text) <= 200 else f"{text[:200]}...'"
