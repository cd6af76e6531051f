"""Stream rows from JSON files: an array of rows or one row per line, plain or gzip.

Memory holds one row, not the file; nesting and the length of a row are bounded. A row that cannot be read
is yielded as `Unreadable` with the reason. ValueError ends the reading if nothing after it can be read.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..common.reading import MAX_DEPTH, open_file
from ..common.telling import found, printable

# Longest row in bytes or characters; a row may hold images as text.
MAX_ROW = 256 * 2**20
# Longest integer in digits; Python's int() refuses longer ones.
MAX_DIGITS = 4300
_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)


@dataclass(frozen=True)
class Unreadable:
    """Takes the place of a row that cannot be read."""

    reason: str


def rows_suffix(path: str | os.PathLike) -> str:
    """Return the kind of a row file by its name: ".json", ".jsonl" or ".parquet"; "" for others."""
    name = Path(path).name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    known = (".json", ".jsonl") if name.endswith(".gz") else (".json", ".jsonl", ".parquet")
    return suffix if suffix in known else ""


def read_json_rows(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    """Yield (number, row) for a .json or .jsonl file, also .gz.

    The number is the row's index in the array, or the index of its line, from 0; blank lines hold no row.
    A .json file may also have one row per line.

    Raises:
        ValueError: naming file and position, if the file is not an array of rows, an array is broken or
            not UTF-8, or a compressed file is truncated.
        OSError: as `open`.
    """
    if rows_suffix(path) == ".jsonl" or _is_lines(path):
        yield from _lines(path)
    else:
        yield from _array(path)


def check_lines(path: str | os.PathLike) -> None:
    """Raise ValueError if an unpacked line has more than MAX_ROW bytes: other readers hold a whole line."""
    with _File(path) as file:
        number = 1
        while line := file.line(MAX_ROW + 1):
            if len(line) > MAX_ROW:
                raise ValueError(f"{path}: line {number}: expected at most {MAX_ROW:,} bytes")
            number += line.endswith(b"\n")


class _File:
    """The bytes of a file, decompressed if it is .gz."""

    def __init__(self, path: str | os.PathLike):
        self.path = path
        self._raw = open_file(path)
        packed = Path(path).suffix.lower() == ".gz"
        self._file: BinaryIO = gzip.GzipFile(fileobj=self._raw) if packed else self._raw  # type: ignore[assignment]

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._raw.close()

    def read(self, size: int) -> bytes:
        return self._of(self._file.read, size)

    def line(self, size: int) -> bytes:
        return self._of(self._file.readline, size)

    def _of(self, read: Any, size: int) -> bytes:
        try:
            return read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{self.path}: expected a complete gzip file ({printable(str(error))}): download it again"
            ) from None


# ------------------------------------------------------------------------------ one row


class _Decoder:
    """JSON decoder that collects values no row may hold, instead of stopping at them."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._json = json.JSONDecoder(
            object_pairs_hook=self._mapping,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def decode(self, text: str, start: int) -> tuple[dict[str, Any] | Unreadable, int]:
        """Return the row that starts at `start`, and its end.

        Raises:
            json.JSONDecodeError: if the text is not JSON.
            RecursionError: if nesting is too deep for the decoder.
        """
        self._problems.clear()
        value, end = self._json.raw_decode(text, start)
        brackets = text.count("[", start, end) + text.count("{", start, end)
        if (
            brackets > MAX_DEPTH
            and max(depth for depth, _ in _levels(text, start, end)) > MAX_DEPTH
        ):
            return _TOO_DEEP, end
        if self._problems:
            return Unreadable(self._problems[0]), end
        if not isinstance(value, dict):
            return Unreadable(f"expected a mapping of fields, found {found(value)}"), end
        return value, end

    def _mapping(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._problems.append(f"the key {printable(repr(twice))} appears twice in one mapping")
        return value

    def _constant(self, name: str) -> float:
        self._problems.append(f"expected a number, found {name}")
        return 0.0

    def _float(self, text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            self._problems.append(f"expected a number, found {text[:40]}")
        return value

    def _int(self, text: str) -> int:
        if len(text) > MAX_DIGITS:
            self._problems.append(f"expected a number, found {len(text):,} digits")
            return 0
        return int(text)


_TOO_DEEP = Unreadable(f"nested deeper than {MAX_DEPTH} levels")


def _levels(text: str, start: int, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield (number of open brackets, end) for each bracket outside of strings."""
    depth = 0
    for match in _BRACKETS.finditer(text, start, len(text) if end is None else end):
        if not match[0].startswith('"'):
            depth += 1 if match[0] in "[{" else -1
            yield depth, match.end()


# ------------------------------------------------------------------------------ one row per line


def _is_lines(path: str | os.PathLike) -> bool:
    """Return whether a .json file has one row per line: its first two non-blank lines are mappings."""
    with _File(path) as file:
        if not file.read(_CHUNK).removeprefix(_BOM).lstrip().startswith(b"{"):
            return False
    lines: list[bytes] = []
    with _File(path) as file:
        while len(lines) < 2 and (line := file.line(MAX_ROW)):
            lines += [line.strip()] if line.removeprefix(_BOM).strip() else []
    first, second = (*lines, b"", b"")[:2]
    return first.endswith(b"}") and second.startswith(b"{")


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    decoder = _Decoder()
    number = -1
    with _File(path) as file:
        while line := file.line(MAX_ROW + 1):
            number += 1
            if len(line) > MAX_ROW:
                while line and not line.endswith(b"\n"):
                    line = file.line(MAX_ROW)
                yield (
                    number,
                    Unreadable(
                        f"line {number + 1}: expected at most {MAX_ROW:,} bytes, found more"
                    ),
                )
                continue
            line = line.removeprefix(_BOM) if number == 0 else line
            if line.strip():
                yield number, _line(decoder, line.strip(), f"line {number + 1}")


def _line(decoder: _Decoder, line: bytes, where: str) -> dict[str, Any] | Unreadable:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1].hex()
        return Unreadable(
            f"{where}: expected UTF-8 text, found the byte 0x{byte}: save the file as UTF-8"
        )
    try:
        row, end = decoder.decode(text, 0)
    except json.JSONDecodeError as error:
        return Unreadable(f"{where} is not JSON: {error.msg} (column {error.colno})")
    except RecursionError:
        return Unreadable(f"{where}: {_TOO_DEEP.reason}")
    if end < len(text):
        return Unreadable(f"{where} is not JSON: Extra data (column {end + 1})")
    return Unreadable(f"{where}: {row.reason}") if isinstance(row, Unreadable) else row


# ------------------------------------------------------------------------------ an array


def _array(path: str | os.PathLike) -> Iterator[tuple[int, dict[str, Any] | Unreadable]]:
    number = -1
    with _File(path) as file:
        text = _Text(file)
        start = text.next()
        if start != "[":
            raise ValueError(
                f"{path}: expected a JSON array of rows, found {start.encode()!r} at its start: write "
                "[row, row, ...], or one row per line"
            )
        text.position += 1
        ends = text.next() == "]"
        while not ends:
            row = text.row(number)
            number += 1
            yield number, row
            separator = text.next()
            if separator not in (",", "]"):
                raise text.broken(number, f"expected ',' or ']', found {separator!r}")
            text.position += 1
            ends = separator == "]"
        if not number + 1:
            text.position += 1
        if text.next():
            raise text.broken(number, f"expected the end of the file, found {text.next()!r}")


class _Text:
    """A window on a file's text, only as long as one row needs."""

    def __init__(self, file: _File):
        self.position = 0
        self._file = file
        self._text = ""
        self._lines = 0  # lines before the window
        self._ended = False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._rows = _Decoder()

    def next(self) -> str:
        """Skip white space and return the next character without consuming it; "" at the end."""
        while True:
            while self.position < len(self._text):
                if self._text[self.position] not in " \t\r\n":
                    return self._text[self.position]
                self.position += 1
            if self._ended:
                return ""
            self._more(_CHUNK)

    def _more(self, size: int) -> None:
        if self.position > _CHUNK:
            self._lines += self._text.count("\n", 0, self.position)
            self._text, self.position = self._text[self.position :], 0
        data = self._file.read(size)
        self._ended = not data
        try:
            self._text += self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            line = (
                self._lines + self._text.count("\n") + error.object.count(b"\n", 0, error.start) + 1
            )
            byte = error.object[error.start : error.start + 1].hex()
            raise ValueError(
                f"{self._file.path}: line {line}: expected UTF-8 text, found the byte 0x{byte}: save "
                "the file as UTF-8"
            ) from None

    def row(self, after: int) -> dict[str, Any] | Unreadable:
        """Return the next row. Raises ValueError, naming row `after` before it, if the text is broken."""
        self.next()
        while True:
            end: int | None
            row: dict[str, Any] | Unreadable
            try:
                row, end = self._rows.decode(self._text, self.position)
            except RecursionError:
                row = _TOO_DEEP
                closed = (end for depth, end in _levels(self._text, self.position) if not depth)
                end = next(closed, None)
                if end is None and self._ended:
                    raise ValueError(
                        f"{self._file.path}: row {after + 1}: {_TOO_DEEP.reason}"
                    ) from None
            except json.JSONDecodeError as error:
                # An error at the end of the window, or an unterminated string, may only need more text.
                cut = error.pos > len(self._text) - 16 or error.msg.startswith("Unterminated")
                if self._ended or not cut:
                    self.position = min(error.pos, len(self._text))
                    raise self.broken(after, error.msg) from None
                end = None
            # A number at the end of the window may continue after it.
            if end is not None and (end < len(self._text) or self._ended):
                self.position = end
                return row
            if len(self._text) - self.position > MAX_ROW:
                raise ValueError(
                    f"{self._file.path}: row {after + 1}: expected at most {MAX_ROW:,} characters"
                )
            self._more(max(_CHUNK, len(self._text) - self.position))

    def broken(self, after: int, reason: str) -> ValueError:
        line = self._lines + self._text.count("\n", 0, self.position) + 1
        column = self.position - self._text.rfind("\n", 0, self.position)
        place = f"line {line}, column {column}"
        where = f"after row {after}" if after >= 0 else "at its start"
        return ValueError(f"{self._file.path}: broken JSON {where}: {printable(reason)} ({place})")
