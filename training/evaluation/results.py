"""The one format of evaluation results: `results.json`, documented by the types below.

Cards, tables and plots are made from this file and never typed. It holds no path and no host name:
it is published with the model.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import torch

from .metrics import Mean, Score

FORMAT = "maya-results-1"


class ModelInfo(TypedDict):
    """What was evaluated."""

    name: str  # the folder's name or the repository's id
    revision: str | None  # the Hub commit, where it came from the Hub
    weights_sha256: str | None  # over the safetensors files; None where they are not local
    model_type: str
    text_model: str
    vision_model: str
    parameters: int
    image_tokens: int | None  # of every picture; None for models whose pictures differ in it
    dtype: str
    device: str


class DataInfo(TypedDict):
    """What it was asked about."""

    name: str
    revision: str | None
    files_sha256: str | None  # over the dataset's files; None where they are not local
    split: str
    styles: list[str]
    images: int
    concepts: dict[str, int]  # "seen", "held_out"
    questions: int


class Settings(TypedDict):
    """How it was asked."""

    benchmark: str
    languages: list[str]
    tasks: list[str]
    limit: int | None
    baseline_images: int | None
    baselines: list[str]
    batch_size: int
    workers: int
    max_new_tokens: dict[str, int]
    decoding: str
    seed: int
    bootstrap_resamples: int


class Machine(TypedDict):
    """Where it ran."""

    system: str
    processor: str
    cores: int
    memory_gib: float | None
    gpu: str | None
    threads: int


class Failures(TypedDict):
    """Answers counted as wrong for a reason of their own."""

    empty: int  # nothing was said
    unfinished: int  # the length limit came before the end of the turn
    off_format: int  # neither yes nor no; none of the category names
    other_script: int  # fewer than half of the letters are of the language's script


class TaskScores(TypedDict):
    """One task over one set of concepts."""

    languages: dict[str, Score]
    means: dict[str, Mean]  # "all", and where known "pretrained" and "transfer"


class Results(TypedDict):
    """The whole file. `runs` has "model", "blind" (no image) and "shuffled" (another's image);
    below it tasks, then "seen" and "held_out" concepts."""

    format: str
    created: str
    package: dict[str, str | bool | None]  # "version", "commit", "modified"
    settings: Settings
    model: ModelInfo
    data: DataInfo
    machine: Machine
    versions: dict[str, str]
    seconds: dict[str, float]
    runs: dict[str, dict[str, dict[str, TaskScores]]]
    chance: dict[str, float | None]
    yes_rate: dict[str, dict[str, float]]  # run -> language -> share of "yes" answers
    fidelity: dict[str, Score]  # language -> answers to "name" in the language's own script
    failures: dict[str, dict[str, Failures]]  # task -> language, of the run "model"


def files_sha256(files: Iterable[Path]) -> str | None:
    """One hash over files' names and bytes, in the order of their names; None without files."""
    digest = hashlib.sha256()
    names = sorted(files, key=lambda file: file.name)
    for file in names:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(_stream_sha256(stream))
    return digest.hexdigest() if names else None


def _stream_sha256(stream: BinaryIO) -> bytes:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.digest()


def machine() -> Machine:
    """The machine, without its name."""
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
    """Python's version and those of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "datasets", "pillow", "numpy"):
        found[name] = importlib.metadata.version(name)
    return found


def package() -> dict[str, str | bool | None]:
    """This package's version and, in a git checkout, its commit and whether files were changed."""
    try:
        version: str | None = importlib.metadata.version("maya-vlm")
    except importlib.metadata.PackageNotFoundError:
        version = None
    here = Path(__file__).resolve().parents[2]
    commit, modified = None, None
    if (here / ".git").exists():
        commit = _git(here, "rev-parse", "HEAD")
        status = _git(here, "status", "--porcelain", "--untracked-files=no")
        modified = None if status is None else bool(status)
    return {"version": version, "commit": commit, "modified": modified}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_json(content: Any, path: Path) -> None:
    """Write by temporary file and rename: a half-written file never stands under `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(content, stream, ensure_ascii=False, indent=1, allow_nan=False)
            stream.write("\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_results(path: Path) -> Results:
    """Read a results file; FileNotFoundError or ValueError in one line if it is not one."""
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: run `maya evaluate` on the model first")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): run `maya evaluate` again") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}, expected {FORMAT!r}: evaluate again")
    return content
