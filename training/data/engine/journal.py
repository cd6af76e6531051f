"""Append answers of a unit in progress to a file: one line with a CRC each, readable after a kill at any point."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from ...common.files import sync
from ...common.journal import AppendOnly, read_records
from ...common.shapes import has_shape
from ...rows.parquet import Row

_OPENED = {"open": {"time": float}}
_ANSWERED = {"n": int, "time": float, "row": dict}


class Journal:
    """The answered rows of one unit, one line each. Only the process that holds the unit's lock opens it.

    `{"open": ...}` begins a session; `{"n": i, "row": {...}}` is the answer to row i of the unit.
    """

    def __init__(self, path: Path, rows: int):
        """Open `path`, and keep the lines before the first damaged line.

        Args:
            path: file of the journal.
            rows: number of rows in the unit.

        Raises:
            OSError: the file cannot be read or written.
        """
        self.path = path
        self.unsynced = 0
        self.seconds = 0.0
        self.sessions = 0
        self.answers: dict[int, Row] = {}
        self._file = AppendOnly(path)
        try:
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
            self.dropped = self._file.cut(good)
            self.sessions += 1
            self.opened = time.time()
            self._file.append({"open": {"time": self.opened, "rows": rows}})
            self.sync()
            sync(path.parent)
        except BaseException:
            self._file.close()
            raise

    def append(self, number: int, row: Row) -> None:
        """Append an answer.

        Raises:
            OSError: the write failed, for example on a full disk; earlier lines stay readable.
        """
        self._file.append({"n": number, "time": round(time.time(), 3), "row": row})
        self.answers[number] = row
        self.unsynced += 1

    async def sync_aside(self) -> None:
        """Run `sync` in a thread, so that requests in flight do not wait for the disk."""
        self.unsynced = 0
        await asyncio.to_thread(self.sync)

    def sync(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (offset after the line, record) for each line before the first damaged line."""
    for end, record in read_records(path):
        opened = isinstance(record, dict) and "open" in record
        if not has_shape(record, _OPENED if opened else _ANSWERED):
            return
        yield end, record
