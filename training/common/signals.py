"""Signal handling and parent-death detection for long runs."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Environment variable with the id of the process that launched the ranks; they exit when it does.
LAUNCHER = "MAYA_LAUNCHER"


class Stopped(Exception):
    """A signal asked the command to stop. Finished work is kept, and the same command continues it."""

    def __init__(self, text: str, number: int = signal.SIGTERM):
        super().__init__(text)
        self.number = number


@contextlib.contextmanager
def signal_handlers(
    handler: Callable[[int, Any], Any],
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[None]:
    """Install `handler(number, frame)` for these signals; restore the previous handlers on exit.

    A signal that is ignored, as SIGINT is for a shell's background jobs, stays ignored. Only the main
    thread may handle signals; in other threads nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class Interruption(BaseException):
    """Raised by a signal handler. It is a BaseException, so that `except Exception` does not catch it."""


@contextlib.contextmanager
def stopping(then: str) -> Iterator[None]:
    """Raise Stopped in the block on SIGTERM or SIGINT; its message names the signal and `then`."""

    def stop(number: int, frame: Any) -> None:
        raise Interruption(number)

    try:
        with signal_handlers(stop):
            yield
    except Interruption as error:
        number = signal.Signals(error.args[0])
        raise Stopped(f"stopped by {number.name}; {then}", number) from None


def end_with_parent(parent: int | None = None) -> None:
    """Make this process exit as soon as its parent ends, for any reason.

    Args:
        parent: the parent's process id, if multiprocessing did not start this process.
    """
    started_by = multiprocessing.parent_process()
    number = parent if started_by is None else started_by.pid
    if number is None:
        return
    if sys.platform == "linux" and os.getppid() == number:
        # Let the kernel kill this process. A thread would wait on a pipe whose other end every later
        # child of the parent inherits.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == number:
            return

    def wait() -> None:
        if started_by is not None:
            started_by.join()
        while started_by is None and _is_alive(number):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # alive, owned by another user
    return True


def ignore_foreign_sigterm() -> None:
    """Make this process, a loader's worker, ignore SIGINT and every SIGTERM not sent by its parent.

    SLURM, systemd and `timeout` send SIGTERM to all processes of a run, and a terminal's Ctrl-C sends
    SIGINT to them. A rank that finishes its step and saves needs its workers until then. The worker still
    exits with its parent. Call this before other threads start, because they do not inherit the blocked
    signal. Where the sender is unknown, as on macOS, any SIGTERM ends the worker.
    """
    parent = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    if sys.platform != "linux" or parent is None:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
