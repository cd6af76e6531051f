"""Read conversations and images from rows of any known shape, for validation, building and training.

Each row has one of these shapes: turns under `messages`, `conversations` (LLaVA, PALO) or `turns`; `prompt`
and `text`; or only a `caption` or `text`. An image is in a column (a path, a URL, bytes, base64 text, or a
list of these), in an image part of a message, or in a column and marked by `<image>` in a text.

A row is read completely or refused with the name of its field: no image is silently left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..common.hub_code import processing_module
from ..common.telling import found
from .picture_cells import (
    Found,
    Picture,
    RowError,
    agreed_pictures,
    check_cell,
    is_stray_picture,
    joined_pictures,
    looks_like_picture,
    picture_in_part,
    picture_of,
    pictures_elsewhere,
    pictures_in_cell,
)

if TYPE_CHECKING:
    from processing_maya.conversations_maya import (
        SPEAKERS,
        ConversationError,
        check_messages,
        count_images,
        messages_from_conversations,
        place_marks,
    )
else:
    _rules = processing_module("conversations_maya")
    SPEAKERS, ConversationError = _rules.SPEAKERS, _rules.ConversationError
    check_messages, count_images = _rules.check_messages, _rules.count_images
    messages_from_conversations = _rules.messages_from_conversations
    place_marks = _rules.place_marks

__all__ = ["NAMED", "Found", "Picture", "RowError", "RowReader", "picture_of"]

TURNS = ("conversations", "messages", "turns")
CAPTIONS = ("caption", "text")

# Names of image columns.
PICTURES = (
    "image", "images", "image_path", "image_paths", "image_file", "image_files", "picture", "pictures",
    "img", "imgs", "img_path", "photo", "photos", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
# Numbered names and other letter cases are image columns too: image_2, Image.
_NUMBER = re.compile(r"_?[0-9]+$")
# Columns that may hold images, searched only in rows that have no image elsewhere.
_MAY_BE = re.compile(
    "image|img|pic|photo|screenshot|frame|figure|file|path|media|visual", re.IGNORECASE
)
# These columns hold other files too: a cell counts only if it is named like an image.
FILE_NAMES = ("file_name", "file_names", "filename", "filenames")
# Columns with an image's source; the image is fetched from it if the row has no other image.
ADDRESSES = ("image_url", "image_urls", "img_url", "url", "path", "file")

# Fields for which a recipe or plan may name the column.
NAMED = ("image", "text", "turns")

_NOT_LOOKED_AT = ("id", "lang", "language", "task", "image_sha256")


class RowReader:
    """Reads the rows of a table.

    Args:
        columns: all columns of the table; they decide whether captions have images.
        held: columns that hold images by their type, whatever their names.
        parts: whether parts of messages may hold images.
        named: column of each field in `NAMED`, if names do not say it or several columns match; an empty
            name for `image` means that rows have no images.

    Attributes:
        task: the task of rows that name none.
        texts, pictured, addresses: columns of texts, of images, and of an image's source.
        looked_at: other columns, searched in rows that have no image elsewhere.

    Raises:
        ValueError: if the columns have no known shape.
    """

    def __init__(
        self,
        columns: Iterable[str],
        held: Iterable[str] = (),
        parts: bool = True,
        named: Mapping[str, str] | None = None,
    ):
        columns = list(columns)
        named = named or {}
        for field, column in named.items():
            if field in NAMED and column not in columns and (column or field != "image"):
                raise ValueError(
                    f"columns.{field}: expected one of the columns {', '.join(sorted(columns))}, found "
                    f"{column!r}"
                )
        self.parts = parts
        self.turns = _chosen(named.get("turns"), TURNS, columns)
        self._prompted = "text" not in named and {"prompt", "text"} <= set(columns)
        captions = CAPTIONS[:1] if self._prompted else CAPTIONS
        self.captions = _chosen(named.get("text"), captions, columns)
        if not (self.turns or self._prompted or self.captions):
            raise ValueError(
                "expected columns messages, conversations, prompt and text, or caption, found "
                f"{', '.join(sorted(columns)) or 'none'}"
            )
        self.task = "chat" if self.turns else "caption"
        self.texts = (*self.turns, *(("prompt", "text") if self._prompted else ()), *self.captions)
        own = [c for c in held if c not in self.texts]
        order = ("images", "image", *PICTURES) if "messages" in self.turns else PICTURES
        alike = [c for c in sorted(columns) if _NUMBER.sub("", c.lower()) in PICTURES]
        names = dict.fromkeys((*order, *alike, *FILE_NAMES, *own))
        free = [c for c in names if c in columns and c not in self.texts]
        self._named = "image" in named
        self.pictured = _chosen(named.get("image"), free, columns)
        # `url`, `path` and `file` name a caption's image, but may name the source of a conversation.
        addresses = ADDRESSES if self.task == "caption" else ADDRESSES[:3]
        self.addresses = () if self._named else _chosen(None, addresses, columns)
        known = (*self.texts, *_NOT_LOOKED_AT, *self.pictured, *self.addresses)
        others = [c for c in sorted(columns) if c not in known and not self._named]
        if self.pictured or self.addresses:
            # Wide tables: columns that cannot hold images need not be read.
            others = [c for c in others if _MAY_BE.search(c)]
        self.looked_at = tuple(others)

    @property
    def wanted(self) -> tuple[str, ...]:
        """All columns that reading needs."""
        return (*self.texts, *self.pictured, *self.addresses, *self.looked_at)

    @property
    def wanted_for_pictures(self) -> tuple[str, ...]:
        """The columns that `pictures` needs."""
        texts = self.turns if self.parts else ()
        return (*texts, *self.pictured, *self.addresses, *self.looked_at)

    # Images

    def pictures(self, row: Mapping[str, Any]) -> tuple[Picture, ...]:
        """Return a row's images in reading order. Raises RowError for broken or contradictory cells."""
        return tuple(each.picture for each in self.found_pictures(row))

    def found_pictures(self, row: Mapping[str, Any]) -> list[Found]:
        """Return the images as `pictures`, each with the file name stored beside its bytes."""
        filled = [
            (column, pictures)
            for column in self.pictured
            if (pictures := self._in_column(row, column))
        ]
        if len(filled) > 1:
            filled = [agreed_pictures(filled)]
        parts = self._in_parts(row) if self.parts else []
        if not filled:
            places = self.addresses if any(parts) else (*self.addresses, *self.looked_at)
            filled = [
                (c, p)
                for c in places
                if (p := pictures_elsewhere(row.get(c), c, c in self.addresses))
            ][:1]
        of_columns: tuple[str, list[Found]] = filled[0] if filled else ("", [])
        if not any(parts):
            return of_columns[1]
        return joined_pictures(self.turn_column(row), parts, *of_columns)

    def _in_column(self, row: Mapping[str, Any], column: str) -> list[Found]:
        cell = row.get(column)
        if cell is None:
            return []
        if column in FILE_NAMES and not self._named:
            return pictures_in_cell(cell, column) if looks_like_picture(cell) else []
        return pictures_in_cell(cell, column)

    def turn_column(self, row: Mapping[str, Any]) -> str:
        """Return the column of a row's turns, "" if it has none."""
        return next((c for c in self.turns if row.get(c) is not None), "")

    def _in_parts(self, row: Mapping[str, Any]) -> list[Found | None]:
        """Return the images in image parts of a row's messages; None for a part without image."""
        column = self.turn_column(row)
        turns = row.get(column)
        pictures: list[Found | None] = []
        for number, turn in enumerate(turns if isinstance(turns, list) else ()):
            content = turn.get("content") if isinstance(turn, Mapping) else None
            for place, part in enumerate(content if isinstance(content, list) else ()):
                if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
                    pictures.append(picture_in_part(part, f"{column}[{number}].content[{place}]"))
        return pictures

    # Texts

    def messages(self, row: Mapping[str, Any], images: int) -> list[dict[str, Any]]:
        """Return the conversation of a row that has `images` images. Raises RowError."""
        try:
            messages = self._messages(row, images)
        except _Unplaced as error:
            where = ", ".join((*self.pictured, *self.addresses)) or "no column of pictures"
            more = f"; searched for pictures in: {where}" if not images else ""
            raise RowError(error.field, error.reason + more) from None
        fields = self._fields(row, messages)
        for field, message in zip(fields, messages, strict=True):
            _check_message(field, message)
        if all(message["role"] != "assistant" for message in messages):
            raise RowError(_root(fields[0]), "no assistant turn, there is nothing to learn")
        if images and all(message["role"] != "user" for message in messages):
            raise RowError(_root(fields[0]), f"{images} images but no user turn to put them in")
        late = next((n for n, m in enumerate(messages) if n and m["role"] == "system"), None)
        if late is not None:
            raise RowError(fields[late], "a system turn: expected it only at the start")
        return messages

    def _fields(self, row: Mapping[str, Any], messages: Sequence[Any]) -> list[str]:
        """Return the name of each message for errors."""
        column = self.turn_column(row)
        if column:
            # A leading answer was dropped, so numbering starts later.
            first = len(row[column]) - len(messages)
            return [f"{column}[{first + number}]" for number in range(len(messages))]
        if self._is_prompted(row):
            return ["prompt", "text"]
        (caption,) = [c for c in self.captions if row.get(c) is not None][:1]
        return [caption, caption]

    def _is_prompted(self, row: Mapping[str, Any]) -> bool:
        return self._prompted and (
            not self.captions or any(row.get(c) is not None for c in ("prompt", "text"))
        )

    def _messages(self, row: Mapping[str, Any], images: int) -> list[dict[str, Any]]:
        column = self.turn_column(row)
        others = [c for c in self.turns if column and row.get(c) not in (None, [], row[column])]
        if others:
            raise RowError(
                f"{column}, {others[0]}",
                "expected turns in one of these, found both: remove one, or name the column of turns "
                "(columns: {turns: NAME})",
            )
        if column:
            return _from_turns(column, row[column], images)
        if self._is_prompted(row):
            said = [_text(row, c) for c in ("prompt", "text")]
            return _asked(said, images, ("prompt", "text"))
        caption = next((c for c in self.captions if row.get(c) is not None), None)
        if caption is None:
            expected = "a list of turns" if self.turns else "text"
            some = "" if len(self.texts) == 1 else " in one of these"
            raise RowError(", ".join(self.texts), f"expected {expected}{some}, found nothing")
        if not images and (self.pictured or self.addresses):
            column = (*self.pictured, *self.addresses)[0]
            raise RowError(column, "expected the image of the caption, found nothing")
        # A caption alone: the user turn is the image without text.
        return _asked(["", _text(row, caption)], images, (caption, caption))


