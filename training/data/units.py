"""One step on one unit of rows, exactly once: journal, atomic parquet, hashed manifest.

Translation, verification and toxicity are workers of this one engine. A unit is one parquet file of
source rows; its output is one parquet file with the same rows in the same order, and beside it a
manifest that names the input, the worker and the SHA-256 of the output. A unit's life:

1. the lock of the unit is taken; a second writer is refused;
2. the manifest, if there is one, is held against worker, input and the bytes of the parquet;
3. every answered row is appended to `journal/<input_sha>-<unit>.jsonl`, a crc32 before each line;
   at most 32 rows or one second stand between the answer and an fsync;
4. the parquet file is written from the journal, then the manifest, then the journal is deleted.

A process killed at any point loses what was in flight, nothing else: the next run reads the journal
up to its first damaged line and goes on from there. The journal's name begins with a hash of the
worker's key and of every source row, so a changed model, prompt or input starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import filelock
import pyarrow as pa
import pyarrow.parquet as pq

from .files import (
    remove_temporaries,
    sha256_file,
    write_json,
    write_parquet,
)
from .journal import Journal, Row

Key = tuple[str, str]

SYNC_ROWS = 32
SYNC_SECONDS = 1.0
# The columns whose values a manifest counts; a worker's schema has one of them at most.
COUNTED = ("status", "label")


class Worker(Protocol):
    """One step of the pipeline on rows; everything that changes its answers is in `key`."""

    name: str
    """Such as "translate/fr": also the folder of its output."""
    key: str
    """Hash of model, revision, prompt, parameters, checks and code version of the step."""
    schema: pa.Schema
    """Columns of its output rows, all with values that JSON can hold; begins with id, lang."""
    batch_rows: int
    """Rows that one call of `process` takes."""
    concurrency: int
    """Calls of `process` in flight at once."""

    async def __aenter__(self) -> Any:
        """Open sessions, load models. Called once, before the first row that needs an answer."""

    async def __aexit__(self, *error: Any) -> Any: ...

    async def process(self, rows: list[Row]) -> list[Row]:
        """One answer a row, in order; a row's fault is a status in its answer.

        Raises only what makes the whole run pointless (a refused key, a missing model): the run
        then stops with that message.
        """


class Stopped(Exception):
    """The run was asked to stop; everything answered so far is in the journals."""


@dataclass(frozen=True)
class UnitManifest:
    """What stands in a unit's output, and what it was made from. Counts are of rows."""

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
    """Sum of the rows' `attempts`; the number of rows where the worker does not count them."""
    seconds: float
    """Time spent on the unit, over all sessions."""
    sessions: int
    """How often the unit was begun or continued."""
    finished: float
    """Seconds since the epoch."""

    @classmethod
    def read(cls, path: Path) -> UnitManifest | None:
        """The manifest in this file; None when there is none or it is no manifest."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None


def manifest_path(target: Path) -> Path:
    return target.with_suffix(".json")


def check_unit(key: str, source: Path, target: Path) -> UnitManifest | str:
    """The manifest of a finished unit, or in a few words why the unit is not finished.

    Finished means: made by a worker with this key, from these very source rows, and the parquet
    file has the bytes that the manifest says.
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
        return "its parquet file is gone"
    if sha256_file(target) != manifest.parquet_sha256:
        return "its parquet file was changed since"
    return manifest


def read_rows(source: Path) -> list[Row]:
    """The rows of a unit's source.

    Raises ValueError for a file that is no parquet, for a row without id or lang, and for two rows
    with the same (id, lang).
    """
    try:
        with pq.ParquetFile(source) as file:
            rows = file.read().to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source}: not a readable parquet file: {error}") from None
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
                f"{source}: rows {seen[key]} and {number} have the same id {key[0]!r} and lang "
                f"{key[1]!r}; every (id, lang) may stand once"
            )
        seen[key] = number
    return rows


