"""Sort rows by (id, lang), find repeated pairs, and count.

Rows that exceed memory are sorted in runs on disk, which are merged while reading.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...common.images import SUFFIXES
from ...rows.parquet import Row
from .plan import SourcePlan
from .records import Problem, Record, place_of

Key = tuple[str, str, int]

RUN_BYTES = 8 << 20
# Maximum number of files that one merge opens.
MOST_RUNS = 200


@dataclass
class Tally:
    """Counts of rows that were read; `refused` by field, with the first problem of each field."""

    read: int = 0
    rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0

    def refuse(self, problem: Problem) -> None:
        name = problem.field.split("[")[0]
        self.refused[name] += 1
        self.first.setdefault(name, str(problem))

    def lines(self) -> list[str]:
        refused = sum(self.refused.values())
        return [
            f"{self.read:,} rows read: {self.rows:,} good, {refused:,} refused",
            *(
                f"  refused for {name}: {n:,}; the first: {self.first[name]}"
                for name, n in self.refused.most_common()
            ),
            *(f"  {note}: {n:,}" for note, n in self.notes.most_common()),
            f"  languages: {_counts(self.languages)}; tasks: {_counts(self.tasks)}",
        ]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counter.items())) or "none"


def sorted_rows(
    reads: Iterable[Record | Problem],
    folder: Path,
    duplicates: str,
    tally: Tally,
    report: Callable[[Problem], None],
) -> Iterator[Row]:
    """Yield rows sorted by (id, lang), each pair once.

    Args:
        reads: rows and problems, in any order.
        folder: folder for the runs of the sort; the caller deletes it.
        duplicates: policy for repeated pairs, as in the plan.
        tally: receives the counts.
        report: called with every rejected row, including rows that repeat an (id, lang).
    """
    sort = ExternalSort(folder)
    for read in reads:
        tally.read += 1
        if isinstance(read, Problem):
            tally.refuse(read)
            report(read)
            continue
        if read.note is not None:
            tally.notes[read.note] += 1
        sort.add(read.row, read.where)
    for row, problem in _each_once(sort, duplicates):
        if problem is not None:
            tally.duplicates += 1
            tally.refuse(problem)
            report(problem)
            continue
        tally.rows += 1
        tally.languages[row["lang"]] += 1
        tally.tasks[row["task"]] += 1
        yield row


def _each_once(sort: ExternalSort, duplicates: str) -> Iterator[tuple[Row, Problem | None]]:
    last: tuple[str, str] | None = None
    times = 1
    # Renamed rows wait until their turn in the order: (id, lang, order of arrival, row, where).
    waiting: list[tuple[str, str, int, Row, str]] = []
    end: tuple[Any, ...] = (("", "", 0), None, "")
    for (identity, lang, number), row, where in itertools.chain(sort.rows(), [end]):
        while waiting and (row is None or waiting[0][:2] <= (identity, lang)):
            new, new_lang, _, renamed, place = heapq.heappop(waiting)
            taken = (new, new_lang) in (last, (identity, lang))
            yield renamed, _repeated(renamed, place) if taken else None
        if row is None:
            return
        times = times + 1 if (identity, lang) == last else 1
        last = (identity, lang)
        if times == 1:
            yield row, None
        elif duplicates == "number":
            renamed = {**row, "id": f"{identity}#{times}"}
            heapq.heappush(waiting, (renamed["id"], lang, number, renamed, where))
        else:
            yield row, _repeated(row, where)


def _repeated(row: Row, where: str) -> Problem:
    reason = f"another row has this id and the lang {row['lang']!r}"
    return Problem(place_of(where, row["id"]), "id, lang", reason)


def refuse_empty(plan: SourcePlan, tally: Tally) -> None:
    """Raise ValueError with advice if no row of the source was read, good or bad."""
    if tally.read:
        return
    expected = "rows"
    if plan.kind == "folder":
        suffixes = ", ".join(sorted(SUFFIXES))
        expected = f"pictures ({suffixes}) or rows of metadata.jsonl or metadata.csv"
    raise ValueError(
        f"{', '.join(plan.paths)}: expected {expected}, found none: add some, or correct source.path"
    )


class ExternalSort:
    """Sort rows by (id, lang, order of arrival), in a folder that the caller deletes.

    Memory holds about twice `run_bytes` of rows; the disk holds all rows once, during a merge twice.
    """

    def __init__(self, folder: Path, run_bytes: int = RUN_BYTES):
        self._folder, self._run_bytes = folder, run_bytes
        self._lines: list[tuple[Key, str]] = []
        self._bytes = self._count = self._made = 0
        self._runs: list[Path] = []

    def add(self, row: Row, where: str) -> None:
        """Add a row. `where`, its place in the source, is returned with the row."""
        line = json.dumps([where, row], ensure_ascii=False)
        self._lines.append(((row["id"], row["lang"], self._count), line))
        self._count += 1
        self._bytes += len(line)
        if self._bytes >= self._run_bytes:
            self._spill()

    def rows(self) -> Iterator[tuple[Key, Row, str]]:
        """Yield (key, row, where) in order. Call it once."""
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
    # JSON escapes tabs and line ends, so they can be separators.
    with path.open(encoding="utf-8", newline="\n") as file:
        for text in file:
            key, _, line = text.rstrip("\n").partition("\t")
            identity, lang, number = json.loads(key)
            yield (identity, lang, number), line
