"""Run the units of a step in processes of this machine, or with datatrove on Slurm or Ray.

A rank takes its share of the units and runs them through `run_units`, wherever it is. Whether the work
is done is never read from datatrove's completion marks but from our manifests, which are held against
the files at the end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

from datatrove.pipeline.base import PipelineStep

from ...common.files import write_bytes, write_json
from ...common.schema import Bounds
from ...common.signals import Stopped, signal_handlers
from ...rows.parquet import count_rows
from .progress import UNITS, Progress
from .unit_files import Job, UnitManifest, check_unit
from .units import Worker, run_units

# What a rank may raise in another process; everything else goes through as a RuntimeError with its
# traceback, because many exceptions cannot be unpickled, and a pool that meets one waits for ever.
_PLAIN = (Stopped, ValueError, OSError)
_ENDING = (signal.SIGTERM, signal.SIGINT)
# What a rank whose parent is gone may take to write down what it has.
_ORPHAN_SECONDS = 5.0
# Options of datatrove's executors that hold a word or a number.
_PLAIN_OPTIONS = (
    "partition",
    "time",
    "qos",
    "job_name",
    "cpus_per_task",
    "mem_per_cpu_gb",
    "memory_bytes_per_task",
    "max_array_size",
    "max_array_launch_parallel",
    "randomize_start_duration",
    "requeue",
)
_WORD = re.compile(r"[\w.:,-]*", re.ASCII)


@dataclass
class ExecutorPlan:
    """The executor of ranks.

    kind: `local`, processes of this machine; `slurm`, an array job; `ray`, tasks of a cluster.
    workers: ranks at once. Each opens its own session to the endpoint or loads its own model, so
        requests in flight are workers times the translator's concurrency.
    tasks: ranks in all, by default as many as workers.
    options: further arguments of datatrove's SlurmPipelineExecutor (partition, time, qos, ...) or
        RayPipelineExecutor.
    """

    kind: Literal["local", "slurm", "ray"] = "local"
    workers: int = 1
    tasks: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("workers", "tasks"):
            Bounds(least=1).check(getattr(self, name), "executor", name)
        if self.kind == "local" and self.options:
            raise ValueError("executor.options: only for slurm and ray")
        if self.kind == "slurm" and not {"partition", "time"} <= self.options.keys():
            raise ValueError("executor.options: slurm needs at least partition and time")

    def shell(self) -> dict[str, str]:
        """Return, as text, the options that become part of a shell script and are not plain words or numbers."""
        words = {name: str(value) for name, value in self.options.items()}
        return {
            name: told
            for name, told in words.items()
            if name not in _PLAIN_OPTIONS or not _WORD.fullmatch(told)
        }


class UnitStep(PipelineStep):
    """The step that does a rank's share of the jobs, worker by worker.

    Args:
        make: gives the worker of a name; must be picklable where ranks are other processes.
        errors: folder where a rank that fails leaves its message, for who cannot catch it.
    """

    name = "Maya units"
    type = "Maya"

    def __init__(self, make: Callable[[str], Worker], jobs: Sequence[Job], errors: Path):
        super().__init__()
        self.make, self.jobs, self.errors = make, list(jobs), errors

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Run the share. Raises Stopped, ValueError or OSError, each with one text, or RuntimeError."""
        share: dict[str, list[tuple[Path, Path]]] = {}
        for job in self.jobs[rank::world_size]:
            share.setdefault(job.worker, []).append((job.source, job.target))
        try:
            for name, units in share.items():
                for manifest in run_units(self.make(name), units):
                    self.stat_update(name, value=manifest.rows, unit="unit")
        except Exception as error:
            plain = next((cls for cls in _PLAIN if isinstance(error, cls)), RuntimeError)
            text = traceback.format_exc() if plain is RuntimeError else str(error)
            write_bytes(self.errors / f"{rank:05d}.txt", text.encode())
            if isinstance(error, Stopped):
                raise Stopped(text, error.number) from None
            raise plain(text) from None


