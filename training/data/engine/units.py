"""Run one step on units of rows, each row exactly once: journal, atomic parquet file, manifest with hashes.

A unit is one parquet file of source rows. Its output is a parquet file with the same rows in the same
order, and a manifest that names the input, the worker and the SHA-256 of the output. Steps of a unit:

1. Lock the unit. A second writer gets an error.
2. If there is a manifest, compare it with the worker, the input and the parquet file's hash.
3. Append each answered row to `journal/<input_sha>-<unit>.jsonl`, with a crc32 before each line.
   An fsync follows after 32 rows or one second, whichever is first.
4. Write the parquet file from the journal, then the manifest, then delete the journal.

A process that is killed at any point loses only requests in flight: the next run reads the journal
up to its first damaged line and continues. The journal's name begins with a hash of the worker's key
and of every source row, so a changed model, prompt or input starts a new journal.
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
    """One step of the pipeline on rows. `key` covers everything that changes the answers."""

    name: str
    """For example "translate/fr"; also the output folder."""
    key: str
    """Hash of model, revision, prompt, parameters, checks and the step's code version."""
    schema: pa.Schema
    """Columns of the output rows. The first two are id and lang; JSON can hold all values."""
    batch_rows: int
    """Rows per call of `process`."""
    concurrency: int
    """Maximum number of calls of `process` in flight."""

    async def __aenter__(self) -> Any:
        """Open sessions and load models. Called once, before the first row that needs an answer."""

    async def __aexit__(self, *error: Any) -> Any: ...

    async def process(self, rows: list[Row]) -> list[Row]:
        """Return one answer per row, in order. A row's fault becomes the status of its answer.

        Raises:
            Exception: only for faults that make the whole run pointless (a rejected API key, a missing
                model); the run stops with the message.
        """


def run_unit(worker: Worker, source: Path, target: Path) -> UnitManifest:
    """Run a worker over one unit (see `run_units`)."""
    return run_units(worker, [(source, target)])[0]


def run_units(worker: Worker, units: Iterable[tuple[Path, Path]]) -> list[UnitManifest]:
    """Run a worker over (source, target) units, each row exactly once, and return the manifests.

    Finished units are skipped, unfinished units are continued. Memory holds the rows of at most two
    units: the next unit begins once every row of the previous unit is in flight, so that
    `concurrency` calls run until the end. After SIGTERM or SIGINT, requests in flight finish into the
    journal; a second signal ends the process at once.

    Raises:
        Stopped: after a signal.
        ValueError: source rows are bad, or answers do not fit the worker's schema.
        OSError: the disk rejects a file, or another process writes the same unit.
        Exception: the worker's exception, once all other requests in flight are in the journal.
    """
    return asyncio.run(_Run(worker).units(units))


class _Run:
    def __init__(self, worker: Worker):
        self.worker = worker
        self.schema = AnswerSchema(worker.name, worker.schema)
        self.slots = asyncio.Semaphore(worker.concurrency)
        self.failure: BaseException | None = None
        self.stopped_by: signal.Signals | None = None
        # One thread only: in every thread that builds tables, the allocators keep their peak memory.
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
                f"{self.worker.name}: stopped by {self.stopped_by.name}; all answers are kept, and "
                "the same command continues",
                self.stopped_by,
            )
        return [manifest for manifest in manifests if manifest is not None]

    async def _unit(self, unit: _Unit, started: asyncio.Event) -> UnitManifest | None:
        """Finish one unit; return None if the run ends first. Errors are stored in `failure`, not raised."""
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
            # Other requests in flight still reach the journal; then the run raises this error.
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
                # A signal to the process group arrives twice: from the sender and from our parent.
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
        """Lock the unit; return the manifest if it is finished, else open rows and journal."""
        self.stack.enter_context(locked(self.target))
        try:
            state = check_unit(self.worker.key, self.source, self.target)
            if isinstance(state, UnitManifest):
                self._clear()
                self.stack.close()
                return state
            if state != "not done yet":
                print(
                    f"{self.worker.name} {self.target.stem}: {state}; it is made again", flush=True
                )
            remove_temporaries(self.target)
            remove_temporaries(manifest_path(self.target))
            self.source_sha256 = sha256_file(self.source)
            self.rows = read_rows(self.source)
            self.input_sha = input_sha(self.worker.name, self.worker.key, self.rows)
            self.journal = Journal(journal_path(self.target, self.input_sha), len(self.rows))
            self.stack.callback(self.journal.close)
            if self.journal.dropped:
                print(
                    f"{self.journal.path}: dropped {self.journal.dropped:,} damaged bytes at its end; "
                    "their rows are processed again",
                    flush=True,
                )
        except BaseException:
            self.stack.close()
            raise
        return None

    def todo(self) -> list[list[int]]:
        """Return the numbers of the rows without an answer, in batches."""
        left = [n for n in range(len(self.rows)) if n not in self.journal.answers]
        size = self.worker.batch_rows
        return [left[i : i + size] for i in range(0, len(left), size)]

    def take(self, batch: list[int], answers: list[Row]) -> None:
        """Append the answers to the journal.

        Raises:
            ValueError: answers do not belong to the batch or do not fit the worker's schema. The
                message names the row; the fault is the worker's.
        """
        if len(answers) != len(batch):
            raise ValueError(
                f"{self.worker.name}: expected {len(batch)} answers, found {len(answers)}"
            )
        for n, answer in zip(batch, answers, strict=True):
            self.schema.check(self.rows[n], answer)
        for n, answer in zip(batch, answers, strict=True):
            self.journal.append(n, answer)

    def write(self) -> UnitManifest:
        """Write the parquet file and the manifest, then delete the journals."""
        self.journal.sync()
        answers = [self.journal.answers[n] for n in range(len(self.rows))]
        keys = Counter((answer["id"], answer["lang"]) for answer in answers)
        if len(keys) != len(answers):
            (key, _), *_ = keys.most_common(1)
            raise ValueError(
                f"{self.worker.name}: expected each (id, lang) once, found {key} twice"
            )
        # Convert through JSON, so that a continued run writes the same bytes as an uninterrupted run.
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
        """Delete the journals of a finished unit, including journals of other settings."""
        for path in journals(self.target):
            path.unlink(missing_ok=True)