class _Unplaced(RowError):
    """The number of image marks or parts differs from the number of images."""


def _chosen(named: str | None, known: Iterable[str], columns: Sequence[str]) -> tuple[str, ...]:
    if named is not None:
        return (named,) if named else ()
    return tuple(name for name in known if name in columns)


def _root(field: str) -> str:
    return field.partition("[")[0]


def _text(row: Mapping[str, Any], column: str) -> str:
    cell = row.get(column)
    if not isinstance(cell, str):
        raise RowError(column, f"expected text, found {found(cell)}")
    return cell


def _asked(said: list[str], images: int, fields: tuple[str, str]) -> list[dict[str, Any]]:
    messages = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant"), said, strict=True)
    ]
    return _checked(messages, images, lambda turn: fields[(turn or 1) - 1])


def _from_turns(column: str, turns: Any, images: int) -> list[dict[str, Any]]:
    if not isinstance(turns, list):
        raise RowError(column, f"expected a list of turns, found {found(turns)}")

    def field(turn: int | None) -> str:
        return column if turn is None else f"{column}[{turn - 1}]"

    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise RowError(field(number), f"expected a mapping, found {found(turn)}")
        for key, value in turn.items():
            if key not in ("role", "content", "from", "value") and is_stray_picture(key, value):
                raise RowError(
                    f"{field(number)}.{key}",
                    "expected the pictures of a turn in image parts of its content or in a column, found "
                    f"{found(value)}",
                )
    if any(turn.get(key) is not None for turn in turns for key in ("from", "value")):
        said = [
            {"from": _either(turn, "from", "role"), "value": _either(turn, "value", "content")}
            for turn in turns
        ]
        try:
            return messages_from_conversations(said, images, column)
        except ConversationError as error:
            kind = _Unplaced if " images but " in error.reason else RowError
            raise kind(field(error.turn), error.reason) from None
    messages = [_message(turn, field(number)) for number, turn in enumerate(turns, 1)]
    # In LLaVA's turns, `<image>` in an answer is a mistake; here images have other places, so it is text.
    return _checked(messages, images, field, answers_are_text=True)


