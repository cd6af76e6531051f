"""Locate a checkpoint: a folder, or a repository of the Hub, which is downloaded."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

# The files to download of a repository: weights, settings, tokenizer and recipe, but no code.
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.bin", "merges.txt", "recipe.yaml"]
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
    """A local folder and its origin."""

    folder: Path
    name: str  # in records: a repository, or the folder's name without its path
    commit: str | None = None  # of the repository on the Hub


def local_origin(folder: Path) -> Origin:
    """Return the origin of a folder: the repository if the folder is a cached snapshot, else its own name.

    The name is without a path, because the record is published and paths mean nothing elsewhere.
    """
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        repository = place.parent.parent.name.removeprefix("models--").replace("--", "/")
        return Origin(folder, repository, place.name)
    return Origin(folder, place.name)


def fetch(name: str | os.PathLike, revision: str | None = None) -> Origin:
    """Return the origin for a folder, or download a repository: `user/name` or `user/name@revision`.

    Raises:
        ValueError: `name` is another kind of file, or two revisions are given.
        FileNotFoundError: there is no such folder, and the repository cannot be downloaded.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return local_origin(path)
    if path.is_file():
        if path.name in ("mm_projector.bin", "config.json"):
            return local_origin(path.parent)
        raise ValueError(
            f"{name}: expected a folder, a repository or mm_projector.bin, found another file"
        )
    named = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?", str(name))
    if named is None:
        raise FileNotFoundError(
            f"{name}: no such folder, and not the name of a Hub repository (user/name)"
        )
    repository, behind = named.groups()
    if None not in (revision, behind) and revision != behind:
        raise ValueError(f"{name}: revision: expected one revision, found {revision!r} too")
    revision = revision or behind
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, ignore_patterns=NOT_WEIGHTS
            )
        )
    except Exception as error:  # huggingface_hub raises many kinds; each means no download
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        at = "" if revision is None else f" at revision {revision}"
        raise FileNotFoundError(
            f"{repository}: no such folder, and the repository could not be fetched{at} "
            f"({type(error).__name__}: {first})"
        ) from None
    return Origin(folder, repository, folder.name)
