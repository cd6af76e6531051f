"""Sorting more rows than memory holds: sorted runs on disk, merged as they are read."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from pathlib import Path

from ...rows.parquet import Row

Key = tuple[str, str, int]

RUN_BYTES = 8 << 20
# Open files of one merge.
MOST_RUNS = 200


class ExternalSort:
    """Rows by (id, lang, order of arrival), in a folder that is the caller's to delete.

    About twice `run_bytes` of rows are in memory; the disk holds all rows once, for a moment twice.
    """

    def __init__(self, folder: Path, run_bytes: int = RUN_BYTES):
        self._folder, self._run_bytes = folder, run_bytes
        self._lines: list[tuple[Key, str]] = []
        self._bytes = self._count = self._made = 0
        self._runs: list[Path] = []

    def add(self, row: Row, where: str) -> None:
        """`where` is the row's place in its source; it comes back with the row."""
        line = json.dumps([where, row], ensure_ascii=False)
        self._lines.append(((row["id"], row["lang"], self._count), line))
        self._count += 1
        self._bytes += len(line)
        if self._bytes >= self._run_bytes:
            self._spill()

    def rows(self) -> Iterator[tuple[Key, Row, str]]:
        """(key, row, where) in order; may be asked for once."""
        self._spill()
        for key, line in self._merge(self._runs):
            where, row = json.loads(line)
            yield key, row, where

    def _spill(self) -> None:
        if self._lines:
            self._lines.sort()
            self._runs.append(self._write(iter(self._lines)))
            self._lines, self._bytes = [], 0
        if len(self._runs) >= MOST_RUNS:
            runs = self._runs
            self._runs = [self._write(self._merge(runs))]
            for run in runs:
                run.unlink()

    def _write(self, lines: Iterator[tuple[Key, str]]) -> Path:
        path = self._folder / f"run-{self._made:05d}.jsonl"
        self._made += 1
        with path.open("w", encoding="utf-8") as file:
            for (identity, lang, number), line in lines:
                file.write(f"{json.dumps([identity, lang, number])}\t{line}\n")
        return path

    def _merge(self, runs: list[Path]) -> Iterator[tuple[Key, str]]:
        return heapq.merge(*map(_read, runs))


def _read(path: Path) -> Iterator[tuple[Key, str]]:
    # JSON escapes tabs and line ends, so both may separate.
    with path.open(encoding="utf-8", newline="\n") as file:
        for text in file:
            key, _, line = text.rstrip("\n").partition("\t")
            identity, lang, number = json.loads(key)
            yield (identity, lang, number), line