def run_jobs(
    make: Callable[[str], Worker],
    jobs: Sequence[Job],
    plan: ExecutorPlan,
    logs: Path,
    progress: bool = True,
) -> list[UnitManifest]:
    """Run every unfinished job, and return the manifests of all jobs, in order.

    Args:
        logs: folder for the ranks' logs.
        progress: show a bar, fed from journals and manifests.

    Raises:
        Stopped: after SIGTERM or SIGINT; what was in flight is in the journals.
        ValueError, OSError: what ended a rank; or that units are not finished although no rank
            complained (a killed process, a lost node).
    """
    keys = {name: make(name).key for name in dict.fromkeys(job.worker for job in jobs)}
    # Each worker reads the same sources.
    rows = {source: count_rows(source) for source in dict.fromkeys(job.source for job in jobs)}
    for name, key in keys.items():
        mine = [job for job in jobs if job.worker == name]
        units = {job.target.stem: rows[job.source] for job in mine}
        listed = {"worker": name, "key": key, "units": units}
        folder = mine[0].target.parent
        write_json(folder / UNITS, listed)
        _remove_others(folder, {job.target.stem for job in mine})
    states = {job: check_unit(keys[job.worker], job.source, job.target) for job in jobs}
    todo = [job for job, state in states.items() if isinstance(state, str)]
    if todo:
        errors = logs / "errors"
        for old in errors.glob("*.txt"):
            old.unlink()
        step = UnitStep(make, todo, errors)
        bar = Progress(todo, [rows[job.source] for job in todo]) if progress else None
        with bar or contextlib.nullcontext():
            {"local": _run_local, "slurm": _run_slurm, "ray": _run_ray}[plan.kind](step, plan, logs)
        # Those that were finished before have been held against their files already.
        states |= {job: check_unit(keys[job.worker], job.source, job.target) for job in todo}
    open_ones = [(job, state) for job, state in states.items() if isinstance(state, str)]
    if open_ones:
        job, state = open_ones[0]
        said = next((path.read_text() for path in sorted((logs / "errors").glob("*.txt"))), state)
        raise OSError(
            f"{len(open_ones)} of {len(jobs)} units are not finished, the first is {job.target}: "
            f"{said}; see {logs}, and run the same command again"
        )
    return [state for state in states.values() if isinstance(state, UnitManifest)]


def _remove_others(folder: Path, units: set[str]) -> None:
    """Delete units that the source no longer has, so that nothing reads them."""
    gone = [p for p in folder.glob("[0-9]*.*") if p.stem.isdigit() and p.stem not in units]
    for path in gone:
        path.unlink()
    if gone:
        print(f"{folder}: {len(gone)} files of units that are gone from the source deleted")


def _tasks(step: UnitStep, plan: ExecutorPlan) -> int:
    return min(plan.tasks or plan.workers, len(step.jobs))


def _run_local(step: UnitStep, plan: ExecutorPlan, logs: Path) -> None:
    """Run the ranks in processes, which may die or be stopped; a single worker runs in this process.

    concurrent.futures ends all of its processes when one dies, and tells neither which nor how.
    """
    tasks = _tasks(step, plan)
    workers = min(plan.workers, tasks)
    if workers == 1:
        for rank in range(tasks):
            _run_rank(step, rank, tasks, logs)
        return
    context = multiprocessing.get_context("forkserver")
    # What takes seconds to import is imported once for all ranks.
    context.set_forkserver_preload(["maya_vlm.training.data.plan"])
    with without_signals():
        multiprocessing.forkserver.ensure_running()
    waiting = list(range(tasks))
    running: dict[Any, tuple[Any, Connection, int]] = {}
    error: Exception | None = None
    with _forwarding(lambda: [process for process, _, _ in running.values()]) as stopped:
        while running or (waiting and error is None and not stopped):
            while waiting and len(running) < workers and error is None and not stopped:
                ours, theirs = context.Pipe(duplex=False)
                rank = waiting.pop(0)
                process = context.Process(target=_rank, args=(theirs, step, rank, tasks, logs))
                process.start()
                theirs.close()
                running[process.sentinel] = process, ours, rank
                if stopped:
                    process.terminate()
            for sentinel in wait(list(running), timeout=1.0):
                process, ours, rank = running.pop(sentinel)
                process.join()
                failure = _outcome(process, ours, rank)
                if failure is not None and error is None:
                    error = failure
                    # The others finish what is in flight.
                    for other, _, _ in running.values():
                        other.terminate()
    if stopped:
        raise Stopped(f"stopped by {stopped[0].name}; the same command continues", stopped[0])
    if error is not None:
        raise error


