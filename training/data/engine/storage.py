"""Keep rows and hashes on disk, so that memory does not grow with the number of rows."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.files import atomic
from ...rows.parquet import Row


class ShaTable(contextlib.ExitStack):
    """A table on disk from (SHA-256, name) to text; memory does not grow with the number of rows.

    A key is the name followed by the first 16 bytes of the hash.
    """

    def __init__(self) -> None:
        super().__init__()
        folder = self.enter_context(tempfile.TemporaryDirectory(prefix="maya-toxicity-"))
        self._database = sqlite3.connect(Path(folder, "table.sqlite"))
        self.callback(self._database.close)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(
            "CREATE TABLE known (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID"
        )

    @staticmethod
    def _key(sha256: str, name: str) -> bytes:
        return name.encode() + b"\0" + bytes.fromhex(sha256)[:16]

    def add(self, sha256: str, name: str = "") -> bool:
        """Add a hash, and return whether it is new."""
        found = self._database.execute(
            "INSERT OR IGNORE INTO known VALUES (?, NULL)", (self._key(sha256, name),)
        )
        return found.rowcount == 1

    def set(self, sha256: str, name: str, value: str) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO known VALUES (?, ?)", (self._key(sha256, name), value)
        )

    def get(self, sha256: str, name: str) -> str | None:
        found = self._database.execute(
            "SELECT value FROM known WHERE key = ?", (self._key(sha256, name),)
        ).fetchone()
        return found[0] if found else None


def write_rows(path: Path, schema: pa.Schema, rows: Iterator[Row], batch: int = 10_000) -> None:
    """Write rows from an iterator, `batch` rows in memory at a time; `path` appears once all are written."""
    with atomic(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            while part := list(itertools.islice(rows, batch)):
                writer.write_table(pa.Table.from_pylist(part, schema=schema))
