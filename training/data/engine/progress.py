"""Compute the progress of a build from its manifests and journals, whether it is running or not."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...common.names import check_component
from ...common.reading import read_json
from ...common.shapes import check_shape, has_shape
from ...common.telling import one_line, printable
from .journal import read_journal
from .unit_files import COUNTED, Job, UnitManifest, count_failures, journals, manifest_path

# File that lists the units of a worker's folder with their row counts; written before the work begins.
UNITS = "units.json"
# Rates are averaged over this many past seconds.
WINDOW = 300.0
_SHOWN_FAILURES = 5


@dataclass
class WorkerStatus:
    """The status of one worker's folder. Rates are rows per second over the last `WINDOW` seconds."""

    name: str
    units: int
    rows: int
    units_done: int = 0
    rows_done: int = 0
    """Answered rows, in finished units and in journals."""
    counts: Counter[str] = field(default_factory=Counter)
    """Status or label -> answered rows."""
    retries: int = 0
    """Requests beyond the first of each row."""
    restarts: int = 0
    """Sessions beyond the first of each unit, after kills and stops."""
    failures: Counter[str] = field(default_factory=Counter)
    """Reason for a missing answer -> rows."""
    rate: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left, None without progress."""
        left = self.rows - self.rows_done
        return 0.0 if not left else left / self.rate if self.rate else None


@dataclass
class BuildStatus:
    """The status of a build's folder. `source` is the manifest of the source step, None until it is written."""

    folder: Path
    source: dict[str, Any] | None
    workers: list[WorkerStatus]
    bytes: int


def build_status(folder: Path, now: float | None = None) -> BuildStatus:
    """Read the status of a build.

    Args:
        folder: folder of the build.
        now: seconds since the epoch; default: the current time.

    Raises:
        FileNotFoundError: the folder holds no build.
        ValueError: a list of units is damaged.
    """
    if not (folder / "plan.yaml").is_file() and not (folder / "source").is_dir():
        raise FileNotFoundError(f"{folder}: expected the output_dir of a plan, found no build")
    now = time.time() if now is None else now
    lists = sorted([*folder.glob(f"*/*/{UNITS}"), *folder.glob(f"*/*/*/{UNITS}")])
    try:
        source = read_json(folder / "source" / "manifest.json")
    except (OSError, ValueError):
        source = None
    if not has_shape(source, {"rows": int, "refused": int, "units": list}):
        source = None
    return BuildStatus(folder, source, [_worker(path, now) for path in lists], _disk(folder))


def _worker(path: Path, now: float) -> WorkerStatus:
    listed = read_json(path)
    check_shape(listed, {"worker": str, "key": str, "units": {...: int}}, str(path))
    for unit in listed["units"]:
        check_component(unit, f"{path}: units")
    listed["worker"] = one_line(listed["worker"], 100)
    status = WorkerStatus(listed["worker"], len(listed["units"]), sum(listed["units"].values()))
    recent, earliest = 0.0, now
    for unit in listed["units"]:
        manifest = UnitManifest.read(path.parent / f"{unit}.json")
        if manifest is not None and manifest.worker_key == listed["key"]:
            status.units_done += 1
            status.rows_done += manifest.rows
            status.counts.update(manifest.counts)
            status.failures.update(manifest.failures)
            status.retries += manifest.attempts - manifest.rows
            status.restarts += manifest.sessions - 1
            begun = manifest.finished - manifest.seconds
            share = _overlap(begun, manifest.finished, now)
            recent += manifest.rows * share
            if share:
                earliest = min(earliest, begun)
            continue
        answers, sessions = _newest_journal(path.parent / f"{unit}.parquet")
        status.rows_done += len(answers)
        status.restarts += max(0, sessions - 1)
        status.failures.update(count_failures(answer for _, answer in answers))
        for at, answer in answers:
            counted = next((name for name in COUNTED if name in answer), None)
            if counted is not None:
                status.counts[one_line(str(answer[counted]), 40)] += 1
            attempts = answer.get("attempts")
            status.retries += attempts - 1 if isinstance(attempts, int) and attempts else 0
            if at > now - WINDOW:
                recent += 1
                earliest = min(earliest, at)
    if recent:
        status.rate = recent / max(1.0, min(WINDOW, now - earliest))
    return status


def _newest_journal(target: Path) -> tuple[list[tuple[float, dict[str, Any]]], int]:
    """Return (time, answer) pairs of a unit in progress, and its number of sessions.

    Only the newest journal counts; older journals belong to other settings.
    """
    answers: list[tuple[float, dict[str, Any]]] = []
    sessions = 0
    paths = [(_mtime(path), path) for path in journals(target)]
    if paths:
        try:
            for _, record in read_journal(max(paths)[1]):
                if "open" in record:
                    sessions += 1
                else:
                    answers.append((record["time"], record["row"]))
        except FileNotFoundError:
            pass  # the unit finished in the meantime
    return answers, sessions


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _overlap(begun: float, finished: float, now: float) -> float:
    """Return the fraction (0 to 1) of a time span that lies in the window before now."""
    inside = min(finished, now) - max(begun, now - WINDOW)
    return min(1.0, max(0.0, inside) / max(finished - begun, 1e-3))


