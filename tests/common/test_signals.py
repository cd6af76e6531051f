"""Signal handlers are active only inside a block, and not for ignored signals; a loader's worker exits
only by its parent's signal."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from maya_vlm.training.common.signals import ignore_foreign_sigterm, signal_handlers


@pytest.fixture(autouse=True)
def _ours():
    """Restore the signal handlers that tests change."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handled_inside_of_the_block_only():
    came, outside = [], []
    signal.signal(signal.SIGTERM, lambda number, frame: outside.append(number))
    with contextlib.suppress(KeyError), signal_handlers(lambda number, frame: came.append(number)):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise KeyError
    signal.raise_signal(signal.SIGTERM)
    assert (came, outside) == ([signal.SIGTERM, signal.SIGINT], [signal.SIGTERM])


def test_what_is_ignored_from_outside_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    came: list[int] = []
    with signal_handlers(lambda number, frame: came.append(number)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_another_thread_changes_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with signal_handlers(lambda number, frame: None):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


def wait_for_parent(ready):
    ignore_foreign_sigterm()
    ready.set()
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a signal's sender cannot be told")
def test_a_worker_ends_by_its_parent_only():
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    worker = context.Process(target=wait_for_parent, args=(ready,), daemon=True)
    worker.start()
    assert ready.wait(60)
    other = f"import os, signal; os.kill({worker.pid}, signal.SIGTERM)"
    subprocess.run([sys.executable, "-c", other], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0
