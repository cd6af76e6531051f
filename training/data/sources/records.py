"""Convert a record of any known shape to a source row, or return the reason why it is rejected.

`RowReader` reads the record. A built dataset has further requirements, checked here: an id, a language, at most
one picture, and alternating turns of user and assistant. Unknown keys are ignored: PALO's files have several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from ...common.files import sha256_bytes
from ...common.images import is_address
from ...common.languages import CODES
from ...common.telling import found, one_line
from ...rows.conversations import Found, RowError, RowReader, texts_of
from ...rows.json_rows import Unreadable
from ...rows.parquet import Row
from ...rows.picture_cells import check_cell, language_of_cell

SOURCE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("image_sha256", pa.string()),
        ("lang", pa.string()),
        ("task", pa.string()),
        ("text", pa.string()),
        ("turns", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
    ]
)

# Field of a row -> columns to look in, unless the plan's `columns` names one. `RowReader` finds the fields
# without columns here.
COLUMNS: dict[str, tuple[str, ...]] = {
    "id": ("id", "image_id", "key"),
    "image": (),
    "image_sha256": ("image_sha256",),
    "lang": ("lang", "language"),
    "text": (),
    "turns": (),
}
IMAGE_MARK = "<image>"
_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Problem:
    """The reason why a row is rejected. `row` is its place: file, number and id.

    All three are one printable line. What UTF-8 cannot encode, such as bytes of an unusual file name, is escaped
    (`\\udcff`), so that a problem can always be stored.
    """

    row: str
    field: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("row", "field", "reason"):
            object.__setattr__(self, name, one_line(getattr(self, name)))

    def __str__(self) -> str:
        return f"{self.row}: {self.field}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """A source row, with its picture's bytes and its place.

    where: place in the source, for messages.
    data: bytes of the picture, if the record contains them.
    note: what was dropped from the row, for statistics.
    """

    row: Row
    where: str
    data: bytes | None = None
    note: str | None = None

    @property
    def place(self) -> str:
        """Place in the source, with the id."""
        return place_of(self.where, self.row["id"])


def to_row(
    record: Any,
    where: str,
    reader: RowReader,
    *,
    language: str | None,
    task: str | None,
    columns: Mapping[str, str],
) -> Record | Problem:
    """Convert a record to a source row.

    Args:
        record: the record, or a problem found while reading it.
        where: place of the record, for messages.
        reader: reader of the record's table.
        language: BCP-47 code for records without a language.
        task: "caption" takes the answer as `text`, from a conversation of one question.
        columns: field -> column, for fields in none of `COLUMNS`.
    """
    if isinstance(record, (Problem, Unreadable)):
        return record if isinstance(record, Problem) else Problem(where, "row", record.reason)
    fields = {
        field: record[name]
        for field, names in COLUMNS.items()
        for name in ([columns[field]] if field in columns else names)[::-1]
        if record.get(name) is not None
    }
    try:
        return _row(record, where, reader, fields, language, task)
    except RowError as error:
        return Problem(place_of(where, fields.get("id")), error.field, error.reason)


def place_of(where: str, identity: Any) -> str:
    """Return the place of a record, with its id."""
    return f"{where} (id {str(identity)!r})" if isinstance(identity, (str, int)) else where


def _row(
    record: Mapping[str, Any],
    where: str,
    reader: RowReader,
    fields: Row,
    language: str | None,
    task: str | None,
) -> Record:
    pictures = reader.found_pictures(record)
    messages = reader.messages(record, len(pictures))
    image, sha256, data = _image(pictures, fields.get("image_sha256"))
    column = reader.turn_column(record)
    texts = ["".join(texts_of(message)).strip() for message in messages]
    text = turns = note = None
    if column or texts[0]:
        turns = _turns(column or "prompt", messages, texts)
        if column and len(turns) < len(record[column]):
            note = "first turn is an answer: turn left out"
        if task == "caption":
            if len(turns) != 2:
                raise RowError(
                    column or "prompt",
                    f"a caption has one question and answer, found {len(turns)} turns",
                )
            text, turns = turns[1]["content"], None
    else:
        text = texts[1]
    row = {
        "id": _id(fields.get("id")),
        "image": image,
        "image_sha256": sha256,
        "lang": _language(record, fields.get("lang"), language),
        "task": task or ("caption" if text is not None else "conversation"),
        "text": text,
        "turns": turns,
    }
    return Record(row, where, data, note)


def _id(value: Any) -> str:
    # Whole numbers are converted to text; true and 1.5 are not ids.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise RowError("id", "missing")
    if not isinstance(value, str):
        raise RowError("id", f"expected text, found {found(value)}")
    check_cell(value, "id")
    if not value.strip():
        raise RowError("id", "empty")
    return value.strip()


def _turns(
    column: str, messages: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> list[dict[str, str]]:
    turns = [
        {"role": message["role"], "content": text}
        for message, text in zip(messages, texts, strict=True)
    ]
    if turns[0]["role"] == "assistant":
        # Drop an answer without a question, as LLaVA does.
        turns = turns[1:]
    for number, turn in enumerate(turns):
        if turn["role"] == "system":
            raise RowError(
                f"{column}[{number}]", "expected turns of user and assistant, found system"
            )
        if not turn["content"]:
            raise RowError(f"{column}[{number}]", "expected text, found none")
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn["role"] != expected:
            raise RowError(column, f"turn {number + 1} should be the {expected}'s")
    if len(turns) < 2 or len(turns) % 2:
        raise RowError(column, "the last question has no answer")
    return turns


def _image(pictures: Sequence[Found], sha256: Any) -> tuple[str | None, str | None, bytes | None]:
    """Return a row's picture: path, SHA-256 if known, bytes if the row contains them."""
    if not pictures:
        return None, None, None
    if len(pictures) > 1:
        raise RowError("image", f"expected one picture, found {len(pictures)}")
    picture, name = pictures[0]
    if isinstance(picture, bytes):
        sha256 = sha256_bytes(picture)
        value = (PurePosixPath(name).name if name else "") or sha256
        check_cell(value, "image")
        return value, sha256, picture
    if is_address(picture) and not picture.lower().startswith("http"):
        raise RowError(
            "image",
            "expected a path, found a picture as text: write it to a file that the row names",
        )
    path = PurePosixPath(picture)
    if path.is_absolute() or ".." in path.parts or picture.lower().startswith("file:"):
        raise RowError("image", f"expected a path inside the image folder, found {picture!r}")
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise RowError("image_sha256", f"expected 64 hex digits, found {found(sha256)}")
    return picture, sha256, None


def _language(record: Mapping[str, Any], value: Any, language: str | None) -> str:
    if value is None:
        # PALO's builder leaves translated turns under a key named after their language.
        named = [code for name, code in CODES.items() if record.get(f"{name}_conversation")]
        value = named[0] if len(named) == 1 else language
    if value is None:
        raise RowError(
            "lang", "unknown: neither the row nor the file's name says it; set `language`"
        )
    return language_of_cell(value, "lang")
