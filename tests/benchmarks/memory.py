"""What a process holds, by the kernel's own account (Linux). Imports nothing heavy."""

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_CLEAR = Path("/proc/self/clear_refs")


def in_own_processes(
    call: Callable[..., Any], names: Iterable[str], *args: Any
) -> dict[str, Any] | None:
    """`call(name, *args)` of every name, each in a process of its own, whose memory it measures.

    None where the system does not say (it takes Linux). To be called before this process computes
    anything: the processes are forks, which a pool of threads does not survive.
    """
    if not _CLEAR.exists():
        return None
    found = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            found[name] = pool.submit(call, name, *args).result()
    return found


def memory_of(call: Callable[[], object]) -> dict[str, int]:
    """Bytes this process holds before a call, and the most above that in it."""
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")  # the high-water mark starts again from here
    held = bytes_of("VmRSS")
    call()
    return {"held": held, "extra": bytes_of("VmHWM") - held}


def bytes_of(name: str) -> int:
    """A line of the kernel's account of this process, in bytes: VmRSS it holds, VmHWM is the most it
    held. getrusage's peak begins with the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
