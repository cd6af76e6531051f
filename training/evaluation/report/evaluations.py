"""Reads a folder that `maya evaluate` wrote: its numbers, its answers, and some of its pictures."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...common.files import write_parquet
from ...common.telling import one_line
from ..protocol import Loaded, Scored, sample
from ..results import Results, read_results

# Columns of the answers file -> type.
COLUMNS = {
    "run": pa.types.is_string,
    "id": pa.types.is_string,
    "subset": pa.types.is_string,
    "language": pa.types.is_string,
    "item": pa.types.is_string,
    "pictures": pa.types.is_list,
    "prompt": pa.types.is_string,
    "expected": pa.types.is_string,
    "answer": pa.types.is_string,
    "unparsable": pa.types.is_boolean,
    "ended": pa.types.is_boolean,
}
# Columns that may be absent or empty in all rows.
OPTIONAL = {
    "answer_language": pa.types.is_string,
    "language_found": pa.types.is_string,
    "toxicity": pa.types.is_floating,
}
# Columns that may be empty in a row: judged answers of another model do not say whether they were cut.
EMPTY = ("ended", *OPTIONAL)
# Number of pictures stored for the page, drawn from the seed, and of further pictures of failures.
SAMPLES, FAILED = 12, 12
# The longest side of a stored picture, in pixels. A picture up to LOSSLESS is stored as PNG, unscaled.
SIDE, LOSSLESS = 320, 128


@dataclass(frozen=True)
class Evaluation:
    """The results file of an evaluation, with its answers and pictures.

    Args:
        folder: the folder that `maya evaluate` wrote.
        results: the content of its results.json.
    """

    folder: Path
    results: Results

    @cached_property
    def _read(self) -> dict[str, list[dict[str, Any]]]:
        return {}

    def answers(self, task: str) -> list[dict[str, Any]]:
        """Return the rows of a task's answers, of all runs.

        Raises:
            FileNotFoundError, ValueError: in one line: the file does not exist or is not parquet, a column is
                missing, or a question is answered twice in a run.
        """
        if task not in self._read:
            metrics = self.results["tasks"][task]["metrics"]
            self._read[task] = _read_answers(self.answers_file(task), metrics)
        return self._read[task]

    def has_answers(self, task: str) -> bool:
        """Return whether the folder has the answers of a task."""
        # An unchecked task name could lead outside the folder.
        return Path(task).name == task and self.answers_file(task).is_file()

    def answers_file(self, task: str) -> Path:
        """Return the path of a task's answers."""
        return self.folder / "answers" / f"{task}.parquet"

    def pictures(self, task: str) -> dict[str, bytes]:
        """Return key -> PNG or JPEG of the stored pictures; empty if there is no such file."""
        path = pictures_file(self.folder, task)
        if not path.is_file():
            return {}
        table = _table(path)
        if {"key", "picture"} - set(table.column_names):
            raise ValueError(
                f"{path}: expected the columns key, picture, found "
                f"{one_line(', '.join(table.column_names), 200)}: run `maya evaluate` again"
            )
        return {str(row["key"]): row["picture"] for row in table.to_pylist() if row["picture"]}


def read_evaluation(folder: Path) -> Evaluation:
    """Read the evaluation in a folder, or next to a results.json. Raises the errors of `results.read_results`."""
    folder = folder.parent if folder.name == "results.json" else folder
    return Evaluation(folder, read_results(folder / "results.json"))


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: expected the answers of `maya evaluate`, found no file: run it again"
        ) from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}: expected a parquet file, found one that cannot be read: {one_line(str(error), 200)}"
        ) from None


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _read_answers(path: Path, metrics: Iterable[str]) -> list[dict[str, Any]]:
    table = _table(path)
    for name in COLUMNS:
        if table.column_names.count(name) != 1:
            raise ValueError(
                f"{path}: expected one column {name!r}, found "
                f"{one_line(', '.join(table.column_names), 200)}: run `maya evaluate` again"
            )
    numbers = dict.fromkeys(set(metrics) - {*COLUMNS, *OPTIONAL}, _is_number)
    for name, is_right in {**COLUMNS, **OPTIONAL, **numbers}.items():
        for place in table.schema.get_all_field_indices(name):
            kind = table.schema.field(place).type
            if not (is_right(kind) or pa.types.is_null(kind)):
                told = is_right.__name__.rpartition("is_")[2]
                raise ValueError(
                    f"{path}: column {one_line(name, 60)!r}: expected {told}, found "
                    f"{one_line(str(kind), 60)}: run `maya evaluate` again"
                )
    for name in COLUMNS:
        if table[name].null_count and name not in EMPTY:
            raise ValueError(
                f"{path}: column {name!r}: expected a value in every row, found "
                f"{table[name].null_count:,} rows without: run `maya evaluate` again"
            )
    rows = table.to_pylist()
    counts = Counter((row["run"], question_of(row)) for row in rows)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        run, question = twice[0]
        raise ValueError(
            f"{path}: question {one_line(str(question), 100)!r} of the run {one_line(str(run), 40)!r}: "
            f"expected one answer, found {counts[twice[0]]}: run `maya evaluate` again"
        )
    return rows


# ------------------------------------------------------------------------------ pictures


def pictures_file(folder: Path, task: str) -> Path:
    """Return the path of a task's pictures for the page."""
    return folder / "answers" / f"{task}.pictures.parquet"


def keep_pictures(loaded: Loaded, scored: Sequence[Scored], path: Path, seed: int) -> None:
    """Write small copies of some pictures: SAMPLES drawn from the seed, and up to FAILED of failures."""
    keys = {key for one in scored for key in one.request.pictures}
    failed = {
        key
        for one in scored
        if one.score.unparsable or not one.answer.ended or None in one.score.values.values()
        for key in one.request.pictures
    }
    kept = dict.fromkeys((*sample(keys, SAMPLES, seed), *sample(failed, FAILED, seed)))
    content = [_small(loaded.pictures.load(key)) for key in kept]
    kinds = pa.schema([("key", pa.string()), ("picture", pa.binary())])
    write_parquet(path, pa.table({"key": list(kept), "picture": content}, schema=kinds))


def _small(picture: Any) -> bytes:
    """Return a small picture as PNG, any other as JPEG of at most SIDE pixels."""
    buffer = io.BytesIO()
    if max(picture.size) <= LOSSLESS:
        picture.save(buffer, "PNG")
    else:
        small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def address(content: bytes) -> str:
    """Return a picture as a data URL."""
    import base64

    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def question_of(row: Mapping[str, Any]) -> str:
    """Return the key of a question, with its language, since a task may repeat an id in several languages."""
    return f"{row['language']}/{row['id']}"


def of_run(rows: Sequence[Mapping[str, Any]], run: str) -> dict[str, Mapping[str, Any]]:
    """Return question -> row, for one run."""
    return {question_of(row): row for row in rows if row["run"] == run}
