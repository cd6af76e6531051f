"""The answers of a unit in work: one crc'd line each, appended, readable after any kill."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from ...common.files import disk_error, sync
from ...common.reading import parse_json
from ...common.shapes import has_shape
from ...rows.parquet import Row

_OPENED = {"open": {"time": float}}
_ANSWERED = {"n": int, "time": float, "row": dict}


class Journal:
    """The answered rows of one unit, appended one line each; only its lock's holder opens it.

    Each line is the crc32 of a JSON text, a space, the text. `{"open": ...}` begins a session,
    `{"n": i, "row": {...}}` is the answer to the unit's row i.
    """

    def __init__(self, path: Path, rows: int):
        """Opens `path`, keeping every line before the first damaged one.

        Args:
            rows: number of rows in the unit.

        Raises OSError when the file cannot be read or written.
        """
        self.path = path
        self.unsynced = 0
        self.seconds = 0.0
        self.sessions = 0
        self.answers: dict[int, Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(self._handle).st_size
            good = 0
            opened = last = 0.0
            for end, record in read_journal(path):
                if "open" in record:
                    self.seconds += last - opened
                    self.sessions += 1
                    opened = last = record["open"]["time"]
                elif record["n"] in self.answers or not 0 <= record["n"] < rows:
                    break
                else:
                    self.answers[record["n"]] = record["row"]
                    last = record["time"]
                good = end
            self.seconds += last - opened
            self.dropped = size - good
            if self.dropped:
                os.ftruncate(self._handle, good)
            self.sessions += 1
            self.opened = time.time()
            self._write({"open": {"time": self.opened, "rows": rows}})
            self.sync()
            sync(path.parent)
        except BaseException:
            os.close(self._handle)
            raise

    def append(self, number: int, row: Row) -> None:
        """Raises OSError (disk full, say); what stands in the journal before stays readable."""
        self._write({"n": number, "time": round(time.time(), 3), "row": row})
        self.answers[number] = row
        self.unsynced += 1

    async def sync_aside(self) -> None:
        """`sync` in a thread: the disk may take its time, the answers in flight need not wait."""
        self.unsynced = 0
        await asyncio.to_thread(self.sync)

    def sync(self) -> None:
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise disk_error(self.path, error) from None

    def close(self) -> None:
        if self._handle >= 0:
            handle, self._handle = self._handle, -1
            os.close(handle)

    def _write(self, record: Row) -> None:
        line = _line(record)
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


def _line(record: Row) -> bytes:
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_journal(path: Path) -> Iterator[tuple[int, Row]]:
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
            if not has_shape(record, _OPENED if b'"open"' in text[:9] else _ANSWERED):
                return
            yield offset, record
