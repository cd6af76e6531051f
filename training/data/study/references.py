"""What good translations of a sample are: from a file, or from a machine, checked by people.

Without a file, another translator makes them, translates them back, and a sheet is written for each
language: people accept or correct every row, and the same command reads the sheet back.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.files import write_bytes, write_parquet
from ...common.reading import parse_json, read_json
from ...common.telling import inert, one_line, original
from ...rows.parquet import Row, read_rows
from ..engine.units import Worker, reopen_unit, run_unit
from ..sources.records import SOURCE_SCHEMA
from ..translation.worker import TranslateWorker, TranslatorPlan
from ..verification.scoring import sentence_chrf

SHEET = (
    "id",
    "source",
    "reference",
    "back_translation",
    "chrf",
    "accept",
    "corrected",
    "reviewer",
)


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


def given_references(path: Path, languages: Sequence[str]) -> dict[str, dict[str, str]]:
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


def run_again(worker: Worker, source: Path, target: Path) -> None:
    """Run a worker over one unit, and once more over the rows that failed, now or in an earlier run."""
    run_unit(worker, source, target)
    if reopen_unit(target, {"failed"}):
        run_unit(worker, source, target)


def made_references(
    plan: TranslatorPlan,
    sample: Path,
    folder: Path,
    source_language: str,
    lang: str,
    trust_remote_code: bool = False,
) -> list[Row]:
    """The rows of a sheet: a machine's translation of every caption, and it translated back.

    What the translator fails or is rejected on has an empty reference, for people to write.

    Args:
        sample: source rows.
        folder: where the units of the two directions are kept.
    """
    there, back = folder / f"{lang}.parquet", folder / f"{lang}-back.parquet"
    first = TranslateWorker(plan, lang, source_language, trust_remote_code=trust_remote_code)
    run_again(first, sample, there)
    made = list(read_rows(there))
    empty = dict.fromkeys(SOURCE_SCHEMA.names)
    rows = [
        {**empty, "id": row["id"], "lang": lang, "task": "caption", "text": row["text"]}
        for row in made
        if row["status"] == "ok"
    ]
    source = folder / f"{lang}-source.parquet"
    write_parquet(source, pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA))
    # The way back, by the translator of that language.
    own = plan.for_language(lang)
    second = TranslateWorker(own, source_language, lang, trust_remote_code=trust_remote_code)
    run_again(second, source, back)
    returned = {row["id"]: row["text"] or "" for row in read_rows(back)}
    sheet = []
    for row in made:
        again = returned.get(row["id"], "")
        sheet.append(
            {
                "id": row["id"],
                "source": row["source_text"],
                "reference": row["text"] or "",
                "back_translation": again,
                "chrf": f"{sentence_chrf(again, row['source_text']):.1f}" if again else "",
                "accept": "",
                "corrected": "",
                "reviewer": "",
            }
        )
    # The least certain ones first: who has little time should read those.
    return sorted(sheet, key=lambda row: float(row["chrf"] or 0))


def write_sheet(path: Path, rows: Sequence[Row]) -> None:
    """A sheet for people: `accept` takes yes or no, `corrected` a better translation."""
    lines = [SHEET, *(tuple(inert(row[name]) for name in SHEET) for row in rows)]
    text = "".join(_csv_line(line) for line in lines)
    write_bytes(path, b"\xef\xbb\xbf" + text.encode())  # Excel reads UTF-8 by this mark only


def _csv_line(values: Sequence[str]) -> str:
    return ",".join('"' + str(v).replace('"', '""') + '"' for v in values) + "\r\n"


def read_sheet(path: Path, sources: dict[str, str], unreviewed: bool) -> dict[str, str]:
    """id -> reference, from a filled sheet; rows with `accept` no and no correction are left out.

    Args:
        sources: id -> caption of the sample that the sheet must be of.
        unreviewed: take the machine's references where nothing is filled in.

    Raises ValueError for another sample's sheet, an `accept` that is neither yes nor no, and for
    rows that nobody has filled in.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    open_rows = 0
    for where, row in read_table(path):
        missing = [name for name in SHEET if row.get(name) is None]
        if missing:
            raise ValueError(f"{where}: no column or value {', '.join(missing)}")
        number, source = original(row["id"]), original(row["source"])
        if sources.get(number) not in (source, row["source"]) or number in seen:
            raise ValueError(
                f"{where}: id {one_line(repr(number), 60)} is not a caption of this sample, or stands twice; move the "
                "sheet away and run the same command to have a new one"
            )
        seen.add(number)
        accept, corrected = row["accept"].strip().lower(), original(row["corrected"].strip())
        if accept not in ("", "yes", "no"):
            raise ValueError(
                f"{where}: accept: expected yes or no, found {one_line(repr(row['accept']), 60)}"
            )
        if corrected:
            found[number] = corrected
        elif accept == "yes" or (accept == "" and unreviewed):
            if row["reference"]:
                found[number] = original(row["reference"])
        elif accept == "":
            open_rows += 1
    if seen != sources.keys():
        raise ValueError(f"{path}: {len(sources.keys() - seen)} captions of the sample are missing")
    if open_rows:
        raise ValueError(
            f"{path}: {open_rows} of {len(seen)} rows have neither accept (yes, no) nor corrected; "
            "fill them in and run the same command again, or set accept_unreviewed: true"
        )
    return found
