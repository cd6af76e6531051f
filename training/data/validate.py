"""`maya data validate`: every bad row of a source, with its field and the reason."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm

from .readers import IMAGE_SUFFIXES
from .records import Problem
from .sources import SourcePlan, Tally, read_source, refuse_empty, sorted_rows


def validate_sources(
    sources: Sequence[str], images: str | None = None, language: str | None = None
) -> int:
    """Print every bad row and the counts of each source; returns how many rows are bad.

    Args:
        sources: paths, Hub datasets, or plans of which the `source` section is read.
        images: folder or zip of the pictures, where the source is no plan.
        language: BCP-47 code of rows that do not say theirs, where the source is no plan.

    Raises OSError for what is not there, ValueError for files that are broken as a whole and for
    sources without a row.
    """
    bad = 0
    for source in sources:
        if Path(source).suffix in (".yaml", ".yml"):
            from .plan import load_plan

            plan = load_plan(Path(source)).source
        else:
            plan = infer_source(source, images, language)
        tally = validate(plan, lambda problem: tqdm.write(str(problem)))
        refuse_empty(plan, tally)
        bad += sum(tally.refused.values())
        print("\n".join([f"{source}:", *tally.lines()]), flush=True)
    return bad


def infer_source(path: str, images: str | None = None, language: str | None = None) -> SourcePlan:
    """The plan of a source of which only the path is known.

    Raises ValueError when it is nothing that can be read.
    """
    place = Path(path)
    kind: Literal["mini", "llava", "hub", "folder"]
    if place.suffix in (".json", ".jsonl"):
        kind = "llava"
    elif not place.exists():
        kind = "hub"
    elif not place.is_dir():
        raise ValueError(f"{path}: expected a .json or .jsonl file, a folder or a Hub dataset")
    elif (place / "texts").is_dir():
        kind = "mini"
    elif any(p.suffix.lower() in IMAGE_SUFFIXES for p in place.rglob("*") if p.is_file()):
        kind = "folder"
    elif not any(p.is_file() for p in place.rglob("*")):
        raise ValueError(
            f"{path}: expected pictures with captions or a dataset's files, found no file; add some, "
            "or correct the path"
        )
    else:
        kind = "hub"
    return SourcePlan(kind, path, images=images, language=language)


def validate(plan: SourcePlan, report: Callable[[Problem], None]) -> Tally:
    """Read a whole source and write nothing; every bad row is reported, repeated ones too.

    Pictures are decoded: one that is cut off is a bad row's.
    """
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="maya-validate-") as scratch:
        duplicates = "number" if plan.duplicates == "number" else "list"
        reads = tqdm(read_source(plan, decode=True), desc="validating", unit=" rows")
        for _ in sorted_rows(reads, Path(scratch), duplicates, tally, report):
            pass
    return tally
