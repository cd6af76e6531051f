"""The files of a unit: source, output, manifest, journal and lock."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...common.files import only_one, sha256_file
from ...common.reading import read_json
from ...common.schema import build
from ...common.telling import one_line
from ...rows.parquet import Row
from ...rows.parquet import read_rows as read_parquet
from .journal import Journal

Key = tuple[str, str]

# Columns whose values a manifest counts. A worker's schema has at most one of them.
COUNTED = ("status", "label")
# Maximum number of distinct failure reasons in a manifest.
_REASONS = 20


class Job(NamedTuple):
    """One unit of one worker."""

    worker: str
    source: Path
    target: Path


@dataclass(frozen=True)
class UnitManifest:
    """The manifest of a unit's output: what it was made from, and its file. Counts are numbers of rows."""

    unit: str
    worker: str
    worker_key: str
    source_sha256: str
    input_sha: str
    parquet_sha256: str
    rows: int
    bytes: int
    counts: dict[str, int]
    attempts: int
    """Sum of the rows' `attempts`; the number of rows if the worker does not count attempts."""
    seconds: float
    """Seconds spent on the unit, over all sessions."""
    sessions: int
    """Number of times the unit was begun or continued."""
    finished: float
    """Seconds since the epoch."""
    failures: dict[str, int] = field(default_factory=dict)
    """Reason for a missing answer -> number of rows."""

    @classmethod
    def read(cls, path: Path) -> UnitManifest | None:
        """Read a manifest; return None if the file is missing or is not a manifest."""
        try:
            return build(cls, read_json(path), str(path))
        except (OSError, ValueError):
            return None

    @property
    def failed(self) -> int:
        """Number of rows without an answer."""
        return max(sum(self.failures.values()), self.counts.get("failed", 0))


def failure(row: Row) -> str | None:
    """Return, as one line, why a row has no answer; None if it has one."""
    if row.get("status") not in (None, "failed"):
        return None
    told = row.get("reasons") or row.get("error")
    if told is None and row.get("status") is None:
        return None
    return one_line(str(told or "no reason"), 200)


def count_failures(rows: Iterable[Row]) -> dict[str, int]:
    """Return {reason: number of rows without an answer}; the rarest reasons are merged."""
    found = Counter(reason for row in rows if (reason := failure(row)) is not None)
    counted = dict(found.most_common(_REASONS))
    if rest := found.total() - sum(counted.values()):
        counted["other reasons"] = counted.get("other reasons", 0) + rest
    return counted


def manifest_path(target: Path) -> Path:
    return target.with_suffix(".json")


def check_unit(key: str, source: Path, target: Path) -> UnitManifest | str:
    """Return the manifest of a finished unit, or a short reason why the unit is not finished.

    A unit is finished if a worker with this key made it from the same source rows, and the parquet
    file has the SHA-256 of the manifest.
    """
    manifest = UnitManifest.read(manifest_path(target))
    if manifest is None:
        return "not done yet"
    if manifest.worker_key != key:
        return "made with other settings"
    if manifest.source_sha256 != sha256_file(source):
        rows = read_rows(source)
        if manifest.input_sha != input_sha(manifest.worker, key, rows):
            return "made from other source rows"
    if not target.is_file():
        return "its parquet file is missing"
    if sha256_file(target) != manifest.parquet_sha256:
        return "its parquet file has changed"
    return manifest


def read_rows(source: Path) -> list[Row]:
    """Read the rows of a unit's source.

    Raises:
        ValueError: the file is not parquet, a row has no id or lang, or two rows have the same (id, lang).
    """
    rows = list(read_parquet(source))
    seen: dict[Key, int] = {}
    for number, row in enumerate(rows):
        for name in ("id", "lang"):
            if not isinstance(row.get(name), str):
                raise ValueError(
                    f"{source}: row {number}: {name}: expected text, found {row.get(name)!r}"
                )
        key = (row["id"], row["lang"])
        if key in seen:
            raise ValueError(
                f"{source}: expected each (id, lang) once, found rows {seen[key]} and {number} with "
                f"id {key[0]!r} and lang {key[1]!r}"
            )
        seen[key] = number
    return rows


def input_sha(name: str, key: str, rows: Sequence[Row]) -> str:
    """Return the hash of a worker and all its rows, in order."""
    digest = hashlib.sha256(json.dumps([name, key]).encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def reopen_unit(target: Path, statuses: Collection[str]) -> int:
    """Reopen the rows of a finished unit that have one of these statuses; return their number.

    The next run processes these rows only: the other rows go back into the journal. A unit that is
    not finished or has no column `status` is left alone.

    Raises:
        OSError: another process writes the unit.
    """
    manifest = UnitManifest.read(manifest_path(target))
    if manifest is None or not any(manifest.counts.get(status) for status in statuses):
        return 0
    with locked(target):
        if not target.is_file() or sha256_file(target) != manifest.parquet_sha256:
            return 0
        rows = list(read_parquet(target))
        path = journal_path(target, manifest.input_sha)
        with contextlib.closing(Journal(path, len(rows))) as journal:
            for n, row in enumerate(rows):
                if row["status"] not in statuses and n not in journal.answers:
                    journal.append(n, row)
            journal.sync()
        manifest_path(target).unlink()
        return len(rows) - len(journal.answers)


def journal_path(target: Path, sha: str) -> Path:
    return target.parent / "journal" / f"{sha[:16]}-{target.stem}.jsonl"


def journals(target: Path) -> list[Path]:
    """Return the journals of a unit, of any worker and any input."""
    # Match the whole name: the unit `rules` differs from `my-rules`.
    name = re.compile(rf"[0-9a-f]{{16}}-{re.escape(target.stem)}\.jsonl")
    return [p for p in (target.parent / "journal").glob("*.jsonl") if name.fullmatch(p.name)]


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock a unit. The lock of a killed process is released.

    Raises:
        OSError: another process holds the lock.
    """
    path = target.parent / "journal" / f"{target.stem}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{target}: another process is writing this unit; wait for it or stop it"
    with only_one(path, refusal):
        try:
            yield
        finally:
            # Unlink while locked: a process that opens the path afterwards creates a new file.
            path.unlink(missing_ok=True)
