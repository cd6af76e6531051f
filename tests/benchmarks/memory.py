"""Memory of a process, from the kernel's counts (Linux). No heavy library is imported."""

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
    """Return `call(name, *args)` for every name, each in a separate process that measures its memory.

    Returns None on systems without these counts (only Linux has them). Call this before the present process
    computes anything, because the processes are forks, and thread pools do not survive a fork.
    """
    if not _CLEAR.exists():
        return None
    found = {}
    for name in names:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            found[name] = pool.submit(call, name, *args).result()
    return found


def memory_of(call: Callable[[], object]) -> dict[str, int]:
    """Return the bytes of this process before a call, and the additional peak during it."""
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")  # reset the high-water mark
    held = bytes_of("VmRSS")
    call()
    return {"held": held, "extra": bytes_of("VmHWM") - held}


def bytes_of(name: str) -> int:
    """Return a kernel count of this process in bytes: VmRSS is the present size, VmHWM the peak. (getrusage's
    peak includes the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024
