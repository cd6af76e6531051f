"""Read filled review sheets, each as a whole or not at all."""

import csv
import io
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.files import sha256_text
from ...common.reading import read_bytes, read_json
from ...common.shapes import check_shape
from ...common.telling import inert, one_line, original
from .decisions import COLUMNS, DECISIONS, keep_overrides

# Shape of a sheet's JSON file.
_ABOUT = {
    "kind": str,
    "rows": [{"id": str, "lang": str, "text_sha256": str, "decidable": [str]}],
}
_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class ReadBack:
    """The result of reading a filled sheet, as numbers of rows."""

    sheet: str
    kind: str
    rows: int
    undecided: int
    decisions: dict[str, int]
    changed: int
    """Decisions that differ from an earlier one about the same row, and replace it."""
    in_force: int
    """Stored decisions of this kind, from all sheets."""


def read_sheet(folder: Path, path: Path) -> ReadBack:
    """Add the decisions of a filled sheet to `review/overrides.parquet`, all or none.

    The separator may be comma, semicolon or tab; the file may begin with a byte order mark.

    Raises:
        ValueError: names file and rows: not UTF-8, wrong columns, an unknown sheet or row, a changed id or
            text, an unknown decision, or a row decided twice.
    """
    rows = _read_csv(path)
    name, kind, asked = _asked(folder, path, rows)
    errors: list[str] = []
    decided: dict[int, dict[str, Any]] = {}
    undecided = 0
    about = {"sheet": name, "read_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    for line, row in rows:
        try:
            number, decision = _decision(row, asked)
            if decision is None:
                undecided += 1
                continue
            if number in decided:
                raise ValueError(
                    f"row {number} ({decision['id']!r}): expected one decision, found two"
                )
            decided[number] = {"kind": kind, **decision, **about}
        except ValueError as error:
            errors.append(f"line {line}: {error}")
    if errors:
        more = f"; and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        told = one_line("; ".join(one_line(error, 200) for error in errors[:_SHOWN_ERRORS]), 1000)
        raise ValueError(f"{path}: {told}{more}; nothing of the sheet was read")
    changed, kept = keep_overrides(folder, decided.values())
    counts = Counter(override["decision"] for override in decided.values())
    total = sum(override["kind"] == kind for override in kept)
    return ReadBack(name, kind, len(rows), undecided, dict(sorted(counts.items())), changed, total)


def _asked(
    folder: Path, path: Path, rows: Sequence[tuple[int, dict[str, str]]]
) -> tuple[str, str, list[dict[str, Any]]]:
    """Return a sheet's name, kind and questions; raise ValueError like `read_sheet`."""
    names = sorted({row["sheet"].strip() for _, row in rows})
    if len(names) != 1:
        raise ValueError(
            f"{path}: sheet: expected the name of one sheet in all rows, found {_listed(names)}"
        )
    name = names[0]
    about = folder / "review" / f"{name}.json"
    if not re.fullmatch(r"[\w.-]+", name) or not about.is_file():
        known = sorted(p.stem for p in (folder / "review").glob("*-*.json"))
        raise ValueError(
            f"{path}: sheet: expected a sheet of this build ({_listed(known)}), found {name!r}"
        )
    sheet = read_json(about)
    check_shape(sheet, _ABOUT, str(about))
    if sheet["kind"] not in DECISIONS:
        raise ValueError(
            f"{about}: kind: expected {' or '.join(DECISIONS)}, found {one_line(sheet['kind'], 60)!r}"
        )
    return name, sheet["kind"], sheet["rows"]


def _decision(
    row: dict[str, str], asked: Sequence[dict[str, Any]]
) -> tuple[int, dict[str, Any] | None]:
    """Return a row's number and decision, None if undecided; raise ValueError for a bad row."""
    number = _number(row["row"])
    if number is None or not 1 <= number <= len(asked):
        raise ValueError(f"row: expected 1 to {len(asked)}, found {row['row']!r}")
    item = asked[number - 1]
    if error := _altered(row, item):
        raise ValueError(error)
    decision = row["decision"].strip().casefold()
    if not decision:
        return number, None
    if decision not in item["decidable"]:
        raise ValueError(
            f"decision: expected {' or '.join(item['decidable'])}, found {row['decision']!r}"
        )
    return number, {
        "id": item["id"],
        "lang": item["lang"],
        "decision": decision,
        "reviewer": original(row["reviewer"].strip()),
        "note": original(row["note"].strip()),
        "text_sha256": item["text_sha256"],
    }


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (first line, row) of each row."""
    data = read_bytes(path)
    # Excel writes UTF-16 as "Unicode text".
    encoding = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "UTF-8"
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: expected {encoding}, found another byte at {error.start}: save the sheet as 'CSV UTF-8'"
        ) from None
    first, _, rest = text.partition("\n")
    offset = 0
    if first.lower().startswith("sep="):
        text, offset = rest, 1
        first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        header = [name.strip() for name in next(reader, [])]
        while header and not header[-1]:
            header.pop()  # some spreadsheets append empty columns
        if sorted(header) != sorted(COLUMNS):
            missing = [c for c in COLUMNS if c not in header]
            extra = [c for c in header if c not in COLUMNS]
            twice = [c for c, n in Counter(header).items() if n > 1]
            raise ValueError(
                f"{path}: expected the columns {', '.join(COLUMNS)}, found "
                f"missing: {_listed(missing)}; unknown: {_listed(extra)}; twice: {_listed(twice)}"
            )
        rows: list[tuple[int, dict[str, str]]] = []
        line = reader.line_num
        for values in reader:
            at, line = line + 1 + offset, reader.line_num
            if not any(value.strip() for value in values):
                continue
            if len(values) < len(header) or any(v.strip() for v in values[len(header) :]):
                raise ValueError(
                    f"{path}: line {at}: expected {len(header)} values, found {len(values)}; "
                    "put a text with a separator or line break in quotation marks"
                )
            rows.append((at, dict(zip(header, values, strict=False))))
    except csv.Error as error:
        raise ValueError(
            f"{path}: line {reader.line_num + offset}: expected CSV: {error}"
        ) from None
    if not rows:
        raise ValueError(f"{path}: expected rows, found none")
    return rows


def _altered(row: dict[str, str], item: dict[str, Any]) -> str | None:
    """Return how a row differs from its question, or None."""
    found = row["id"].strip()
    accepted = {item["id"], inert(item["id"])}
    # Spreadsheets read 000042 as a number.
    if found not in accepted and not (item["id"].isdecimal() and _number(found) == int(item["id"])):
        return f"id: expected {item['id']!r} in row {row['row']}, found {found!r}: check that sorting moved whole rows"
    if row["lang"].strip() not in (item["lang"], inert(item["lang"])):
        return f"lang: expected {item['lang']!r} for {item['id']!r}, found {row['lang']!r}"
    # A spreadsheet may have changed line ends, and may have kept the protective apostrophe.
    texts = {row["text"], original(row["text"]), row["text"].removeprefix("'")}
    texts |= {text.replace("\r\n", "\n") for text in texts}
    texts |= {text.replace("\n", "\r\n") for text in texts if "\r" not in text}
    if item["text_sha256"] not in {sha256_text(text) for text in texts}:
        return f"text: expected the unchanged text of {item['id']!r}: restore it, and put a better one into the note"
    return None


def _number(text: str) -> int | None:
    """Parse a whole number as spreadsheets may write it: 42, 42.0, 4.2E+01; None for other text."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _listed(names: Sequence[str]) -> str:
    return one_line(", ".join(names), 200) or "none"
