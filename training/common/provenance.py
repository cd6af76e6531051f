"""Provenance of numbers: date, commit of this package, machine, package versions."""

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import torch

from .versions import PACKAGE, version_of


class Machine(TypedDict):
    """The machine that produced the numbers."""

    system: str
    processor: str
    cores: int
    memory_gib: float | None
    gpu: str | None
    threads: int


class Provenance(TypedDict):
    """The header of every file of numbers. It holds no path and no host name."""

    created: str
    package: dict[str, str | bool | None]  # "version", "commit", "modified"
    machine: Machine
    versions: dict[str, str]


def provenance(*also: str) -> Provenance:
    """Describe the current process: `versions`, plus the packages in `also`."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "package": package(),
        "machine": machine(),
        "versions": versions() | {name: importlib.metadata.version(name) for name in also},
    }


def machine() -> Machine:
    """Describe this machine, without its host name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor_name(),
        "cores": os.cpu_count() or 1,
        "memory_gib": memory,
        "gpu": gpu,
        "threads": torch.get_num_threads(),
    }


def _processor_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect numbers."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "datasets", "pillow", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found


def package() -> dict[str, str | bool | None]:
    """Return this package's version and, in a git checkout, the commit and whether files are modified."""
    here = Path(__file__).resolve().parents[2]
    commit, modified = None, None
    if (here / ".git").exists():
        commit = _git(here, "rev-parse", "HEAD")
        status = _git(here, "status", "--porcelain", "--untracked-files=no")
        modified = None if status is None else bool(status)
    return {"version": version_of(PACKAGE), "commit": commit, "modified": modified}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
