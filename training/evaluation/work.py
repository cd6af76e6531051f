"""Find the requests of a task's runs that have no answer yet, and ask each of them once."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.files import only_one
from ..inference.generation import Answer
from .asking import Asked, Progress
from .journal import Journal, Keys
from .processes import Process
from .protocol import Loaded, Request, Scored, Task


@contextlib.contextmanager
def open_works(
    tasks: Sequence[Task],
    loaded: Mapping[str, Loaded],
    plans: Mapping[str, Mapping[str, Sequence[Request]]],
    identity: str,
    folder: Path,
    process: Process,
) -> Iterator[list["Work"]]:
    """Yield the work of each task, with its journal in `folder`/answers/journal open and locked.

    Protocols of one task share its journal, so that a request that they share is asked once.

    Args:
        loaded, plans: by `Task.key`.
        identity: the model's identity, see `Keys`.

    Raises:
        OSError: the folder cannot be written, or another evaluation writes there.
    """
    kept = folder / "answers" / "journal"
    kept.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if process.rank == 0:
            told = f"{folder}: another evaluation is writing there: wait for it, or name another --output"
            stack.enter_context(only_one(kept / "lock", told))
        journals = {task.name: Journal(kept, task.name, process.rank) for task in tasks}
        for journal in journals.values():
            stack.callback(journal.close)
        works = []
        for task in tasks:
            key = Keys(identity, task, loaded[task.key])
            keys = {run: [key(each) for each in asked] for run, asked in plans[task.key].items()}
            works.append(Work(task, loaded[task.key], plans[task.key], keys, journals[task.name]))
        yield works


@dataclass
class Work:
    """A task, the requests of each of its runs with their keys, and the existing answers."""

    task: Task
    part: Loaded
    plans: Mapping[str, Sequence[Request]]
    keys: Mapping[str, Sequence[str]]
    journal: Journal

    @property
    def total(self) -> int:
        """Return the number of different requests of all runs; each is asked once."""
        return len(set().union(*self.keys.values()))

    @property
    def answered(self) -> int:
        """Return the number of these requests that have an answer."""
        return len(set().union(*self.keys.values()) & self.journal.answers.keys())

    def ask(
        self, asked: Asked, process: Process, progress: Progress, seconds: dict[str, float]
    ) -> None:
        """Answer this process's share of the open requests, and wait for the other processes."""
        for run, requests in self.plans.items():
            start = time.perf_counter()
            by_key = dict(zip(self.keys[run], requests, strict=True))
            waiting = [key for key in by_key if key not in self.journal.answers]
            # All processes must have read before one of them appends.
            process.wait()
            mine = [waiting[number] for number in process.share([by_key[key] for key in waiting])]
            progress.start(f"{self.task.key}, {run}")

            def done(place: int, given: Answer, mine: list[str] = mine) -> None:
                self.journal.add(mine[place], given)
                progress.add()

            asked.ask([by_key[key] for key in mine], self.part.pictures, done)
            process.wait()
            if process.count > 1:
                self.journal.read()
            seconds[run] = time.perf_counter() - start

    def scored(self) -> dict[str, list[Scored]]:
        """Return run -> scored requests; a run without answers is left out."""
        runs = {}
        for run, requests in self.plans.items():
            there = [
                (request, self.journal.answers[key])
                for request, key in zip(requests, self.keys[run], strict=True)
                if key in self.journal.answers
            ]
            if there:
                scores = self.task.scores(*zip(*there, strict=True))
                runs[run] = [Scored(*one, score) for one, score in zip(there, scores, strict=True)]
        return runs
