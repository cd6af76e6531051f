"""The columns of verified rows, and functions that read them and apply people's decisions."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa

from ...common.files import sha256_text
from ...rows.parquet import Row, parquet_file
from ..engine.unit_files import UnitManifest, manifest_path
from ..review.decisions import read_overrides
from ..translation.worker import TRANSLATED
from .back_translation import plain_text
from .survey import unit_sha256

VERIFIED = pa.schema(
    [
        ("id", pa.string()),
        ("lang", pa.string()),
        ("status", pa.string()),  # ok, rejected, failed
        ("flags", pa.list_(pa.string())),  # checks that fired, hard ones first
        ("details", pa.list_(pa.string())),  # evidence of each flag
        ("hard", pa.list_(pa.string())),  # flags that reject the row
        ("reasons", pa.string()),  # why the row was rejected or failed, one line
        ("lid", pa.string()),  # identified language; null for too little text
        ("lid_confidence", pa.float32()),
        ("lid_expected", pa.float32()),  # confidence in the expected language
        ("length_z", pa.float32()),  # null if the plan has no lengths for the language
        ("quality", pa.float32()),  # null without a score
        ("run_id", pa.string()),
    ]
)


def plain_translation(row: Row) -> str:
    """Return a row's translation as one text."""
    return (row["text"] or "") if row["turns"] is None else plain_text(row["turns"])


def verified_rows(folder: Path, lang: str) -> Iterator[Row]:
    """Yield translated rows: text as translated, `status` as verified, and `verified`, a row of `VERIFIED`.

    Raises:
        ValueError: a unit is not verified, or was translated again after verification.
    """
    units = sorted((folder / "translate" / lang).glob("*.parquet"))
    if not units:
        raise ValueError(
            f"{folder}: expected units translated into {lang}, found none: run the step translate first"
        )
    for unit in units:
        path = folder / "verify" / lang / unit.name
        if not path.is_file():
            raise ValueError(f"{path}: expected a verified unit, found none: run the step verify")
        manifest = UnitManifest.read(manifest_path(path))
        if manifest is not None and manifest.source_sha256 != unit_sha256(unit):
            raise ValueError(f"{path}: translated again after verification: run the step verify")
        rows, found = _rows_of(unit, TRANSLATED), _rows_of(path, VERIFIED)
        if [row["id"] for row in rows] != [row["id"] for row in found]:
            raise ValueError(
                f"{path}: expected the rows of {unit}, found others: run the step verify again"
            )
        for row, verified in zip(rows, found, strict=True):
            yield {**row, "status": verified["status"], "verified": verified}


def _rows_of(unit: Path, schema: pa.Schema) -> list[Row]:
    """Read the rows of a finished unit; raise ValueError if it has other columns."""
    with parquet_file(unit) as file:
        if file.schema_arrow.names == schema.names:
            return file.read().to_pylist()
    raise ValueError(f"{unit}: expected the columns {', '.join(schema.names)}, found others")


def final_rows(folder: Path, lang: str) -> Iterator[Row]:
    """Yield the final rows of a language: `final_row` of each verified row."""
    overrides = read_overrides(folder, "translation")
    for row in verified_rows(folder, lang):
        yield final_row(row, overrides)


def final_row(row: Row, overrides: Mapping[tuple[str, str], Row]) -> Row:
    """Apply people's decisions to a row of `verified_rows`.

    A decision about a text that has changed since is not applied.

    Args:
        row: row of `verified_rows`.
        overrides: result of `read_overrides` for the kind "translation".

    Returns:
        Columns of `TRANSLATED`, with `flags` and `reasons` of translation and verification, and
        `lid_confidence`, `quality` and `reviewed` ("accept", "reject" or None). A row that is not "ok"
        has neither text nor turns.
    """
    verified = row["verified"]
    override = overrides.get((row["id"], row["lang"]))
    made = {name: value for name, value in row.items() if name != "verified"}
    reviewed = None
    if override and override["text_sha256"] == sha256_text(plain_translation(row)):
        reviewed = override["decision"]
        made["status"] = "ok" if reviewed == "accept" else "rejected"
    if made["status"] == "ok":
        made["reasons"] = None
    else:
        made["text"] = made["turns"] = None
        made["reasons"] = verified["reasons"] or row["reasons"]
        if reviewed and override:
            made["reasons"] = f"review: {override['note'] or 'rejected'}"
    return made | {
        "flags": sorted({*row["flags"], *verified["flags"]}),
        "lid_confidence": verified["lid_confidence"],
        "quality": verified["quality"],
        "reviewed": reviewed,
    }
