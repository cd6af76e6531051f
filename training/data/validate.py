"""`maya data validate`: print every bad row of a source, with its field and the reason.

It reports two findings: which rows `maya train` cannot learn from, and which rows `maya data build` cannot build
from. It uses the row readers of training and of building.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from ..common.images import SUFFIXES, ImageStore, check_padded_side, is_address, load_image
from ..common.telling import one_line
from ..rows.conversations import Picture, RowError, RowReader
from ..rows.json_rows import Unreadable, rows_suffix
from ..rows.open import DatasetPath, open_pictures
from ..rows.picture_cells import language_of_cell
from .sources.pictures import look_at
from .sources.plan import SourcePlan
from .sources.records import Problem, place_of
from .sources.rows import read_source
from .sources.sorting import Tally, refuse_empty, sorted_rows

_ROUND_TURNS = "turns do not alternate: only the chat template aya accepts them"


def validate_sources(
    sources: Sequence[str],
    images: str | None = None,
    language: str | None = None,
    data_files: str | None = None,
) -> int:
    """Print every bad row and the counts of each source.

    Args:
        sources: paths, Hub datasets, or plans; of a plan, the `source` section is read.
        images: folder, .zip or .tar of the pictures, if the source is not a plan.
        language: BCP-47 code of rows without a language, if the source is not a plan.
        data_files: the one file with rows in a folder or Hub dataset, if the source is not a plan.

    Returns:
        The number of bad rows: for building if the source is a plan, else for training.

    Raises:
        OSError: a source is missing.
        ValueError: a file is broken as a whole, or a source has no rows.
    """
    bad = 0
    for source in sources:
        lines: list[str] = []
        if Path(source).suffix in (".yaml", ".yml"):
            from .plan import load_plan

            if data_files is not None:
                raise ValueError(f"{source}: --data-files: write source.data_files into the plan")
            plan = load_plan(Path(source)).source
            tally = building = validate(plan, lambda problem: tqdm.write(str(problem)))
        elif _is_text_beside_pictures(plan := infer_source(source, images, language, data_files)):
            tally = building = validate(plan, lambda problem: tqdm.write(str(problem)))
            advice = (
                "list the pictures in a metadata.jsonl (file_name, caption), or build a dataset"
            )
            lines = [f"{source}, for training: text files next to pictures are not read: {advice}"]
        else:
            tally, building = validate_data(plan, images, tqdm.write)
            lines = [f"{source}, for training:", *tally.lines()]
        print("\n".join([*lines, f"{source}, for building:", *building.lines()]), flush=True)
        refuse_empty(plan, tally)
        bad += sum(tally.refused.values())
    return bad


def _is_text_beside_pictures(plan: SourcePlan) -> bool:
    listed = ("metadata.jsonl", "metadata.csv")
    return plan.kind == "folder" and not any((Path(plan.paths[0]) / n).exists() for n in listed)


def infer_source(
    path: str,
    images: str | None = None,
    language: str | None = None,
    data_files: str | None = None,
) -> SourcePlan:
    """Infer the plan of a source from its path.

    Raises:
        ValueError: the path is not readable as a source.
    """
    place = Path(path)
    kind: Literal["mini", "llava", "hub", "folder"]
    if data_files is not None:
        if (rows_suffix(place) or place.exists()) and not place.is_dir():
            raise ValueError(
                f"{path}: --data-files: expected a folder or Hub dataset, found a file"
            )
        kind = "hub"
    elif rows_suffix(place) == ".parquet" or not (place.exists() or rows_suffix(place)):
        kind = "hub"
    elif rows_suffix(place):
        kind = "llava"
    elif not place.is_dir():
        raise ValueError(
            f"{path}: expected a .json or .jsonl file (also .gz), a .parquet file, a folder or a Hub dataset"
        )
    elif (place / "texts").is_dir():
        kind = "mini"
    elif any(p.suffix.lower() in SUFFIXES for p in place.rglob("*") if p.is_file()):
        kind = "folder"
    elif not any(p.is_file() for p in place.rglob("*")):
        raise ValueError(
            f"{path}: expected pictures with captions or a dataset's files, found no file: add some, "
            "or correct the path"
        )
    else:
        kind = "hub"
        if images is None and any((place / "images").glob("*.parquet")):
            images = path
    return SourcePlan(kind, path, images=images, language=language, data_files=data_files)


def validate(plan: SourcePlan, report: Callable[[Problem], None]) -> Tally:
    """Read a source as a build does, without writing, and report every bad row, including repeated rows.

    Pictures are decoded; a truncated picture makes its row bad.
    """
    reads = tqdm(read_source(plan, decode=True), desc="validating", unit=" rows")
    return _tally(plan, reads, report)


def _tally(plan: SourcePlan, reads: Iterator[Any], report: Callable[[Problem], None]) -> Tally:
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="maya-validate-") as scratch:
        duplicates = "number" if plan.duplicates == "number" else "list"
        for _ in sorted_rows(reads, Path(scratch), duplicates, tally, report):
            pass
    return tally


def validate_data(
    plan: SourcePlan, images: str | None, report: Callable[[str], None]
) -> tuple[Tally, Tally]:
    """Read a source as training and as a build do, and return the findings of both.

    Args:
        images: same as `image_folder` of training.
        report: receives one line per bad row, which says whether training, building or both reject it.
    """
    training = _Training(plan, images)
    told: set[int] = set()

    def read() -> Iterator[Any]:
        rows = read_source(plan, decode=True, look=training.look)
        for read in tqdm(rows, desc="validating", unit=" rows"):
            problem, training.problem = training.problem, None
            if problem is not None and str(problem) == str(read):
                told.add(id(read))
                report(f"{problem} [training and building]")
            elif problem is not None:
                report(f"{problem} [training]")
            yield read

    def for_building(problem: Problem) -> None:
        if id(problem) in told:
            told.clear()
        else:
            report(f"{problem} [building]")

    building = _tally(plan, read(), for_building)
    return training.tally, building


class _Training:
    """The findings of training about rows.

    problem: problem of the last row, None if the row is good.
    """

    def __init__(self, plan: SourcePlan, images: str | None):
        self.tally = Tally()
        self.problem: Problem | None = None
        self._language = plan.language or "und"
        self._data = DatasetPath(plan.paths[0], image_folder=images, data_files=plan.data_files)
        if images is not None:
            _ = self._pictures  # report a missing place before reading any row
        self._looked = functools.lru_cache(maxsize=4096)(self._look_at)

    def look(self, where: str, record: Any, reader: RowReader) -> None:
        """Record whether training can use the row."""
        self.problem = None
        self.tally.read += 1
        try:
            if isinstance(record, Unreadable):
                raise RowError("row", record.reason)
            language = self._language_of(record)
            pictures = reader.pictures(record)
            messages = reader.messages(record, len(pictures))
            for picture in pictures:
                self._check(picture)
        except RowError as error:
            identity = record.get("id") if isinstance(record, dict) else None
            self.problem = Problem(place_of(where, identity), error.field, error.reason)
            self.tally.refuse(self.problem)
            return
        roles = [m["role"] for m in messages if m["role"] != "system"]
        if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
            self.tally.notes[_ROUND_TURNS] += 1
        self.tally.rows += 1
        self.tally.languages[language] += 1
        self.tally.tasks[one_line(str(record.get("task") or reader.task), 60)] += 1

    def _language_of(self, record: dict[str, Any]) -> str:
        column = "lang" if "lang" in record else "language"
        cell = record.get(column)
        return self._language if cell is None else language_of_cell(cell, column)

    @functools.cached_property
    def _pictures(self) -> ImageStore:
        """Open the store of pictures when the first row names one."""
        return ImageStore(open_pictures(self._data))

    def _check(self, picture: Picture) -> None:
        fault = self._looked(picture) if isinstance(picture, str) else self._look_at(picture)
        if fault is not None:
            raise RowError("image", fault)

    def _look_at(self, picture: Picture) -> str | None:
        """Return the fault of a picture, or None."""
        try:
            if isinstance(picture, str) and is_address(picture):
                size = load_image(picture, allow_files=False).size
            else:
                data = self._pictures.read(picture) if isinstance(picture, str) else picture
                fault, size = look_at(data)
                if fault is not None:
                    name = f" {picture!r}" if isinstance(picture, str) else ""
                    return f"Cannot read{name}: {fault}"
            check_padded_side(*size)
        except ConnectionError as error:
            if isinstance(picture, str) and is_address(picture):
                return str(error)
            raise
        except (ValueError, OSError) as error:
            return str(error)
        return None
