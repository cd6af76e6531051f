"""Captions and good translations of them, read from files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...common.reading import open_file
from ...common.telling import one_line
from ...rows.json_rows import Unreadable, read_json_rows
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
    elif path.suffix in (".jsonl", ".json"):
        for place, found in read_json_rows(path):
            if isinstance(found, Unreadable):
                raise ValueError(f"{path}: {found.reason}")
            yield f"{path}: row {place + 1}", found
    elif path.suffix == ".csv":
        open_file(path).close()
        number = 0
        with path.open(encoding="utf-8-sig", newline="") as file:
            try:
                for number, row in enumerate(csv.DictReader(file), 1):
                    yield f"{path}: row {number}", row
            except (UnicodeDecodeError, csv.Error) as error:
                told = one_line(str(error), 200)
                raise ValueError(f"{path}: after row {number}: {told}") from None
    else:
        raise ValueError(f"{path}: expected a .csv, .jsonl, .json or .parquet file")


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
