"""What ends a run from outside: signals, handled for a while, and the end of its parent."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def handling(
    handler: Callable[[int, Any], Any],
    numbers: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
) -> Iterator[None]:
    """Have `handler(number, frame)` called for these signals; after the block, who was before.

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


def end_with_parent() -> None:
    """Have this process, which multiprocessing started, end at once when its parent does, however
    that ended."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_by_parent_only() -> None:
    """Have this process, a loader's worker, end by a SIGTERM of its parent, and by nobody else's.

    SLURM, systemd and `timeout` send it to all processes of a run, and a rank that is to finish its
    step and save needs its workers for that. To be called before other threads are started, which
    would not know of it. Without effect where a signal's sender cannot be told, as on macOS.
    """
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
