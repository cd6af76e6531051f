"""Append-only files of records, readable after any kill.

Each line is the crc32 of a JSON text, a space, the text.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import disk_error
from .reading import parse_json


class AppendOnly:
    """A file of records that only one process appends to, made with its folder where it is missing.

    Raises OSError where it cannot be read or written.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise disk_error(path, error) from None

    def cut(self, end: int) -> int:
        """Drop everything from the offset `end` on, such as a damaged line; gives the bytes dropped."""
        dropped = os.fstat(self._handle).st_size - end
        if dropped:
            os.ftruncate(self._handle, end)
        return dropped

    def append(self, record: Any) -> None:
        """Raises OSError (disk full, say); what stands in the file before stays readable."""
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        start = os.lseek(self._handle, 0, os.SEEK_END)
        try:
            written = os.write(self._handle, line)
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError as error:
            # A half-written line would hide the lines after it from the next run.
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, start)
            raise disk_error(self.path, error) from None

    def sync(self) -> None:
        """Have the records survive a loss of power."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise disk_error(self.path, error) from None

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(offset after the line, record) of every line before the first damaged one."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            offset += len(line)
            if not line.endswith(b"\n") or line[8:9] != b" ":
                return
            text = line[9:-1]
            if line[:8] != b"%08x" % zlib.crc32(text):
                return
            try:
                record = parse_json(text, str(path))
            except ValueError:
                return
            yield offset, record
