"""Read captions and their reference translations from files."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...common.reading import open_file
from ...common.telling import one_line
from ...rows.json_rows import Unreadable, read_json_rows
from ...rows.parquet import Row, read_rows


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) from a .csv, .jsonl, .json or .parquet file, or a folder of parquet files.

    All values of a CSV file are text, so ids keep leading zeros.

    Raises:
        ValueError: the file has another format, or a line is not a row.
        OSError: the file is missing.
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
    """Return {language: {id: reference}} from a file with one column per language, or id, lang and text.

    Raises:
        ValueError: a row has no id, or an id has two references; the message names the row.
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
                raise ValueError(
                    f"{where}: {lang}: expected one reference, found a second for id {row['id']!r}"
                )
            found[lang][row["id"]] = text
    return found