def _either(turn: Mapping[str, Any], first: str, second: str) -> Any:
    value = turn.get(first)
    return turn.get(second) if value is None else value


def _message(turn: Mapping[str, Any], field: str) -> dict[str, Any]:
    role, content = turn.get("role"), turn.get("content")
    if not isinstance(role, str):
        raise RowError(f"{field}.role", f"expected text, found {found(role)}")
    if isinstance(content, list):
        content = [_part(part, f"{field}.content[{i}]") for i, part in enumerate(content)]
    elif not isinstance(content, str):
        raise RowError(
            f"{field}.content", f"expected text or a list of parts, found {found(content)}"
        )
    return {"role": SPEAKERS.get(role, role), "content": content}


def _part(part: Any, field: str) -> dict[str, Any]:
    """Return a message part without its image."""
    if not isinstance(part, Mapping):
        raise RowError(field, f"expected a mapping, found {found(part)}")
    if part.get("type") in ("image", "image_url"):
        return {"type": "image"}
    if part.get("type") == "text" and not isinstance(part.get("text"), str):
        raise RowError(f"{field}.text", f"expected text, found {found(part.get('text'))}")
    for key, value in part.items():
        if key != "text" and is_stray_picture(key, value):
            raise RowError(
                f"{field}.{key}",
                f"expected a picture in a part of type 'image', found {found(value)}",
            )
    # Arrow gives every part the keys of all parts, so drop empty ones.
    return {name: value for name, value in part.items() if value is not None}


