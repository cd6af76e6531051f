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

# The variable that names the process which started ranks by accelerate, and which they end with.
LAUNCHER = "MAYA_LAUNCHER"


class Stopped(Exception):
    """A command was asked to stop by a signal; what it did is kept, and the same command continues."""

    def __init__(self, text: str, number: int = signal.SIGTERM):
        super().__init__(text)
        self.number = number


@contextlib.contextmanager
def signal_handlers(
    handler: Callable[[int, Any], Any],
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[None]:
    """Install `handler(number, frame)` for these signals; restore the previous handlers on exit.

    A signal that was ignored from outside, as SIGINT is in a shell's background, stays ignored. In
    another thread than the main one, which alone may handle signals, nothing is changed.
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
    """Raised where a signal arrives; no `except Exception` on the way takes it for another error."""


@contextlib.contextmanager
def stopping(then: str) -> Iterator[None]:
    """Raise Stopped in the block at SIGTERM or SIGINT; its message names the signal and `then`."""

    def stop(number: int, frame: Any) -> None:
        raise Interruption(number)

    try:
        with signal_handlers(stop):
            yield
    except Interruption as error:
        number = signal.Signals(error.args[0])
        raise Stopped(f"stopped by {number.name}; {then}", number) from None


def end_with_parent(parent: int | None = None) -> None:
    """Have this process end at once when its parent does, however that ended.

    Args:
        parent: its process id, where the process was not started by multiprocessing.
    """
    started_by = multiprocessing.parent_process()
    number = parent if started_by is None else started_by.pid
    if number is None:
        return
    if sys.platform == "linux" and os.getppid() == number:
        # Left to the kernel. A thread would wait for a pipe, whose other end every later child of the
        # parent holds too.
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
        return isinstance(error, PermissionError)  # a process of somebody else
    return True


def ignore_foreign_sigterm() -> None:
    """Have this process, a loader's worker, end with its parent or by a SIGTERM of it, and by no other
    signal of these.

    SLURM, systemd and `timeout` send SIGTERM to all processes of a run, a terminal's Ctrl-C SIGINT, and a
    rank that is to finish its step and save needs its workers for that. To be called before other
    threads are started, which would not know of it. Where a signal's sender cannot be told, as on macOS,
    SIGTERM ends the worker.
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