def input_sha(name: str, key: str, rows: Sequence[Row]) -> str:
    """Hash of a worker and of all rows it is given, in their order."""
    digest = hashlib.sha256(json.dumps([name, key]).encode())
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=_plain).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def reopen_unit(target: Path, statuses: Collection[str]) -> int:
    """Have a finished unit's rows of these statuses done again by the next run; returns how many.

    The other rows go back into the journal, so that only these are asked for. What is not finished
    or has no column `status` is left alone. Raises OSError when another process writes the unit.
    """
    manifest = UnitManifest.read(manifest_path(target))
    if manifest is None or not any(manifest.counts.get(status) for status in statuses):
        return 0
    with _locked(target):
        if not target.is_file() or sha256_file(target) != manifest.parquet_sha256:
            return 0
        with pq.ParquetFile(target) as file:
            rows = file.read().to_pylist()
        journal = Journal(_journal_path(target, manifest.input_sha), len(rows))
        for n, row in enumerate(rows):
            if row["status"] not in statuses and n not in journal.answers:
                journal.append(n, row)
        journal.sync()
        journal.close()
        manifest_path(target).unlink()
        return len(rows) - len(journal.answers)


def _journal_path(target: Path, sha: str) -> Path:
    return target.parent / "journal" / f"{sha[:16]}-{target.stem}.jsonl"


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Keep other writers off a unit. Raises OSError when one is at it; a killed one is not."""
    path = target.parent / "journal" / f"{target.stem}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OSError(
            f"{target}: another process is writing this unit; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        # Still held: who opens the file after this finds another one.
        path.unlink(missing_ok=True)
        lock.release()


# Running


def run_unit(worker: Worker, source: Path, target: Path) -> UnitManifest:
    """Run a worker over one unit; see `run_units`."""
    return run_units(worker, [(source, target)])[0]


def run_units(worker: Worker, units: Iterable[tuple[Path, Path]]) -> list[UnitManifest]:
    """Run a worker over (source, target) units, every row exactly once; returns their manifests.

    Finished units are not touched, unfinished ones are continued. Rows of at most two units are in
    memory: the next unit begins when the one before it has nothing left to start, so that all of
    the worker's `concurrency` is used until the end. SIGTERM or SIGINT lets what is in flight
    finish into the journal; a second signal ends the process at once.

    Raises:
        Stopped: after a signal.
        ValueError: for bad source rows, and for answers that do not fit the worker's schema.
        OSError: when the disk does not take a file, or another process writes the same unit.
        Exception: what the worker raised, after all else that was in flight is in the journal.
    """
    return asyncio.run(_Run(worker).units(units))


class _Run:
    def __init__(self, worker: Worker):
        if worker.schema.names[:2] != ["id", "lang"]:
            raise ValueError(
                f"{worker.name}: its schema must begin with id, lang; found {worker.schema.names}"
            )
        self.worker = worker
        self.slots = asyncio.Semaphore(worker.concurrency)
        self.failure: BaseException | None = None
        self.stopped_by: signal.Signals | None = None

    @property
    def ending(self) -> bool:
        return self.failure is not None or self.stopped_by is not None

    async def units(self, units: Iterable[tuple[Path, Path]]) -> list[UnitManifest]:
        manifests: list[UnitManifest | None] = []
        running: list[asyncio.Task[UnitManifest | None]] = []
        entered = False
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            try:
                for source, target in units:
                    if self.ending:
                        break
                    if len(running) == 2:
                        manifests.append(await running.pop(0))
                    unit = _Unit(self.worker, source, target)
                    if (done := unit.open()) is not None:
                        manifests += [await task for task in running] + [done]
                        running = []
                        continue
                    if unit.todo() and not entered:
                        try:
                            await stack.enter_async_context(self.worker)
                        except BaseException:
                            unit.close()
                            raise
                        entered = True
                    started = asyncio.Event()
                    running.append(asyncio.create_task(self._unit(unit, started)))
                    await started.wait()
            except Exception as error:
                self.failure = self.failure or error
            manifests += [await task for task in running]
        if self.failure is not None:
            raise self.failure
        if self.stopped_by is not None:
            raise Stopped(
                f"{self.worker.name}: stopped by {self.stopped_by.name}; what was answered is "
                "kept, and the same command continues"
            )
        return [manifest for manifest in manifests if manifest is not None]

    async def _unit(self, unit: _Unit, started: asyncio.Event) -> UnitManifest | None:
        """One unit to its end; None when the run ends before. Sets `failure`, raises nothing."""
        finished = asyncio.Event()
        syncing = asyncio.create_task(self._keep_synced(unit.journal, finished))
        try:
            tasks: list[asyncio.Task[None]] = []
            for batch in unit.todo():
                await self.slots.acquire()
                if self.ending:
                    self.slots.release()
                    break
                tasks.append(asyncio.create_task(self._answer(unit, batch)))
            started.set()
            await asyncio.gather(*tasks)
            finished.set()
            await syncing
            if len(unit.journal.answers) == len(unit.rows):
                return await asyncio.to_thread(unit.write)
        except Exception as error:
            self.failure = self.failure or error
        finally:
            started.set()
            finished.set()
            await syncing
            unit.close()
        return None

    async def _answer(self, unit: _Unit, batch: list[int]) -> None:
        try:
            answers = await self.worker.process([unit.rows[n] for n in batch])
            unit.take(batch, answers)
            if unit.journal.unsynced >= SYNC_ROWS:
                await unit.journal.sync_aside()
        except (Exception, asyncio.CancelledError) as error:
            # What else is in flight still reaches the journal; then the run ends with this.
            self.failure = self.failure or error
        finally:
            self.slots.release()

    async def _keep_synced(self, journal: Journal, finished: asyncio.Event) -> None:
        try:
            while not finished.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(finished.wait(), SYNC_SECONDS)
                if journal.unsynced:
                    await journal.sync_aside()
        except OSError as error:
            self.failure = self.failure or error

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        caught = [number for number, handler in before.items() if handler != signal.SIG_IGN]

        def stop(number: signal.Signals) -> None:
            if self.stopped_by is None:
                self.stopped_by = number
                # A signal to a whole group comes twice: from its sender and from our parent.
                loop.call_later(SYNC_SECONDS, give_up_at_next)

        def give_up_at_next() -> None:
            for each in caught:
                loop.remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)

        for number in caught:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in caught:
                loop.remove_signal_handler(number)
                signal.signal(number, before[number])


@dataclass
class _Unit:
    """One unit in work: its rows, lock and journal."""

    worker: Worker
    source: Path
    target: Path
    rows: list[Row] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def open(self) -> UnitManifest | None:
        """Take the lock; the manifest if the unit is finished, else rows and journal are opened."""
        self.stack.enter_context(_locked(self.target))
        try:
            state = check_unit(self.worker.key, self.source, self.target)
            if isinstance(state, UnitManifest):
                self._clear()
                self.stack.close()
                return state
            if state != "not done yet":
                print(f"{self.worker.name} {self.target.stem}: {state}; made again", flush=True)
            remove_temporaries(self.target)
            remove_temporaries(manifest_path(self.target))
            self.source_sha256 = sha256_file(self.source)
            self.rows = read_rows(self.source)
            self.input_sha = input_sha(self.worker.name, self.worker.key, self.rows)
            self.journal = Journal(_journal_path(self.target, self.input_sha), len(self.rows))
            self.stack.callback(self.journal.close)
            if self.journal.dropped:
                print(
                    f"{self.journal.path}: {self.journal.dropped:,} damaged bytes at its end "
                    "dropped; their rows are done again",
                    flush=True,
                )
        except BaseException:
            self.stack.close()
            raise
        return None

    def todo(self) -> list[list[int]]:
        """Numbers of the rows without an answer, in batches."""
        left = [n for n in range(len(self.rows)) if n not in self.journal.answers]
        size = self.worker.batch_rows
        return [left[i : i + size] for i in range(0, len(left), size)]

    def take(self, batch: list[int], answers: list[Row]) -> None:
        """Append the answers to the journal.

        Raises ValueError, naming the row, for answers that are not those of the batch or do not
        fit the worker's schema: a fault of the worker.
        """
        if len(answers) != len(batch):
            raise ValueError(
                f"{self.worker.name}: {len(batch)} rows were given and {len(answers)} came back"
            )
        for n, answer in zip(batch, answers, strict=True):
            self._check(self.rows[n], answer)
        try:
            pa.Table.from_pylist(answers, schema=self.worker.schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            for answer in answers:
                self._blame(answer)
            raise
        for n, answer in zip(batch, answers, strict=True):
            try:
                self.journal.append(n, answer)
            except (TypeError, ValueError):
                self._blame(answer)
                raise

    def _check(self, row: Row, answer: Row) -> None:
        where = f"{self.worker.name}: the answer to row {row['id']!r} ({row['lang']})"
        names = self.worker.schema.names
        if answer.get("id") != row["id"]:
            raise ValueError(f"{where} has the id {answer.get('id')!r}")
        if not isinstance(answer.get("lang"), str):
            raise ValueError(f"{where}: lang: expected text, found {answer.get('lang')!r}")
        if answer.keys() != set(names):
            missing = sorted(set(names) - answer.keys())
            extra = sorted(answer.keys() - set(names))
            raise ValueError(f"{where}: fields missing: {missing}; not in the schema: {extra}")

    def _blame(self, answer: Row) -> None:
        """Raise ValueError naming the field that keeps this answer out of parquet or JSON."""
        for column in self.worker.schema:
            value = answer[column.name]
            try:
                pa.array([value], column.type)
                json.dumps(value, ensure_ascii=False).encode()
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{self.worker.name}: the answer to row {answer['id']!r}: {column.name}: "
                    f"expected {column.type}, found {value!r:.80}: {error}"
                ) from None

    def write(self) -> UnitManifest:
        """Parquet, manifest, then away with the journals."""
        self.journal.sync()
        answers = [self.journal.answers[n] for n in range(len(self.rows))]
        keys = Counter((answer["id"], answer["lang"]) for answer in answers)
        if len(keys) != len(answers):
            (key, _), *_ = keys.most_common(1)
            raise ValueError(f"{self.worker.name}: two rows have the same (id, lang) {key}")
        # Through JSON, so that a continued run writes the same bytes as an uninterrupted one.
        answers = json.loads(json.dumps(answers))
        sha256 = write_parquet(
            self.target, pa.Table.from_pylist(answers, schema=self.worker.schema)
        )
        counted = next((name for name in COUNTED if name in self.worker.schema.names), None)
        now = time.time()
        manifest = UnitManifest(
            unit=self.target.stem,
            worker=self.worker.name,
            worker_key=self.worker.key,
            source_sha256=self.source_sha256,
            input_sha=self.input_sha,
            parquet_sha256=sha256,
            rows=len(answers),
            bytes=self.target.stat().st_size,
            counts=dict(sorted(Counter(str(a[counted]) for a in answers).items()))
            if counted
            else {},
            attempts=sum(a["attempts"] for a in answers)
            if "attempts" in self.worker.schema.names
            else len(answers),
            seconds=round(self.journal.seconds + now - self.journal.opened, 3),
            sessions=self.journal.sessions,
            finished=round(now, 3),
        )
        write_json(manifest_path(self.target), dataclasses.asdict(manifest))
        self._clear()
        return manifest

    def close(self) -> None:
        self.stack.close()

    def _clear(self) -> None:
        """Delete the journals of a finished unit, those of other settings too."""
        for path in (self.target.parent / "journal").glob(f"*-{self.target.stem}.jsonl"):
            path.unlink(missing_ok=True)
