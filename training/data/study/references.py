"""Captions and good translations of them, read from files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...common.reading import parse_json, read_json
from ...common.telling import one_line
from ...rows.parquet import Row, read_rows


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, row) of a .csv, .jsonl, .json or .parquet file, or of a folder of parquet files.

    Every value of a CSV file is text, so ids keep their leading zeros. Raises ValueError for other
    files and for lines that are no rows, OSError for a missing file.
    """
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise ValueError(f"{path}: expected parquet files in this folder, found none")
        for part in files:
            yield from read_table(part)
        return
    if path.suffix == ".parquet":
        for number, row in enumerate(read_rows(path), 1):
            yield f"{path}: row {number}", row
        return
    if path.suffix not in (".csv", ".jsonl", ".json"):
        raise ValueError(f"{path}: expected a .csv, .jsonl, .json or .parquet file")
    if path.exists() and not path.is_file():
        # Opening a pipe would wait for somebody who writes.
        raise ValueError(f"{path}: expected an ordinary file, found another kind")
    number = 0
    try:
        for row in _rows_of(path):
            number += 1
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}: row {number}: expected a mapping of fields, found "
                    f"{one_line(repr(row), 60)}"
                )
            yield f"{path}: row {number}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: after row {number}: {one_line(str(error), 200)}") from None


def _rows_of(path: Path) -> Iterator[Any]:
    if path.suffix == ".json":
        found = read_json(path)
        if not isinstance(found, list):
            raise ValueError(f"{path}: expected a list of rows, found {one_line(repr(found), 60)}")
        yield from found
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield parse_json(line, f"{path}: line {number}")


def read_references(path: Path, languages: Sequence[str]) -> dict[str, dict[str, str]]:
    """language -> id -> reference, from a file with a column per language, or id, lang and text.

    Raises ValueError, naming the row, for one without an id, and for a second reference.
    """
    found: dict[str, dict[str, str]] = {lang: {} for lang in languages}
    for where, row in read_table(path):
        if not isinstance(row.get("id"), str):
            raise ValueError(
                f"{where}: id: expected text, found {one_line(repr(row.get('id')), 60)}"
            )
        pairs = {row["lang"]: row.get("text")} if "lang" in row else row
        for lang in languages:
            text = pairs.get(lang)
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}: {lang}: expected text, found {one_line(repr(text), 60)}"
                )
            if row["id"] in found[lang]:
                raise ValueError(f"{where}: id {row['id']!r} has a second {lang} reference")
            found[lang][row["id"]] = text
    return found
