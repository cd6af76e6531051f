"""The benchmarks, one file each. A new one is listed here."""

from ..protocol import Task
from .mini import Mini

TASKS: dict[str, type[Task]] = {task.name: task for task in (Mini,)}


def task(name: str) -> Task:
    """The task `NAME` or `NAME:PROTOCOL`; ValueError, naming the known ones, for another."""
    name, _, protocol = name.partition(":")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}")
    return TASKS[name](protocol or None)
