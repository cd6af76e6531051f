"""Where a checkpoint is: a folder, or a repository of the Hub that is fetched into one."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

# What is fetched of a repository: weights, settings, tokenizer; no code.
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.bin"]
NOT_WEIGHTS = [
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "*global_step*",
    "trainer_state.json",
]


@dataclass(frozen=True)
class Origin:
    """A folder on this machine, the name for it in records, and its commit on the Hub."""

    folder: Path
    name: str
    commit: str | None = None


def local_origin(folder: Path) -> Origin:
    """A folder by its bare name (a record travels, paths do not), or the repository whose snapshot it is."""
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        repository = place.parent.parent.name.removeprefix("models--").replace("--", "/")
        return Origin(folder, repository, place.name)
    return Origin(folder, place.name)


def fetch(name: str | os.PathLike, revision: str | None = None) -> Origin:
    """A folder, or the snapshot of a repository: `user/name`, or `user/name@revision`."""
    path = Path(name).expanduser()
    if path.is_dir():
        return local_origin(path)
    if path.is_file():
        if path.name in ("mm_projector.bin", "config.json"):
            return local_origin(path.parent)
        raise ValueError(
            f"{name}: found a file, expected a folder or repository (or mm_projector.bin)."
        )
    named = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?", str(name))
    if named is None:
        raise FileNotFoundError(
            f"{name}: no such folder, and not the name of a Hub repository (user/name)."
        )
    repository, behind = named.groups()
    if None not in (revision, behind) and revision != behind:
        raise ValueError(
            f"{name}: revision: found {revision!r} beside the name, expected one revision."
        )
    revision = revision or behind
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, ignore_patterns=NOT_WEIGHTS
            )
        )
    except Exception as error:  # the Hub's client has many kinds; all of them mean it is not here
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        at = "" if revision is None else f" at revision {revision}"
        raise FileNotFoundError(
            f"{repository}: no such folder, and the repository could not be fetched{at} "
            f"({type(error).__name__}: {first})"
        ) from None
    return Origin(folder, repository, folder.name)
