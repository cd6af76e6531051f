"""Run the units of a step in local processes, or with datatrove on Slurm or Ray.

Each rank runs its share of the units through `run_units`. Our manifests, not datatrove's completion
marks, say whether a unit is finished; at the end they are compared with the files.
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

# Exceptions that a rank may send to another process. All others are sent as RuntimeError with their
# traceback: many exceptions cannot be unpickled, and a pool that receives one waits forever.
_PLAIN = (Stopped, ValueError, OSError)
_ENDING = (signal.SIGTERM, signal.SIGINT)
# Seconds that a rank has to save its answers after its parent has ended.
_ORPHAN_SECONDS = 5.0
# Options of datatrove's executors whose value is a word or a number.
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
    """The executor of the ranks.

    kind: `local`, processes of this machine; `slurm`, an array job; `ray`, tasks of a cluster.
    workers: ranks that run at once. Each rank opens a session to the endpoint or loads the model, so
        up to workers * concurrency of the translator requests are in flight.
    tasks: total number of ranks; default: same as workers.
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
            raise ValueError("executor.options: expected kind slurm or ray, found local")
        if self.kind == "slurm" and not {"partition", "time"} <= self.options.keys():
            raise ValueError("executor.options: slurm: expected at least partition and time")

    def shell(self) -> dict[str, str]:
        """Return, as text, options that enter a shell script and are not plain words or numbers."""
        words = {name: str(value) for name, value in self.options.items()}
        return {
            name: told
            for name, told in words.items()
            if name not in _PLAIN_OPTIONS or not _WORD.fullmatch(told)
        }


class UnitStep(PipelineStep):
    """The pipeline step that runs a rank's share of the jobs, worker by worker.

    Args:
        make: returns the worker with a name; must be picklable if ranks are other processes.
        jobs: jobs of all ranks.
        errors: folder where a failing rank writes its message, for executors that lose exceptions.
    """

    name = "Maya units"
    type = "Maya"

    def __init__(self, make: Callable[[str], Worker], jobs: Sequence[Job], errors: Path):
        super().__init__()
        self.make, self.jobs, self.errors = make, list(jobs), errors

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]
        """Run the share of one rank.

        Raises:
            Stopped, ValueError, OSError: as in `run_units`, with a single text argument.
            RuntimeError: any other exception, with its traceback as text.
        """
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
        make: returns the worker with a name.
        jobs: units of workers.
        plan: executor of the ranks.
        logs: folder for the logs of the ranks.
        progress: show a progress bar, computed from journals and manifests.

    Raises:
        Stopped: after SIGTERM or SIGINT; answers in flight are in the journals.
        ValueError, OSError: the error that ended a rank; or units are unfinished although no rank
            reported an error (a killed process, a lost node).
    """
    keys = {name: make(name).key for name in dict.fromkeys(job.worker for job in jobs)}
    # All workers read the same sources: count each once.
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
        # Units that were finished before are already checked against their files.
        states |= {job: check_unit(keys[job.worker], job.source, job.target) for job in todo}
    open_ones = [(job, state) for job, state in states.items() if isinstance(state, str)]
    if open_ones:
        job, state = open_ones[0]
        said = next((path.read_text() for path in sorted((logs / "errors").glob("*.txt"))), state)
        raise OSError(
            f"{len(open_ones)} of {len(jobs)} units are not finished, the first is {job.target}: "
            f"{said}: see {logs}, then run the same command again"
        )
    return [state for state in states.values() if isinstance(state, UnitManifest)]


def _remove_others(folder: Path, units: set[str]) -> None:
    """Delete units that are no longer in the source, so that no later step reads them."""
    gone = [p for p in folder.glob("[0-9]*.*") if p.stem.isdigit() and p.stem not in units]
    for path in gone:
        path.unlink()
    if gone:
        print(f"{folder}: deleted {len(gone)} files of units that are no longer in the source")


def _tasks(step: UnitStep, plan: ExecutorPlan) -> int:
    return min(plan.tasks or plan.workers, len(step.jobs))


def _run_local(step: UnitStep, plan: ExecutorPlan, logs: Path) -> None:
    """Run the ranks in processes that may die or be stopped; a single worker runs in this process.

    concurrent.futures does not fit: if one process dies, it ends all and does not report which or why.
    """
    tasks = _tasks(step, plan)
    workers = min(plan.workers, tasks)
    if workers == 1:
        for rank in range(tasks):
            _run_rank(step, rank, tasks, logs)
        return
    context = multiprocessing.get_context("forkserver")
    # Preload slow imports once for all ranks.
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
                    # The other ranks finish their requests in flight.
                    for other, _, _ in running.values():
                        other.terminate()
    if stopped:
        raise Stopped(f"stopped by {stopped[0].name}; the same command continues", stopped[0])
    if error is not None:
        raise error


def _run_rank(step: UnitStep, rank: int, tasks: int, logs: Path) -> None:
    """Run one rank in this process; stderr, where libraries log, goes to a file."""
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / f"rank_{rank:05d}.stderr"
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stderr(file):
        step.run(rank=rank, world_size=tasks)


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Block the signals that end a run; processes started in the block inherit the blocked signals.

    The fork server must outlive its ranks, because joining a rank goes through it. A signal to the
    whole process group would end the server first.
    """
    # Start the resource tracker before blocking: starting it unblocks the signals.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_ctrl_c() -> None:
    """Let SIGTERM end a process started in `without_signals`, and ignore SIGINT, which its parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _rank(connection: Connection, *rank: Any) -> None:
    # Ctrl-C reaches the whole process group: the parent handles it and sends each rank one SIGTERM.
    leave_ctrl_c()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        _run_rank(*rank)
    except Exception as error:
        with contextlib.suppress(OSError):
            # The parent may have ended.
            connection.send(error)
        sys.exit(1)


def _follow_parent() -> None:
    """Wait for the parent to end, then send SIGTERM, and exit after a short while."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_SECONDS)
        os._exit(1)


def _outcome(process: Any, connection: Connection, rank: int) -> Exception | None:
    """Return the error of a rank that has ended, or None if it succeeded."""
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
    """Forward SIGTERM and SIGINT to the ranks as SIGTERM; yield the list of received signals."""
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
    """Return the arguments that both datatrove executors take."""
    return {
        "pipeline": [step],
        "tasks": _tasks(step, plan),
        "workers": plan.workers,
        "logging_dir": str(logs.resolve()),
        "skip_completed": False,
    }


def _run_slurm(step: UnitStep, plan: ExecutorPlan, logs: Path) -> None:
    """Submit one array job and wait until it leaves the queue; a signal cancels it."""
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
            f"stopped by {stopped[0].name}: Slurm job {executor.job_id} finishes its requests in "
            "flight; the same command continues",
            stopped[0],
        )


def _in_queue(job_id: str) -> bool:
    command = ["squeue", "--noheader", "--jobs", str(job_id), "--format", "%i"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode and "Invalid job id" not in answer.stderr:
        raise OSError(
            f"squeue: {' '.join(answer.stderr.split())}: check that Slurm's controller is running"
        )
    return bool(answer.stdout.strip())


def _run_ray(step: UnitStep, plan: ExecutorPlan, logs: Path) -> None:
    from datatrove.executor import RayPipelineExecutor

    RayPipelineExecutor(**_arguments(step, plan, logs), **plan.options).run()
