"""Write source units: rows in one format, sorted by id, in parquet files of `unit_rows` rows.

Rows are streamed and sorted on disk, so 4.4 million rows need the memory of ten thousand. Rejected rows are
listed in `refused.jsonl` with field and reason; none is dropped silently.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm

from ...common.files import atomic, sha256_file, write_json, write_parquet
from ...common.reading import read_json
from ...common.schema import digest
from ...common.shapes import has_shape
from .plan import SourcePlan, plan_for_hash
from .readers import files_in
from .records import SOURCE_SCHEMA, Problem, Record
from .rows import read_source
from .sorting import Tally, refuse_empty, sorted_rows

# Increase when the rows of a unit change; earlier source units are then rebuilt.
_VERSION = 1
_COUNTS = {...: int}
_MANIFEST = {
    "key": str,
    **dict.fromkeys(("read", "rows", "refused"), int),
    **dict.fromkeys(("refused_for", "notes", "languages", "tasks"), _COUNTS),
    "units": [{"unit": str, "rows": int, "sha256": str}],
}


def source_key(plan: SourcePlan, unit_rows: int) -> str:
    """Return the hash of the plan and of names, sizes and times of the local files that it names."""
    seen = hashlib.sha256()
    for place in dict.fromkeys([*plan.paths, *([plan.images] if plan.images else [])]):
        path = Path(place)
        for file in [path] if path.is_file() else files_in(path):
            stat = file.stat() if file.exists() else file.lstat()
            about = f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n"
            # File names need not be UTF-8.
            seen.update(about.encode("utf-8", "surrogateescape"))
    return digest([_VERSION, unit_rows, plan_for_hash(plan), seen.hexdigest()])


def check_sources(folder: Path, key: str | None = None) -> dict[str, Any] | str:
    """Return the manifest of finished source units, or a short reason why they are not finished.

    Every unit file is compared with its SHA-256.

    Args:
        folder: folder of the units.
        key: current result of `source_key`; None checks the files only.
    """
    try:
        manifest = read_json(folder / "manifest.json")
    except (OSError, ValueError):
        return "not read yet"
    if not has_shape(manifest, _MANIFEST):
        return "not read yet"
    if key is not None and manifest["key"] != key:
        return "the plan or the source has changed"
    for unit in manifest["units"]:
        if not unit["unit"].isdecimal():
            return "not read yet"
        path = folder / f"{unit['unit']}.parquet"
        if not path.is_file() or sha256_file(path) != unit["sha256"]:
            return f"{path.name} is missing or has changed"
    return manifest


def finished_sources(folder: Path) -> dict[str, Any]:
    """Return the manifest of source units; raise ValueError if they are not finished."""
    state = check_sources(folder)
    if isinstance(state, str):
        raise ValueError(f"{folder}: {state}: run the step source first")
    return state


def build_sources(
    plan: SourcePlan, folder: Path, unit_rows: int, progress: bool = True, decode: bool = False
) -> dict[str, Any]:
    """Write the source units of a plan to `folder`, and return their manifest.

    Finished units are kept. Rejected rows are listed in `refused.jsonl`.

    Args:
        plan: plan of the source.
        folder: folder of the units.
        unit_rows: rows per unit.
        progress: show a progress bar.
        decode: as in `read_source`; for pictures that will be published.

    Raises:
        ValueError: no row is good, rows repeat an (id, lang) under the policy `refuse`, or a file is broken.
        OSError: the source is missing, or the disk rejects a file.
    """
    # 1. Reuse finished units, clean up after a stopped run
    key = source_key(plan, unit_rows)
    state = check_sources(folder, key)
    if isinstance(state, dict):
        return state
    begun = time.time()
    if state != "not read yet":
        print(f"source: {state}; read again", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    for left in [*folder.glob(".sort-*"), *folder.glob(".*.tmp")]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    # 2. Read, sort and write the rows
    tally = Tally()
    units: list[dict[str, Any]] = []
    reads: Iterable[Record | Problem] = read_source(
        plan, folder.parent / "images" if plan.extract_images else None, decode
    )
    if progress:
        reads = tqdm(reads, desc="source: reading", unit=" rows")
    with (
        tempfile.TemporaryDirectory(prefix=".sort-", dir=folder) as scratch,
        atomic(folder / "refused.jsonl") as refused_path,
        refused_path.open("w", encoding="utf-8") as refused,
    ):

        def report(problem: Problem) -> None:
            refused.write(json.dumps(problem.__dict__, ensure_ascii=False) + "\n")

        rows = sorted_rows(reads, Path(scratch), plan.duplicates, tally, report)
        while batch := list(itertools.islice(rows, unit_rows)):
            path = folder / f"{len(units):05d}.parquet"
            sha256 = write_parquet(path, pa.Table.from_pylist(batch, schema=SOURCE_SCHEMA))
            units.append({"unit": path.stem, "rows": len(batch), "sha256": sha256})
    print("\n".join(tally.lines()), flush=True)
    if tally.duplicates and plan.duplicates == "refuse":
        raise ValueError(
            f"{folder / 'refused.jsonl'}: expected each (id, lang) once, found {tally.duplicates:,} rows "
            "that repeat one: set source.duplicates to `list` to drop them, or to `number` to rename them"
        )
    refuse_empty(plan, tally)
    if not tally.rows:
        raise ValueError(
            f"{', '.join(plan.paths)}: expected good rows, found none among {tally.read:,}: "
            f"see {folder / 'refused.jsonl'}"
        )
    # 3. Delete units of earlier runs, write the manifest
    for path in folder.glob("[0-9]*.parquet"):
        if path.stem not in {unit["unit"] for unit in units}:
            path.unlink()
    manifest = {
        "key": key,
        "read": tally.read,
        "rows": tally.rows,
        "refused": sum(tally.refused.values()),
        "refused_for": dict(tally.refused.most_common()),
        "notes": dict(tally.notes),
        "languages": dict(sorted(tally.languages.items())),
        "tasks": dict(sorted(tally.tasks.items())),
        "unit_rows": unit_rows,
        "units": units,
        "seconds": round(time.time() - begun, 3),
        "finished": round(time.time(), 3),
    }
    write_json(folder / "manifest.json", manifest)
    return manifest
