"""Images in a row's cells and image parts: paths, URLs, base64 texts or bytes.

An image is read, or refused with the name of its field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..common.images import SUFFIXES, is_address
from ..common.languages import as_language, no_language
from ..common.reading import check_text
from ..common.telling import found

_PART_KEYS = ("image", "url", "path", "base64", "bytes", "image_url")
_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_LONGEST_NAME = 300

Picture = str | bytes


class RowError(ValueError):
    """A fault of a row: the field and the reason."""

    def __init__(self, field: str, reason: str):
        reason = reason.removesuffix(".")
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def check_cell(text: str, field: str) -> None:
    """Raise RowError for text that files or tokenizers cannot take (see `check_text`)."""
    try:
        check_text(text, field)
    except ValueError as error:
        raise RowError(field, str(error).removeprefix(f"{field}: ")) from None


def language_of_cell(cell: Any, field: str) -> str:
    """Return a cell's BCP-47 code. Raises RowError for any other value."""
    code = as_language(cell)
    if code is None:
        raise RowError(field, no_language(cell))
    return code


class Found(NamedTuple):
    """An image of a row, and the file name stored beside its bytes."""

    picture: Picture
    name: str | None


def pictures_in_cell(cell: Any, field: str) -> list[Found]:
    """Return the images of a cell: none, one, or a list of them."""
    if cell is None or cell == "":
        return []
    if isinstance(cell, (list, tuple)):
        return [_picture(each, f"{field}[{number}]") for number, each in enumerate(cell)]
    return [_picture(cell, field)]


def _picture(value: Any, field: str) -> Found:
    """Return the image in a cell or part. In datasets' Image feature, bytes take precedence over path."""
    name = None
    picture = value
    if isinstance(value, Mapping):
        name = value.get("path")
        picture = next((value[k] for k in _PART_KEYS[::-1] if value.get(k)), name)
        if isinstance(picture, Mapping) and set(picture) != set(value):
            return _picture(picture, field)
        held = value.get("bytes")
        if isinstance(held, str) and not is_address(held):
            raise RowError(field, f"expected the bytes of a picture, found {found(held)}")
    if isinstance(picture, (bytearray, memoryview)):
        picture = bytes(picture)
    if not isinstance(picture, (str, bytes)) or not picture:
        raise RowError(
            field,
            f"expected a picture's path, address or bytes, found {found(None if picture in ('', b'') else picture)}",
        )
    if isinstance(picture, str):
        check_cell(picture, field)
    return Found(picture, name if isinstance(name, str) and name else None)


def picture_of(cell: Any, number: int) -> Picture:
    """Return image `number` of a cell. Raises RowError."""
    return pictures_in_cell(cell, "image")[number].picture


def picture_in_part(part: Mapping[str, Any], field: str) -> Found | None:
    """Return the image in an image part, None if it has none. Raises RowError for more than one."""
    keys = [key for key in _PART_KEYS if part.get(key) not in (None, "", {})]
    if not keys:
        return None
    if len(keys) > 1:
        raise RowError(field, f"expected one picture in an image part, found {' and '.join(keys)}")
    return _picture(part[keys[0]], f"{field}.{keys[0]}")


def joined_pictures(
    column: str, parts: list[Found | None], beside: str, of_column: list[Found]
) -> list[Found]:
    """Merge the images in image parts with those of a column, which fill parts without an image."""
    empty = parts.count(None)
    filled = [part for part in parts if part is not None]
    if len(of_column) == len(parts) and all(
        part is None or _same(part, other) for part, other in zip(parts, of_column, strict=True)
    ):
        return [part or other for part, other in zip(parts, of_column, strict=True)]
    if len(of_column) != empty:
        where = f" and {len(of_column)} in {beside}" if of_column else ""
        raise RowError(
            f"{column}, {beside}" if beside else column,
            f"{len(parts)} image parts, {len(filled)} pictures in them{where}: give each part a picture, "
            "or list all pictures in one column",
        )
    rest = iter(of_column)
    return [part or next(rest) for part in parts]


