"""Locks that processes hold on files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock


@contextlib.contextmanager
def only_one(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file. Raises OSError with this message when another process holds it."""
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OSError(refusal) from None
    try:
        yield
    finally:
        lock.release()
