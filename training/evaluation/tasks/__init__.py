"""The benchmarks, one file each. A new one is listed here."""

from ..protocol import Task
from .mini import Mini

TASKS: dict[str, type[Task]] = {task.name: task for task in (Mini,)}


def task(name: str) -> Task:
    """The task of this name; ValueError, naming the known ones, for another."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}")
    return TASKS[name]()
