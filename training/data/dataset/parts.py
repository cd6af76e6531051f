"""The units of a build from which its dataset is made, and the parts that are kept between runs."""

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

# Raised by one when the same build gives other files. The config `messages` has a number of its own:
# a dataset that was laid out without it gets it, and keeps its other files.
VERSION = 1


class Build:
    """A build whose other steps are done.

    Attributes:
        root: the dataset's folder.
        source: the manifest of the source step.
        units, source_sha: names of the source units, and the SHA-256 of each.
        languages: of the dataset: those of source rows, then those of translations.
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
        """Yield the rows of all source units, by id."""
        for path in self.unit_paths("source"):
            yield from read_rows(path, columns)

    def unit_shas(self, step: str, lang: str, before: dict[str, str]) -> dict[str, str]:
        """Return the SHA-256 of a step's units. Raises ValueError if one is not made from the units before it."""
        found = {}
        for unit, path in zip(self.units, self.unit_paths(step, lang), strict=True):
            manifest = UnitManifest.read(manifest_path(path))
            if manifest is None or not path.is_file():
                raise ValueError(f"{path}: not done yet; run the step {step} first")
            if manifest.source_sha256 != before[unit]:
                raise ValueError(f"{path}: made from other rows; run the step {step} again")
            if sha256_file(path) != manifest.parquet_sha256:
                raise ValueError(f"{path}: was changed since; run the step {step} again")
            found[unit] = manifest.parquet_sha256
        return found

    @cached_property
    def decided_shas(self) -> list[str | None]:
        """Return the SHA-256 of the decisions of people and judges about all languages."""
        paths = (
            self.folder / "review" / "overrides.parquet",
            self.folder / "toxicity" / "decisions.parquet",
        )
        return [sha256_file(path) if path.is_file() else None for path in paths]


class Part(Protocol):
    """A part of a dataset. Its key is the hash of its inputs and settings."""

    name: str

    def key(self) -> str: ...

    def write(self, shards: Shards) -> Row:
        """Write the files, and return their counts."""


def finished_part(build: Build, part: Part) -> dict[str, Any]:
    """Return {"key", "files", "counts"} of a part, made now or by an earlier run."""
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
    """Return the note of a finished part, or None if there is none or it has another form."""
    try:
        note = read_json(path)
    except (OSError, ValueError):
        return None
    shapes: dict[str, dict[str, Any]] = {"images": IMAGES, "messages": MESSAGES, "audit": AUDIT}
    shape = shapes.get(path.stem, LANGUAGE)
    fits = has_shape(note, {"key": str, "files": FILES, "counts": shape})
    return note if fits and note["counts"].keys() == shape.keys() else None


def _is_whole(root: Path, files: dict[str, Row]) -> bool:
    """Return whether all files of a part are on disk unchanged."""
    for name, about in files.items():
        path = root / name
        if not stays_inside(name) or not path.is_file() or path.stat().st_size != about["bytes"]:
            return False
        if sha256_file(path) != about["sha256"]:
            return False
    return True
