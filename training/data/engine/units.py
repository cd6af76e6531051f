"""Run one step on units of rows, every row exactly once: journal, atomic parquet, hashed manifest.

A unit is one parquet file of source rows; its output is one with the same rows in the same order, and
beside it a manifest that names the input, the worker and the SHA-256 of the output. A unit's life:

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
import json
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from ...common.files import remove_temporaries, sha256_file, write_json, write_parquet
from ...common.signals import Stopped, signal_handlers
from ...rows.parquet import Row
from .answer_schema import AnswerSchema
from .journal import Journal
from .unit_files import (
    COUNTED,
    UnitManifest,
    check_unit,
    count_failures,
    input_sha,
    journal_path,
    journals,
    locked,
    manifest_path,
    read_rows,
)

SYNC_ROWS = 32
SYNC_SECONDS = 1.0


class Worker(Protocol):
    """One step of the pipeline on rows; `key` has everything that changes its answers."""

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
        """Return one answer for each row, in order; a fault of a row is a status in its answer.

        Raises only what makes the whole run pointless (a refused key, a missing model): the run
        then stops with that message.
        """


def run_unit(worker: Worker, source: Path, target: Path) -> UnitManifest:
    """Run a worker over one unit; see `run_units`."""
    return run_units(worker, [(source, target)])[0]


def run_units(worker: Worker, units: Iterable[tuple[Path, Path]]) -> list[UnitManifest]:
    """Run a worker over (source, target) units, every row exactly once, and return their manifests.

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
        self.worker = worker
        self.schema = AnswerSchema(worker.name, worker.schema)
        self.slots = asyncio.Semaphore(worker.concurrency)
        self.failure: BaseException | None = None
        self.stopped_by: signal.Signals | None = None
        # One thread: of every thread that builds tables, the allocators keep what it used at most.
        self.writer = ThreadPoolExecutor(1)

    @property
    def ending(self) -> bool:
        return self.failure is not None or self.stopped_by is not None

    async def units(self, units: Iterable[tuple[Path, Path]]) -> list[UnitManifest]:
        manifests: list[UnitManifest | None] = []
        running: list[asyncio.Task[UnitManifest | None]] = []
        entered = False
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            stack.enter_context(self.writer)
            try:
                for source, target in units:
                    if self.ending:
                        break
                    if len(running) == 2:
                        manifests.append(await running.pop(0))
                    unit = _Unit(self.worker, self.schema, source, target)
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
                "kept, and the same command continues",
                self.stopped_by,
            )
        return [manifest for manifest in manifests if manifest is not None]

    async def _unit(self, unit: _Unit, started: asyncio.Event) -> UnitManifest | None:
        """Finish one unit; return None if the run ends before. Sets `failure`, and raises nothing."""
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
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self.writer, unit.write)
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
        loop = asyncio.get_running_loop()

        def stop(number: int, frame: Any) -> None:
            if self.stopped_by is None:
                self.stopped_by = signal.Signals(number)
                # A signal to a whole group comes twice: from its sender and from our parent.
                loop.call_soon_threadsafe(loop.call_later, SYNC_SECONDS, give_up_at_next)

        def give_up_at_next() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is stop:
                    signal.signal(number, signal.SIG_DFL)

        with signal_handlers(stop):
            yield


@dataclass
class _Unit:
    """One unit in progress: its rows, lock and journal."""

    worker: Worker
    schema: AnswerSchema
    source: Path
    target: Path
    rows: list[Row] = field(default_factory=list)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def open(self) -> UnitManifest | None:
        """Take the lock. Return the manifest if the unit is finished, else open rows and journal."""
        self.stack.enter_context(locked(self.target))
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
            self.journal = Journal(journal_path(self.target, self.input_sha), len(self.rows))
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
        """Yield the numbers of the rows without an answer, in batches."""
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
            self.schema.check(self.rows[n], answer)
        for n, answer in zip(batch, answers, strict=True):
            self.journal.append(n, answer)

    def write(self) -> UnitManifest:
        """Write parquet and manifest, then delete the journals."""
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
            failures=count_failures(answers),
        )
        write_json(manifest_path(self.target), dataclasses.asdict(manifest))
        self._clear()
        return manifest

    def close(self) -> None:
        self.stack.close()

    def _clear(self) -> None:
        """Delete the journals of a finished unit, including those of other settings."""
        for path in journals(self.target):
            path.unlink(missing_ok=True)
