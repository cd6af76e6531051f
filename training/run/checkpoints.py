"""Checkpoints of a stage in progress: find, check and delete them.

Each checkpoint has a file `checksums.json` with the size and hash of its other files. Copying between
machines, or a full or failing disk, may damage a file. A run continues from the newest undamaged checkpoint.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..common.files import write_json
from ..common.reading import read_json_mapping, read_text
from ..common.telling import one_line

PREFIX = "checkpoint-"
CHECKSUMS = "checksums.json"
STATE = "trainer_state.json"
SUMS = "log_sums.json"
# Several threads hash the files in pieces, because one thread needs about a second per gigabyte.
PIECE = 1 << 25
THREADS = min(8, os.cpu_count() or 1)
# After a failed write, a disk with fewer free bytes counts as full.
FREE = 1 << 20


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first, without partial and damaged ones, whose names differ."""
    found = [p for p in folder.glob(f"{PREFIX}*") if p.name.removeprefix(PREFIX).isdecimal()]
    return sorted(found, key=lambda p: int(p.name.removeprefix(PREFIX)))


# ------------------------------------------------------------------------------ hashes


def seal(folder: Path) -> None:
    """Write the checksums of the files in `folder`, which completes the checkpoint."""
    write_json(folder / CHECKSUMS, _checksums(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / CHECKSUMS)


def _checksums(folder: Path) -> dict[str, list[Any]]:
    """Return name -> [size, hash]. The hash of a file is the hash of its pieces' hashes."""

    def hash_piece(piece: tuple[Path, int]) -> bytes:
        file, start = piece
        with file.open("rb") as opened:
            opened.seek(start)
            return sha256(opened.read(PIECE)).digest()

    files = {file: file.stat().st_size for file in _files(folder)}
    pieces = [
        (file, start) for file, size in files.items() for start in range(0, max(size, 1), PIECE)
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        hashes = list(pool.map(hash_piece, pieces))
    whole = {file: sha256() for file in files}
    for (file, _), digest in zip(pieces, hashes, strict=True):
        whole[file].update(digest)
    return {
        file.relative_to(folder).as_posix(): [files[file], digest.hexdigest()]
        for file, digest in whole.items()
    }


def damage(folder: Path) -> str | None:
    """Describe the damage of a checkpoint, beginning with the file's name; return None if there is none."""
    try:
        noted = folder / CHECKSUMS
        if not noted.is_file():
            return _damage_without_checksums(folder)
        expected = read_json_mapping(noted)
        sizes = {f.relative_to(folder).as_posix(): f.stat().st_size for f in _files(folder)}
        for name, value in expected.items():
            if name not in sizes:
                return f"{name} is missing"
            if sizes[name] != value[0]:
                return f"{name} has {sizes[name]:,} bytes, not {value[0]:,}"
        for name, value in _checksums(folder).items():
            if name in expected and value != expected[name]:
                return f"{name} is not as it was written"
    except (OSError, ValueError, TypeError, LookupError) as error:
        return one_line(str(error), 200)
    return None


# Required parts of a checkpoint, with the prefixes of their file names.
REQUIRED = {
    "the model": ("model.safetensors", "model-", "adapter_model", "pytorch_model"),
    "the optimizer's state": ("optimizer",),
    "scheduler.pt": ("scheduler",),
    "the random state": ("rng_state",),
}


def _damage_without_checksums(folder: Path) -> str | None:
    """Do the work of `damage` for a checkpoint of an older version, which wrote no checksums.

    Without this check, Trainer would silently start a new optimizer state if that file is missing.
    """
    for name in (STATE, SUMS):
        if not (folder / name).is_file():
            return f"{name} is missing"
    read_state(folder)
    read_sums(folder)
    files = {file: file.relative_to(folder) for file in _files(folder)}
    parts = {part for name in files.values() for part in name.parts}
    # DeepSpeed has files of its own for everything except the random state.
    deepspeed = any(part.startswith("global_step") for part in parts)
    kinds = {"the random state": REQUIRED["the random state"]} if deepspeed else REQUIRED
    for kind, starts in kinds.items():
        if not any(part.startswith(starts) for part in parts):
            return f"{kind} is missing"
    for file, place in files.items():
        archive = file.suffix in (".pt", ".pth", ".bin")
        if not file.stat().st_size or (archive and not zipfile.is_zipfile(file)):
            return f"{place} is damaged"
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):
                    pass
            except SafetensorError as error:
                return f"{place} is damaged ({one_line(str(error), 100)})"
    return None


# ------------------------------------------------------------------------------ choice


def newest_whole(folder: Path, best: bool, say: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint in `folder`, or None if there are no checkpoints.

    Damaged checkpoints, and checkpoints newer than the returned one, are renamed. Damage is reported.

    Args:
        folder: the folder of the checkpoints.
        best: whether the end of the stage needs the best checkpoint. If so, the returned checkpoint is one
            whose best checkpoint is undamaged, or an older one, from which training finds the best again.
        say: prints a line.

    Raises:
        ValueError: all checkpoints are damaged; one line.
    """
    found = checkpoints(folder)
    problems: dict[Path, str | None] = {}

    def problem(path: Path) -> str | None:
        if path not in problems:
            problems[path] = damage(path) if path.is_dir() else "is missing"
        return problems[path]

    for path in reversed(found):
        if problem(path):
            continue
        step = read_state(path).get("best_global_step") if best else None
        if step and problem(folder / f"{PREFIX}{step}"):
            continue
        for other in found:
            if problems.get(other) or found.index(other) > found.index(path):
                aside = other.with_name(f"{other.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(other, aside)
        for other, told in problems.items():
            if told:
                say(f"{other}: {one_line(told)}; going on from {path.name}")
        return path
    if not found:
        return None
    first, told = next((path, told) for path, told in problems.items() if told)
    raise ValueError(
        f"{first}: {told}; no checkpoint in {folder} is whole: copy one there again, or delete that "
        "folder to begin the stage again"
    )


def drop_old(folder: Path, keep: int | None, best: int | None) -> None:
    """Delete the oldest checkpoints until `keep` are left. The newest and that of step `best` are kept."""
    found = checkpoints(folder)
    if keep is None or not found:
        return
    needed = {found[-1], folder / f"{PREFIX}{best}"}
    old = [path for path in found if path not in needed]
    for path in old[: max(0, len(found) - max(keep, len(needed & set(found))))]:
        shutil.rmtree(path, ignore_errors=True)


# ------------------------------------------------------------------------------ a full disk


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise a one-line OSError if a write in the block fails because the disk is full or broken.

    torch, safetensors and tokenizers raise other errors, which do not name the file.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_error(error, folder)
        if reason is None:
            raise
        raise OSError(
            f"{folder}: cannot be written: {reason}: make room; complete files are kept, and the same "
            "command continues"
        ) from None


def _disk_error(error: Exception, folder: Path) -> str | None:
    """Return the reason if the disk caused an error, else None."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or type(error).__name__
    for words in ("No space left on device", "Disk quota exceeded", "File too large"):
        if words in text:
            return words
    if "PytorchStreamWriter failed" in text or "inline_container" in text:
        return "torch could not write its file"
    while not folder.exists():
        folder = folder.parent
    return "the disk is full" if shutil.disk_usage(folder).free < FREE else None


# ------------------------------------------------------------------------------ state


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read Trainer's state from a checkpoint: finished steps, logs, the best step."""
    found = _read_json(checkpoint / STATE)
    if not isinstance(found, dict) or not isinstance(found.get("global_step"), int):
        raise ValueError(f"{STATE} is damaged (expected a mapping with global_step)")
    return found


def read_sums(checkpoint: Path) -> dict[str, Any]:
    """Read the sums of the unfinished log line from a checkpoint. Older versions wrote only the sums per language."""
    found = _read_json(checkpoint / SUMS)
    return found if isinstance(found, dict) else {"languages": found}


def _read_json(file: Path) -> Any:
    """Read a JSON file that Trainer wrote. Its numbers may be NaN."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file.name} is damaged ({one_line(str(error), 100)})") from None
