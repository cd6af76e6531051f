"""Append-only record files that stay readable after a kill.

Each line is the crc32 of a JSON text in hex, a space, and that text.
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
    """A record file with a single appending process. The file and its folder are created if missing.

    Raises:
        OSError: if the file cannot be opened.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise disk_error(path, error) from None

    def cut(self, end: int) -> int:
        """Drop everything after the offset `end`, such as a damaged line; return the bytes dropped."""
        dropped = os.fstat(self._handle).st_size - end
        if dropped:
            os.ftruncate(self._handle, end)
        return dropped

    def append(self, record: Any) -> None:
        """Append a record. Raises OSError (a full disk, for example); earlier records stay readable."""
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        start = os.lseek(self._handle, 0, os.SEEK_END)
        try:
            written = os.write(self._handle, line)
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except OSError as error:
            # A half-written line would hide the lines after it from the next reader.
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, start)
            raise disk_error(self.path, error) from None

    def sync(self) -> None:
        """Flush the records to the disk (fsync)."""
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise disk_error(self.path, error) from None

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (offset after the line, record) for every line before the first damaged one."""
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