def _run_rank(step: UnitStep, rank: int, tasks: int, logs: Path) -> None:
    """Run one rank in this process; the libraries' output about it goes to a file."""
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"rank_{rank:05d}.stderr"
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        step.run(rank=rank, world_size=tasks)


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Block the signals that end a run; processes started in the block keep them blocked.

    The server of forks must outlive its ranks, as they are waited for through it; a signal to the whole
    group would end it first.
    """
    # Where it has to be started first, it lets signals through again.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ctrl_c() -> None:
    """Let SIGTERM end a process that was started `without_signals`, and leave SIGINT to its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _rank(connection: Connection, *rank: Any) -> None:
    # Ctrl-C reaches the whole group: the parent hears it and sends each rank one SIGTERM.
    leave_ctrl_c()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        _run_rank(*rank)
    except Exception as error:
        with contextlib.suppress(OSError):
            # The parent may be gone.
            connection.send(error)
        sys.exit(1)


def _follow_parent() -> None:
    """Drain and stop soon after the parent has ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)


def _outcome(process: Any, connection: Connection, rank: int) -> Exception | None:
    """Return why a rank that has ended failed, or None if it succeeded."""
    with connection:
        try:
            if connection.poll():
                return connection.recv()
        except EOFError:
            pass
    if process.exitcode:
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return OSError(f"the process of rank {rank} {how}; the same command continues")
    return None


@contextlib.contextmanager
def _forwarding(processes: Callable[[], list[Any]]) -> Iterator[list[signal.Signals]]:
    """Pass SIGTERM and SIGINT on to ranks as SIGTERM; the block receives the list of signals."""
    came: list[signal.Signals] = []

    def handle(number: int, frame: Any) -> None:
        came.append(signal.Signals(number))
        for process in processes():
            if len(came) == 1:
                process.terminate()
            elif number == signal.SIGINT:
                process.kill()

    with signal_handlers(handle):
        yield came


def _arguments(step: UnitStep, plan: ExecutorPlan, logs: Path) -> dict[str, Any]:
    """Return the arguments of both of datatrove's executors."""
    return {
        "pipeline": [step],
        "tasks": _tasks(step, plan),
        "workers": plan.workers,
        "logging_dir": str(logs.resolve()),
        "skip_completed": False,
    }


def _run_slurm(step: UnitStep, plan: ExecutorPlan, logs: Path) -> None:
    """Submit one array job and wait until it has left the queue; a signal cancels it."""
    from datatrove.executor import SlurmPipelineExecutor

    bin_folder = Path(sys.executable).parent
    defaults = {
        "job_name": f"maya-{step.jobs[0].worker.split('/')[0]}",
        "env_command": f'export PATH="{bin_folder}:$PATH"',
    }
    executor = SlurmPipelineExecutor(**_arguments(step, plan, logs), **{**defaults, **plan.options})
    executor.run()
    with _forwarding(list) as stopped:
        while not stopped and _in_queue(executor.job_id):
            time.sleep(2)
    if stopped:
        subprocess.run(["scancel", "--signal=TERM", "--full", str(executor.job_id)], check=False)
        raise Stopped(
            f"stopped by {stopped[0].name}: Slurm job {executor.job_id} was told to finish what is "
            "in flight; the same command continues",
            stopped[0],
        )


def _in_queue(job_id: str) -> bool:
    command = ["squeue", "--noheader", "--jobs", str(job_id), "--format", "%i"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise OSError(f"squeue: {' '.join(answer.stderr.split())}; is Slurm's controller up?")
    return bool(answer.stdout.strip())


def _run_ray(step: UnitStep, plan: ExecutorPlan, logs: Path) -> None:
    from datatrove.executor import RayPipelineExecutor

    RayPipelineExecutor(**_arguments(step, plan, logs), **plan.options).run()
