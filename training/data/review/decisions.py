"""The decisions of people about rows, stored in `review/overrides.parquet`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.files import write_parquet
from ...common.telling import one_line
from ...rows.parquet import check_columns, is_text, read_rows

# Kind of sheet -> possible decisions.
DECISIONS = {"translation": ("accept", "reject"), "toxicity": ("clean", "flagged")}
COLUMNS = ("sheet", "row", "id", "lang", "source", "text", "reason", "decision", "reviewer", "note")
_KEPT = ("kind", "id", "lang", "decision", "reviewer", "note", "text_sha256", "sheet", "read_at")
OVERRIDES = pa.schema([(name, pa.string()) for name in _KEPT])


@dataclass(frozen=True)
class ReviewRow:
    """One row of a sheet, about which a person decides.

    id, lang: key of the row; lang "" means an image as a whole.
    source, text: source text, and the text to decide about; either may be "".
    image: name of the picture, or None.
    reason: why the row is in the sheet, in words.
    """

    id: str
    lang: str
    text: str = ""
    source: str = ""
    source_lang: str = ""
    image: str | None = None
    reason: str = ""


def read_overrides(folder: Path, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Read the decisions of one kind.

    Returns:
        (id, lang) -> {"decision", "reviewer", "note", "text_sha256", "sheet", "read_at"}.
    """
    return {
        (row["id"], row["lang"]): {k: v for k, v in row.items() if k not in ("kind", "id", "lang")}
        for row in all_overrides(folder)
        if row["kind"] == kind
    }


def all_overrides(folder: Path) -> list[dict[str, Any]]:
    """Read all stored decisions, of every kind.

    Raises:
        ValueError: the file has another shape.
    """
    path = folder / "review" / "overrides.parquet"
    if not path.is_file():
        return []
    check_columns(path, dict.fromkeys(OVERRIDES.names, is_text))
    rows = list(read_rows(path, OVERRIDES.names))
    for row in rows:
        if any(row[name] is None for name in ("kind", "id", "lang", "decision", "text_sha256")):
            raise ValueError(f"{path}: expected decisions, found {one_line(str(row), 200)}")
    return rows


def keep_overrides(
    folder: Path, decided: Iterable[dict[str, Any]]
) -> tuple[int, list[dict[str, Any]]]:
    """Add decisions to the stored ones; a newer decision replaces an older one about the same row.

    Returns:
        Number of decisions that differ from the older one; all decisions.
    """
    kept = {(o["kind"], o["id"], o["lang"]): o for o in all_overrides(folder)}
    changed = 0
    for override in decided:
        key = (override["kind"], override["id"], override["lang"])
        changed += key in kept and kept[key]["decision"] != override["decision"]
        kept[key] = override
    ordered = [kept[key] for key in sorted(kept)]
    write_parquet(
        folder / "review" / "overrides.parquet", pa.Table.from_pylist(ordered, schema=OVERRIDES)
    )
    return changed, ordered
