"""Scheduler of a study's runs: trains and evaluates them in separate processes, several in parallel.

`maya train` trains a run and `maya evaluate` evaluates it; both continue after a stop. If a run fails, the
failure is recorded, the other runs go on, and the same command retries it. A diverged run is a result and
is not retried. Runs with equal first stages share these stages.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..common.files import only_one, write_json
from ..common.provenance import provenance
from ..common.signals import LAUNCHER, Interruption, Stopped, signal_handlers
from ..common.telling import one_line
from ..recipe import write_recipe
from ..run.processes import available_cores, count_processes
from .outcome import OUTCOME, evaluation_folder, is_scored, read_outcome, write_outcome
from .plan import Run
from .study import Study

POLL = 0.2  # seconds
# Number of bytes read from the end of a log to find its last line.
TAIL = 4096
COMMAND = (sys.executable, "-m", "maya_vlm.training.cli")


@dataclass
class Counts:
    """Counts of the runs of one command.

    before: runs that were finished before.
    done: runs that the command finished.
    failed: name of a failed run -> the error in one line.
    diverged: name of a diverged run -> the error in one line.
    """

    before: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)


def is_finished(run: Run, study: Study) -> bool:
    """Return whether a run needs no more work: trained and evaluated, or diverged."""
    outcome = read_outcome(run)
    if outcome is None or outcome["state"] == "failed":
        return False
    return outcome["state"] == "diverged" or is_scored(run, study)


def run_study(
    study: Study,
    runs: Sequence[Run],
    work: Path,
    jobs: int = 1,
    trust_remote_code: bool = False,
    options: Sequence[str] = (),
    shard: tuple[int, int] | None = None,
) -> Counts:
    """Train and evaluate all unfinished runs of a study.

    Args:
        study: from `read_study`.
        runs: from `plan_runs`.
        work: the folder of all studies.
        jobs: number of parallel runs. Each run uses one GPU, or a share of the cores without GPUs.
        trust_remote_code: passed on to both commands.
        options: extra options of `maya train`, such as `--accelerate fsdp2`.
        shard: number and count of the share that `runs` are. Commands of other shares may run at once.

    Returns:
        The counts of finished, failed and diverged runs.

    Raises:
        ValueError: another command is running in the same folder.
        Stopped: after SIGTERM or Ctrl-C; the active runs have saved their work.
    """
    counts = Counts()
    waiting = []
    for run in runs:
        if is_finished(run, study):
            counts.before += 1
            outcome = read_outcome(run)
            if outcome is not None and outcome["state"] == "diverged":
                counts.diverged[run.name] = outcome.get("reason", "")
        else:
            waiting.append(run)
    work.mkdir(parents=True, exist_ok=True)
    refusal = f"another `maya ablate` is running in {work}: wait for it, or use another --output"
    lock = "lock" if shard is None else f"lock-{shard[0]}-of-{shard[1]}"
    with only_one(work / lock, refusal):
        _Scheduler(study, waiting, counts, len(runs), jobs, trust_remote_code, options).run()
    return counts


class _Scheduler:
    """Single-threaded scheduler: it starts processes, polls them and records how they ended."""

    def __init__(
        self,
        study: Study,
        waiting: list[Run],
        counts: Counts,
        total: int,
        jobs: int,
        trust_remote_code: bool,
        options: Sequence[str],
    ):
        self.study, self.waiting, self.counts, self.total = study, waiting, counts, total
        self.trust = ["--trust-remote-code"] if trust_remote_code else []
        self.options = list(options)
        self.free = list(range(max(1, jobs)))
        self.jobs = jobs
        self.active: list[_Job] = []
        self.times: list[float] = []

    def run(self) -> None:
        try:
            with signal_handlers(_interrupt):
                while self.waiting or self.active:
                    self._start_jobs()
                    time.sleep(POLL)
                    for job in list(self.active):
                        if job.process.poll() is not None:
                            self._advance(job)
        except Interruption as error:
            number = signal.Signals(error.args[0])
            raise Stopped(f"stopped by {number.name}; the same command continues", number) from None
        finally:
            for job in self.active:
                if job.process.poll() is None:
                    job.process.terminate()
            for job in self.active:
                job.process.wait()

    def _start_jobs(self) -> None:
        for run in list(self.waiting):
            if not self.free:
                return
            # Wait while an active run still trains a stage that this run shares.
            if any(self._trains_for(job.run, run) for job in self.active):
                continue
            self.waiting.remove(run)
            job = _Job(run, self.free.pop(0), time.monotonic())
            outcome = read_outcome(run)
            if outcome is None or outcome["state"] == "failed":
                _take_stages(run)
                job.start(self._train(run), self._environment(job), "train")
            else:
                job.start(self._evaluate(run), self._environment(job), "evaluate")
            self.active.append(job)

    @staticmethod
    def _trains_for(active: Run, run: Run) -> bool:
        """Return whether `active` has not finished a stage that it shares with `run`."""
        common = sum(a == b for a, b in zip(active.stages, run.stages, strict=False))
        return any(
            not (active.folder / stage.name / "config.json").is_file()
            for stage in active.recipe.stages[:common]
        )

    def _train(self, run: Run) -> list[str]:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        recipe = run.folder.with_name(f"{run.folder.name}.yaml")
        write_recipe(replace(run.recipe, processes=self._processes(run)), recipe)
        return ["train", str(recipe), *self.trust, *self.options]

    def _processes(self, run: Run) -> int | Literal["auto"]:
        """Return the recipe's processes; for `auto` on a CPU, a parallel run's share of them."""
        import torch

        if run.recipe.processes != "auto" or self.jobs == 1 or torch.cuda.is_available():
            return run.recipe.processes
        return max(1, count_processes(run.recipe) // self.jobs)

    def _evaluate(self, run: Run) -> list[str]:
        plan = self.study.evaluate
        folder = evaluation_folder(run, plan)
        command = ["evaluate", str(run.folder), "--tasks", *plan.tasks, "--output", str(folder)]
        command += ["--languages", *plan.languages] if plan.languages else []
        command += ["--limit", str(plan.limit)] if plan.limit is not None else []
        command += ["--split", plan.split] if plan.split is not None else []
        command += ["--data", plan.data] if plan.data is not None else []
        command += [] if plan.baselines else ["--no-baselines"]
        return [*command, *self.trust]

    def _environment(self, job: "_Job") -> dict[str, str]:
        """Return the environment variables of a job: one GPU, or a share of the CPU cores."""
        import torch

        found = {**os.environ, LAUNCHER: str(os.getpid())}
        if (gpus := torch.cuda.device_count()) and self.jobs > 1:
            found["CUDA_VISIBLE_DEVICES"] = str(job.slot % gpus)
        elif not gpus:
            found["OMP_NUM_THREADS"] = str(max(1, available_cores() // self.jobs))
        return found

    def _advance(self, job: "_Job") -> None:
        """Record the end of a process. Then start the run's evaluation, or free the job's slot."""
        run, code = job.run, job.process.returncode
        job.close()
        failed = code != 0
        if job.step == "train":
            reason = _last_line(job.log) if failed else None
            outcome = write_outcome(run.folder, time.monotonic() - job.began, reason)
            if failed:
                lists = {"diverged": self.counts.diverged, "failed": self.counts.failed}
                lists[outcome["state"]][run.name] = str(reason)
            elif not is_scored(run, self.study):
                job.start(self._evaluate(run), self._environment(job), "evaluate")
                return
        elif failed:
            self.counts.failed[run.name] = _last_line(job.log)
        else:
            folder = evaluation_folder(run, self.study.evaluate)
            write_json(folder / OUTCOME, provenance())
        self.active.remove(job)
        self.free.append(job.slot)
        self._tell(job, failed)

    def _tell(self, job: "_Job", failed: bool) -> None:
        counts = self.counts
        ended = "failed" if failed else "done"
        if job.run.name in counts.diverged:
            ended = "diverged"
        if not failed:
            counts.done += 1
            self.times.append(time.monotonic() - job.began)
        number = self.total - len(self.waiting) - len(self.active)
        left = len(self.waiting) + len(self.active)
        text = f"[{number}/{self.total}] {job.run.name}: {ended} after {_minutes(time.monotonic() - job.began)}"
        if left and self.times:
            seconds = sum(self.times) / len(self.times) * left / self.jobs
            text += f"; {left} left, about {_minutes(seconds)}"
        print(text, flush=True)
        if failed:
            print(f"  {_last_line(job.log)}", flush=True)


class _Job:
    """An active run in one job slot. step: "train" or "evaluate"."""

    process: subprocess.Popen

    def __init__(self, run: Run, slot: int, began: float):
        self.run, self.slot, self.began = run, slot, began
        self.step = ""
        self.log = run.folder.with_name(f"{run.folder.name}.log")

    def start(self, command: Sequence[str], environment: dict[str, str], step: str) -> None:
        self.step = step
        with self.log.open("ab") as log:
            # A new session: Ctrl-C reaches only the scheduler, which sends SIGTERM to each job once.
            self.process = subprocess.Popen(
                [*COMMAND, *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def close(self) -> None:
        self.process.wait()


def _interrupt(number: int, frame: object) -> None:
    raise Interruption(number)


def _take_stages(run: Run) -> None:
    """Copy the finished stages that a run shares with another run.

    The files are hard links where possible. Only recipe.yaml is written for this run.
    """
    parent = run.folder.parent
    for number, stage in enumerate(run.recipe.stages[:-1]):
        target = run.folder / stage.name
        if (target / "config.json").is_file():
            continue
        source = _finished(parent, run.stages[number], stage.name)
        if source is None:
            break
        temporary = run.folder / f".{stage.name}.taken"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, copy_function=_link)
        (temporary / "recipe.yaml").unlink(missing_ok=True)
        write_recipe(run.recipe, temporary / "recipe.yaml", target)
        temporary.rename(target)
    _note_stages(run)


def _note_stages(run: Run) -> None:
    """Record which run has each stage, as files named by the stage's hash, for other runs to find."""
    for key, stage in zip(run.stages[:-1], run.recipe.stages[:-1], strict=True):
        place = run.folder.parent / "stages" / key
        place.parent.mkdir(parents=True, exist_ok=True)
        if not (run.folder.parent / _named(place) / stage.name / "config.json").is_file():
            place.write_text(run.folder.name, encoding="utf-8")


def _named(place: Path) -> str:
    return place.read_text(encoding="utf-8") if place.is_file() else "none"


def _finished(parent: Path, key: str, stage: str) -> Path | None:
    """Return the folder of the finished stage with this hash, or None."""
    folder = parent / _named(parent / "stages" / key) / stage
    return folder if (folder / "config.json").is_file() else None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)


def _last_line(log: Path) -> str:
    """Return the last line of a command's output, which is its error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return one_line(lines[-1], 300) if lines else "no output"


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds / 60:.1f} minutes"
