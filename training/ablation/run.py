"""Run the cells of a study: train and score each run in processes of its own, several at once.

A run is trained by `maya train` and scored by `maya evaluate`, which continue after a stop. A run that
fails is recorded and the others go on; the same command tries it again. A run that diverged is a result,
and is kept. Runs whose first stages are the same train them once.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..common.files import only_one, write_json
from ..common.provenance import provenance
from ..common.signals import LAUNCHER, Interruption, Stopped, signal_handlers
from ..common.telling import one_line
from ..recipe import write_recipe
from ..run.processes import available_cores
from .outcome import OUTCOME, evaluation_folder, is_scored, read_outcome, write_outcome
from .plan import Run
from .study import Study

POLL = 0.2  # seconds
# Bytes of a command's output that are read for its last line.
TAIL = 4096
COMMAND = (sys.executable, "-m", "maya_vlm.training.cli")


@dataclass
class Counts:
    """What a command did: runs that ended before it, that it finished, and that failed or diverged."""

    before: int = 0
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)


def is_finished(run: Run, study: Study) -> bool:
    """Return whether nothing is left to do for a run."""
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
) -> Counts:
    """Train and score all runs of a study that are not finished.

    Args:
        study: as `read_study` gives it.
        runs: as `plan_runs` gives them.
        work: the folder of all studies.
        jobs: runs at once. On GPUs each takes one of them, on a CPU a share of the cores.
        trust_remote_code: passed on to both commands.
        options: of `maya train`, such as `--accelerate fsdp2`.

    Raises:
        ValueError: another command is running in the same folder.
        Stopped: SIGTERM or Ctrl-C; the runs in progress have saved what they have.
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
    with only_one(work / "lock", refusal):
        _Scheduler(study, waiting, counts, len(runs), jobs, trust_remote_code, options).run()
    return counts


class _Scheduler:
    """The jobs of a command. It is one thread: it starts processes, polls them and records their ends."""

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
            # Wait for a stage that an active run is about to finish for this one too.
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
        """Return whether `active` has still to train a stage that `run` has in common with it."""
        common = sum(a == b for a, b in zip(active.stages, run.stages, strict=False))
        return any(
            not (active.folder / stage.name / "config.json").is_file()
            for stage in active.recipe.stages[:common]
        )

    def _train(self, run: Run) -> list[str]:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        recipe = run.folder.with_name(f"{run.folder.name}.yaml")
        write_recipe(run.recipe, recipe)
        return ["train", str(recipe), *self.trust, *self.options]

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
        """Return the environment of a job: its GPU, or its share of the cores."""
        import torch

        found = {**os.environ, LAUNCHER: str(os.getpid())}
        if (gpus := torch.cuda.device_count()) and self.jobs > 1:
            found["CUDA_VISIBLE_DEVICES"] = str(job.slot % gpus)
        elif not gpus:
            found["OMP_NUM_THREADS"] = str(max(1, available_cores() // self.jobs))
        return found

    def _advance(self, job: "_Job") -> None:
        """Record the end of a process, and start the next of its run or free its place."""
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
    """A run in progress, in one of the places for jobs. step: train or evaluate."""

    process: subprocess.Popen

    def __init__(self, run: Run, slot: int, began: float):
        self.run, self.slot, self.began = run, slot, began
        self.step = ""
        self.log = run.folder.with_name(f"{run.folder.name}.log")

    def start(self, command: Sequence[str], environment: dict[str, str], step: str) -> None:
        self.step = step
        with self.log.open("ab") as log:
            # A group of its own: Ctrl-C reaches this process only, which passes SIGTERM on once.
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
    """Give a run the stages that another run with the same beginning has trained.

    The files are linked, and recipe.yaml is that of this run.
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
    """Keep the keys of a run's stages beside it, by which other runs find them."""
    for key, stage in zip(run.stages[:-1], run.recipe.stages[:-1], strict=True):
        place = run.folder.parent / "stages" / key
        place.parent.mkdir(parents=True, exist_ok=True)
        if not (run.folder.parent / _named(place) / stage.name / "config.json").is_file():
            place.write_text(run.folder.name, encoding="utf-8")


def _named(place: Path) -> str:
    return place.read_text(encoding="utf-8") if place.is_file() else "none"


def _finished(parent: Path, key: str, stage: str) -> Path | None:
    """Return the folder of a finished stage with this key, or None."""
    folder = parent / _named(parent / "stages" / key) / stage
    return folder if (folder / "config.json").is_file() else None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no links on this disk
        shutil.copy2(source, target)


def _last_line(log: Path) -> str:
    """Return the last line that a command printed, its error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return one_line(lines[-1], 300) if lines else "no output"


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 7200 else f"{seconds / 60:.1f} minutes"
