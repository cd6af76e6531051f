"""Judgements on disk: one appended line each, which after a kill is either whole or absent.

A line is the CRC-32 of a JSON text, a space, and the text. The text holds the hash of the case (`Case.key`) and
the judge's reply. Only replies are stored, since an error may be temporary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...common.journal import AppendOnly
from ...common.reading import parse_json
from ...common.shapes import has_shape

_RECORD = {"key": str, "reply": str, "served": str, "structured": bool, "usage": dict}


class Journal(AppendOnly):
    """The judgements of one file, open for appending by one process.

    Attributes:
        records: key -> the record of its reply.
        damaged: number of damaged lines; their judgements are asked for again.

    Raises:
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        self.records: dict[str, dict[str, Any]] = {}
        self.damaged = whole = 0
        for end, record in _lines(path):
            whole = end
            if record is None:
                self.damaged += 1
            else:
                self.records[record["key"]] = record
        # A line that a kill cut off would also damage the next one.
        self.cut(whole)

    def append(self, record: dict[str, Any]) -> None:
        """Append a record that survives a loss of power.

        Raises:
            OSError: the disk refuses the record.
        """
        super().append(record)
        self.sync()
        self.records[record["key"]] = record


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield (offset after the line, its record or None) for each line that ends with a newline."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, _record(line[:-1])


def _record(line: bytes) -> dict[str, Any] | None:
    if line[:9] != b"%08x " % zlib.crc32(line[9:]):
        return None
    try:
        record = parse_json(line[9:], "")
    except ValueError:
        return None
    return record if has_shape(record, _RECORD) else None
