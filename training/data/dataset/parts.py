"""The finished units of a build, and the parts of its dataset, which are reused between runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ...common.files import sha256_file, write_json
from ...common.names import stays_inside
from ...common.reading import read_json
from ...common.shapes import has_shape
from ...rows.parquet import Row, read_columns, read_rows
from ..engine.unit_files import UnitManifest, manifest_path
from ..sources.step import finished_sources
from .manifest_shape import AUDIT, FILES, IMAGES, LANGUAGE, MESSAGES, check_languages
from .plan import BuildPlan
from .shards import Shards

# Increase when the same build yields different files. The config `messages` has its own version, so that
# an older dataset without the config gets it and keeps its other files.
VERSION = 1


class Build:
    """A build whose other steps are finished.

    Attributes:
        root: folder of the dataset.
        source: manifest of the source step.
        units, source_sha: names of the source units; unit name -> SHA-256.
        languages: languages of the dataset: first those of source rows, then target languages.
        conversations: whether at least one source row is a conversation.
    """

    def __init__(self, plan: BuildPlan):
        self.plan, self.folder, self.run_id = plan, plan.folder, plan.run_id
        self.root = plan.folder / "dataset"
        self.source = source = finished_sources(self.folder / "source")
        self.units: list[str] = [unit["unit"] for unit in source["units"]]
        self.source_sha = {unit["unit"]: unit["sha256"] for unit in source["units"]}
        self.languages = list(dict.fromkeys([*source["languages"], *plan.languages]))
        check_languages(self.languages, f"{self.folder}: language")
        paths = self.unit_paths("source")
        self.conversations = any(read_columns(p, ["text"])[0].null_count for p in paths)

    def unit_paths(self, *folders: str) -> list[Path]:
        return [self.folder.joinpath(*folders, f"{unit}.parquet") for unit in self.units]

    def source_rows(self, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Yield the rows of all source units, sorted by id."""
        for path in self.unit_paths("source"):
            yield from read_rows(path, columns)

    def unit_shas(self, step: str, lang: str, before: dict[str, str]) -> dict[str, str]:
        """Return {unit: SHA-256} of a step's units.

        Args:
            step: name of the step.
            lang: language of the units.
            before: SHA-256 of the previous step's units.

        Raises:
            ValueError: a unit is missing, changed, or was not made from the previous step's unit.
        """
        found = {}
        for unit, path in zip(self.units, self.unit_paths(step, lang), strict=True):
            manifest = UnitManifest.read(manifest_path(path))
            if manifest is None or not path.is_file():
                raise ValueError(
                    f"{path}: expected a finished unit, found none: run the step {step} first"
                )
            if manifest.source_sha256 != before[unit]:
                raise ValueError(f"{path}: made from other rows: run the step {step} again")
            if sha256_file(path) != manifest.parquet_sha256:
                raise ValueError(f"{path}: has changed: run the step {step} again")
            found[unit] = manifest.parquet_sha256
        return found

    @cached_property
    def decided_shas(self) -> list[str | None]:
        """Return the SHA-256 of the files with people's and judges' decisions, None for a missing file."""
        paths = (
            self.folder / "review" / "overrides.parquet",
            self.folder / "toxicity" / "decisions.parquet",
        )
        return [sha256_file(path) if path.is_file() else None for path in paths]


class Part(Protocol):
    """One part of a dataset. Its key is the hash of its inputs and settings."""

    name: str

    def key(self) -> str: ...

    def write(self, shards: Shards) -> Row:
        """Write the files, and return the part's counts."""


def finished_part(build: Build, part: Part) -> dict[str, Any]:
    """Return {"key", "files", "counts"} of a part; write the part unless an earlier run did."""
    key = part.key()
    note = build.folder / "assemble" / f"{part.name}.json"
    known = _read_note(note)
    if known is not None and known["key"] == key and _is_whole(build.root, known["files"]):
        return known
    note.unlink(missing_ok=True)
    shards = Shards(build.root)
    with shards:
        counts = part.write(shards)
    made = {"key": key, "files": shards.files, "counts": counts}
    write_json(note, made)
    return made


def _read_note(path: Path) -> dict[str, Any] | None:
    """Return the note of a finished part, or None if it is missing or has another shape."""
    try:
        note = read_json(path)
    except (OSError, ValueError):
        return None
    shapes: dict[str, dict[str, Any]] = {"images": IMAGES, "messages": MESSAGES, "audit": AUDIT}
    shape = shapes.get(path.stem, LANGUAGE)
    fits = has_shape(note, {"key": str, "files": FILES, "counts": shape})
    return note if fits and note["counts"].keys() == shape.keys() else None


def _is_whole(root: Path, files: dict[str, Row]) -> bool:
    """Return whether all files of a part are on disk and unchanged."""
    for name, about in files.items():
        path = root / name
        if not stays_inside(name) or not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
        if sha256_file(path) != about["sha256"]:
            return False
    return True