def _checked(
    messages: list[dict[str, Any]],
    images: int,
    field: Callable[[int | None], str],
    answers_are_text: bool = False,
) -> list[dict[str, Any]]:
    try:
        check_messages(messages, "")
    except ConversationError as error:
        raise RowError(field(error.turn), error.reason) from None
    if any("<image>" in text for message in messages for text in texts_of(message)):
        try:
            messages = place_marks(messages, images, "", answers_are_text=answers_are_text)
        except ConversationError as error:
            kind = _Unplaced if " images but " in error.reason else RowError
            raise kind(field(error.turn), error.reason) from None
    placed = count_images(messages)
    if placed and placed != images:
        raise _Unplaced(
            _root(field(None)),
            f'{images} images but {placed} {{"type": "image"}} parts in the messages: give each image '
            "one part, or none to put them all before the first question.",
        )
    return messages


def texts_of(message: Mapping[str, Any]) -> list[str]:
    """Return the texts of a message, one per text part."""
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _check_message(field: str, message: Mapping[str, Any]) -> None:
    texts = texts_of(message)
    if message["role"] == "assistant" and not "".join(texts).strip():
        reason = "the assistant's answer is empty, there is nothing to learn or continue from."
        raise RowError(field, reason)
    for text in texts:
        check_cell(text, field)