def _disk(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def format_status(status: BuildStatus) -> list[str]:
    """Return the size on disk and a table with one line per worker."""
    lines = [f"{status.folder}: {_size(status.bytes)} on disk"]
    if status.source is None:
        lines.append("source: not finished")
    else:
        source = status.source
        lines.append(
            f"source: {source['rows']:,} rows in {len(source['units']):,} units, "
            f"{source['refused']:,} refused"
        )
    table = [["step", "units", "rows", "answers", "rows/s", "left", "retries", "restarts"]]
    for worker in status.workers:
        seconds = worker.seconds_left
        table.append(
            [
                worker.name,
                f"{worker.units_done:,}/{worker.units:,}",
                f"{worker.rows_done:,}/{worker.rows:,}",
                ", ".join(f"{name} {n:,}" for name, n in sorted(worker.counts.items())) or "-",
                f"{worker.rate:.1f}" if worker.rate else "-",
                "-" if seconds is None else _duration(seconds),
                f"{worker.retries:,}",
                f"{worker.restarts:,}",
            ]
        )
    if status.workers:
        lines += text_table(table)
        for worker in status.workers:
            lines += failure_lines(worker.name, worker.failures)
        left = sum(worker.rows - worker.rows_done for worker in status.workers)
        rate = sum(worker.rate for worker in status.workers)
        if left and rate:
            lines.append(f"{left:,} rows left, {_duration(left / rate)} at {rate:.1f} rows/s")
    # Names and counts come from files that anybody may have written.
    return [printable(line) for line in lines]


def text_table(rows: Sequence[Sequence[Any]], right: Collection[int] = ()) -> list[str]:
    """Return rows as lines of aligned columns; whole numbers get thousands separators.

    Args:
        rows: cells of each line.
        right: indices of right-aligned columns.
    """
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def failure_lines(name: str, failures: Counter[str]) -> list[str]:
    """Return the most frequent reasons for a worker's missing answers, one line each."""
    listed = failures.most_common(_SHOWN_FAILURES)
    lines = [f"  {name}: {n:,} without an answer: {reason}" for reason, n in listed]
    if len(failures) > _SHOWN_FAILURES:
        rest = failures.total() - sum(n for _, n in listed)
        lines.append(f"  {name}: {rest:,} without an answer for other reasons")
    return lines


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class Progress:
    """A progress bar over the rows of jobs. It counts lines on disk, so it works for any executor.

    Args:
        jobs: jobs to follow.
        rows: number of rows of each job's unit, in the order of the jobs.
    """

    def __init__(self, jobs: Sequence[Job], rows: Sequence[int]):
        self._open = {
            job.target: (count, _mtime(manifest_path(job.target)))
            for job, count in zip(jobs, rows, strict=True)
        }
        self._journals = sorted({job.target.parent / "journal" for job in jobs})
        self._read: dict[Path, tuple[int, int]] = {}
        self._finished = 0
        steps = list(dict.fromkeys(job.worker.split("/")[0] for job in jobs))
        self._bar = tqdm(
            total=sum(rows), desc=", ".join(steps), unit=" rows", file=sys.stderr, smoothing=0.05
        )
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Progress:
        self._bar.initial = self._bar.n = self.count()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._over.set()
        self._thread.join()
        self._show()
        self._bar.close()

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            self._show()

    def _show(self) -> None:
        self._bar.update(max(0, self.count() - self._bar.n))

    def count(self) -> int:
        """Return the number of answered rows: in units finished since the start, and in open journals."""
        for target, (rows, before) in list(self._open.items()):
            if _mtime(manifest_path(target)) not in (0, before):
                self._finished += rows
                del self._open[target]
        waiting = {(target.parent / "journal", target.stem) for target in self._open}
        return self._finished + sum(
            self._lines(path)
            for folder in self._journals
            for path in folder.glob("*.jsonl")
            if (folder, path.stem.partition("-")[2]) in waiting
        )

    def _lines(self, path: Path) -> int:
        """Count the answers in a journal; only the new part is read."""
        offset, count = self._read.get(path, (0, 0))
        try:
            if path.stat().st_size < offset:
                offset = count = 0
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
        except FileNotFoundError:
            return 0
        whole = new[: new.rfind(b"\n") + 1]
        self._read[path] = offset + len(whole), count + whole.count(b' {"n":')
        return self._read[path][1]
