"""Pictures by what rows say of them: one guarded reader for every place that holds them.

    store = ImageStore(open_place(Path("images.zip")))
    picture = store.load("00453/004539375.jpg")

The decoder is the one that every saved Maya carries as its own code, `processing_maya/image_loading_maya.py`.
Sizes are bounded before a file is read and before it is decoded.
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

# How the names of picture files end.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_ADDRESSES = ("http://", "https://", "data:")


class StorageError(OSError):
    """What holds the data cannot be read as it should. No ValueError, as no single row is to blame."""


class Place(Protocol):
    """Where pictures are that rows name."""

    name: str  # for messages

    def read(self, name: str) -> bytes:
        """The bytes of a picture, at most MAX_BYTES.

        Raises KeyError for a name that is not there, ValueError for what must not or cannot be read,
        StorageError or ConnectionError where the place itself fails.
        """


def is_address(source: str) -> bool:
    """Whether a text is a picture's address, or the picture itself as text, and no name of a file."""
    return source.lower().startswith(_ADDRESSES) or is_base64_picture(source)


def png_url(picture: Image.Image) -> str:
    """A picture as a `data:` URL of a PNG, as servers and pages take it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class ImageStore:
    """Reads pictures, named in a place or given by address, base64 text or bytes.

    Args:
        place: None where rows can name no file.
    """

    def __init__(self, place: Place | None):
        self.place = place

    def load(self, source: str | bytes) -> Image.Image:
        """The decoded picture, in its own PIL mode.

        Raises ValueError, FileNotFoundError or another OSError with one line that names the picture.
        """
        if not isinstance(source, str) or is_address(source):
            return load_image(source, allow_files=False)
        return decode_picture(self.read(source), source)

    def read(self, name: str) -> bytes:
        """The bytes of a picture that the place has. Raises as `load`; they are not decoded."""
        if self.place is None:
            raise ValueError(
                f"Cannot read {shown_name(name)}: a name, and no folder or archive of pictures is known"
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
    """A name without `./`, as archives have it; one that leads upwards stays as it is."""
    normal = posixpath.normpath(name) if name else name
    return name if normal.startswith("..") else normal


def shown_name(name: str) -> str:
    text = printable(repr(name))
    return text if len(text) <= 200 else f"{text[:200]}...'"
