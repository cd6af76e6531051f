"""One record of any known shape becomes one source row, or the reasons why it cannot.

Shapes: a caption (`text` or `caption`), `messages` (role, content), LLaVA's and PALO's
`conversations` (from, value). Keys that are not known are left alone: PALO's files carry several.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

Row = dict[str, Any]

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

# Where a field is looked for when the plan's `columns` does not say.
COLUMNS = {
    "id": ("id", "image_id", "key"),
    "image": ("image", "image_path", "file_name", "picture"),
    "image_sha256": ("image_sha256",),
    "lang": ("lang", "language"),
    "text": ("text", "caption"),
    "turns": ("conversations", "messages", "turns"),
}
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
LANGUAGES = {
    "english": "en",
    "chinese": "zh",
    "french": "fr",
    "spanish": "es",
    "russian": "ru",
    "hindi": "hi",
    "japanese": "ja",
    "arabic": "ar",
    "bengali": "bn",
    "urdu": "ur",
}
IMAGE_MARK = "<image>"
_SHA256 = re.compile("[0-9a-fA-F]{64}")


@dataclass(frozen=True)
class Problem:
    """Why a row is refused. `row` says where it stands: file, number and id.

    What UTF-8 cannot hold, such as the bytes of an odd file name, is written out (`\\udcff`), so that
    a problem can always be printed and stored.
    """

    row: str
    field: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("row", "field", "reason"):
            text = getattr(self, name).encode("utf-8", "backslashreplace").decode()
            object.__setattr__(self, name, text)

    def __str__(self) -> str:
        return f"{self.row}: {self.field}: {self.reason}"


@dataclass(frozen=True)
class Record:
    """A source row, and what came with it.

    where: its place in the source, for messages.
    data: the picture's bytes, where the record holds them.
    note: what was left out of the row, for the count.
    """

    row: Row
    where: str
    data: bytes | None = None
    note: str | None = None


class _Bad(Exception):
    def __init__(self, field: str, reason: str):
        self.field, self.reason = field, reason


def to_row(
    record: Any,
    where: str,
    *,
    language: str | None,
    task: str | None,
    columns: Mapping[str, str],
) -> Record | Problem:
    """A record as a source row.

    Args:
        where: place of the record, for messages.
        language: BCP-47, for records that do not say theirs.
        task: "caption" takes the answer of a conversation of one question as `text`.
        columns: which column of the record is which field, where it is not one of `COLUMNS`.
    """
    if isinstance(record, Problem):
        return record
    if not isinstance(record, Mapping):
        return Problem(where, "row", f"expected a mapping of fields, found {_short(record)}")
    fields = {
        field: record[name]
        for field, names in COLUMNS.items()
        for name in ([columns[field]] if field in columns else names)[::-1]
        if record.get(name) is not None
    }
    try:
        return _row(record, where, fields, language, task)
    except _Bad as error:
        if isinstance(identity := fields.get("id"), (str, int)):
            where = f"{where} (id {_short(str(identity))})"
        return Problem(where, error.field, error.reason)


def _row(
    record: Mapping[str, Any], where: str, fields: Row, language: str | None, task: str | None
) -> Record:
    image, sha256, data = _image(fields.get("image"), fields.get("image_sha256"))
    text = turns = note = None
    if "turns" in fields:
        turns = _turns(fields["turns"], has_image=image is not None)
        if len(turns) < len(fields["turns"]):
            note = "first turn is an answer: turn left out"
        if task == "caption":
            if len(turns) != 2:
                raise _Bad("turns", f"a caption has one question and answer, found {len(turns)}")
            text, turns = turns[1]["content"], None
    elif "text" in fields:
        text = _text("text", fields["text"])
    else:
        raise _Bad("text", "missing: no caption and no conversation")
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
    # A whole number is taken as written; true and 1.5 are no ids.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        raise _Bad("id", "missing")
    return _text("id", value)


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Bad(field, f"expected text, found {_short(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Bad(field, f"no valid Unicode at character {error.start}") from None
    if not (text := value.strip()):
        raise _Bad(field, "empty")
    return text


def _turns(value: Any, has_image: bool) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _Bad("turns", f"expected a list of turns, found {_short(value)}")
    turns: list[dict[str, str]] = []
    marks = 0
    for number, turn in enumerate(value):
        field = f"turns[{number}]"
        if not isinstance(turn, Mapping):
            raise _Bad(field, f"expected a mapping, found {_short(turn)}")
        speaker = turn.get("from", turn.get("role"))
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise _Bad(field, f"expected human or gpt, user or assistant, found {_short(speaker)}")
        content = turn.get("value", turn.get("content"))
        if isinstance(content, list):
            content = "".join(_part(field, part) for part in content)
        if isinstance(content, str):
            marks += (here := content.count(IMAGE_MARK))
            if here and ROLES[speaker] != "user":
                raise _Bad(field, f"{IMAGE_MARK} in an answer")
            content = content.replace(IMAGE_MARK, "")
        turns.append({"role": ROLES[speaker], "content": _text(field, content)})
    if turns[0]["role"] == "assistant":
        # As LLaVA does: an answer to nothing is not learned from.
        turns = turns[1:]
    for number, turn in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if turn["role"] != expected:
            raise _Bad("turns", f"turn {number + 1} should be the {expected}'s")
    if len(turns) < 2 or len(turns) % 2:
        raise _Bad("turns", "the last question has no answer")
    if marks > 1 or (marks and not has_image):
        raise _Bad("turns", f"{marks} {IMAGE_MARK} marks and {int(has_image)} image")
    return turns


def _part(field: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return IMAGE_MARK
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    raise _Bad(field, f"expected parts of text and image, found {_short(part)}")


def _image(value: Any, sha256: Any) -> tuple[str | None, str | None, bytes | None]:
    data = None
    if isinstance(value, Mapping):
        data, value = value.get("bytes"), value.get("path")
        if not isinstance(value, (str, type(None))):
            raise _Bad("image", f"expected a path as text, found {_short(value)}")
        if data is not None:
            if not isinstance(data, bytes) or not data:
                raise _Bad("image", f"expected the bytes of a picture, found {_short(data)}")
            sha256 = hashlib.sha256(data).hexdigest()
            value = PurePosixPath(value).name if value else sha256
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if value is None:
        return None, None, None
    if not isinstance(value, str) or not value:
        raise _Bad("image", f"expected one path, found {_short(value)}")
    path = PurePosixPath(value)
    if data is None and (path.is_absolute() or ".." in path.parts):
        raise _Bad("image", f"expected a path inside the image folder, found {value!r}")
    _text("image", value)
    if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
        raise _Bad("image_sha256", f"expected 64 hex digits, found {_short(sha256)}")
    return value, sha256, data


def _language(record: Mapping[str, Any], value: Any, language: str | None) -> str:
    if value is None:
        # PALO's builder leaves the translated turns under a key named after their language.
        named = [code for name, code in LANGUAGES.items() if record.get(f"{name}_conversation")]
        value = named[0] if len(named) == 1 else language
    if value is None:
        raise _Bad("lang", "unknown: neither the row nor the file's name says it; set `language`")
    if not isinstance(value, str) or not value:
        raise _Bad("lang", f"expected a BCP-47 code, found {_short(value)}")
    code = LANGUAGES.get(value.lower(), value)
    if not code.replace("-", "").isalnum() or not 2 <= len(code.split("-")[0]) <= 3:
        raise _Bad("lang", f"expected a BCP-47 code, found {value!r}")
    return code


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= 60 else text[:57] + "..."
    return repr(text) if isinstance(value, str) else text