def agreed_pictures(filled: list[tuple[str, list[Found]]]) -> tuple[str, list[Found]]:
    """Return the images of several filled columns that agree. Raises RowError if they differ."""
    first, pictures = filled[0]
    for column, others in filled[1:]:
        same = len(others) == len(pictures) and all(
            _same(one, other) for one, other in zip(pictures, others, strict=True)
        )
        if not same:
            raise RowError(
                f"{first}, {column}",
                f"expected one picture in one column, found {_told(pictures)} and {_told(others)}: remove "
                "one, or name the column of pictures (columns: {image: NAME})",
            )
    # Bytes take precedence over names.
    return next((pair for pair in filled if isinstance(pair[1][0].picture, bytes)), filled[0])


def _told(pictures: list[Found]) -> str:
    some = [found(each.name or each.picture).removeprefix("text ") for each in pictures[:3]]
    return ", ".join(some) + (", ..." if len(pictures) > 3 else "")


def _same(one: Found, other: Found) -> bool:
    """Return whether two values mean the same image, as far as their names tell."""
    if one.picture == other.picture:
        return True
    names = [_name_of(each) for each in (one, other)]
    if isinstance(one.picture, bytes) and isinstance(other.picture, bytes):
        return False
    if None in names:
        return True
    if isinstance(one.picture, bytes) or isinstance(other.picture, bytes):
        # An image's bytes keep only the base name of their file.
        names = [str(name).rpartition("/")[2] for name in names]
    first, second = (f"/{str(name).lstrip('/')}" for name in names)
    return first.endswith(second) or second.endswith(first)


def _name_of(each: Found) -> str | None:
    """Return an image's file name; None for bytes or base64 text without a name."""
    if isinstance(each.picture, bytes):
        return each.name
    text = each.picture
    if text.lower().startswith(("http://", "https://", "file://")):
        return _path(text)
    if is_address(text):
        return None
    return text.replace("\\", "/").removeprefix("./")


def pictures_elsewhere(cell: Any, column: str, is_column: bool) -> list[Found]:
    """Return the images of a cell in a column that is not known as an image column.

    Args:
        is_column: whether the column's name means an image's source.

    Raises:
        RowError: if a column of any other name holds an image's name.
    """
    if is_column and isinstance(cell, (str, list)) and _addresses(cell):
        return pictures_in_cell(cell, column)
    if not looks_like_picture(cell):
        return []
    held = cell[0] if isinstance(cell, list) else cell
    if is_column or isinstance(held, bytes) or (isinstance(held, dict) and held.get("bytes")):
        return pictures_in_cell(cell, column)
    raise RowError(
        column,
        f"expected a picture in a column of pictures, found {found(held)}: rename the column to image, or "
        f"name it (columns: {{image: {column}}})",
    )


def _addresses(cell: str | list[Any]) -> bool:
    texts = cell if isinstance(cell, list) else [cell]
    return bool(texts) and all(isinstance(t, str) and t.lower().startswith("http") for t in texts)


def looks_like_picture(cell: Any) -> bool:
    """Return whether a value is clearly an image: its bytes or base64, or a name with its extension."""
    if isinstance(cell, (list, tuple)):
        return any(looks_like_picture(each) for each in cell)
    if isinstance(cell, Mapping):
        return any(looks_like_picture(cell.get(key)) for key in _PART_KEYS)
    if isinstance(cell, bytes):
        return cell.startswith(_MAGIC) or (cell[:4] == b"RIFF" and cell[8:12] == b"WEBP")
    if not isinstance(cell, str):
        return False
    if not cell.lower().startswith(("http:", "https:")) and is_address(cell):
        return cell[:5].lower() != "data:" or cell[:11].lower() == "data:image/"
    short = len(cell) <= _LONGEST_NAME and "\n" not in cell
    return short and _path(cell).lower().endswith(SUFFIXES)


def _path(text: str) -> str:
    """Return the path of a URL; other texts unchanged."""
    try:
        return urlsplit(text).path if "://" in text else text
    except ValueError:
        return text


def is_stray_picture(key: str, value: Any) -> bool:
    """Return whether a key of a turn or text part holds an image, which would not be read there."""
    if value in (None, "", [], {}):
        return False
    return key in ("image", "images", "image_url") or looks_like_picture(value)
