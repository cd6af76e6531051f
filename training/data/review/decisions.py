"""What people are asked, and what they decided: `review/overrides.parquet`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.files import write_parquet
from ...common.telling import one_line
from ...rows.parquet import check_columns, is_text, read_rows

# What people may decide, by kind of sheet.
DECISIONS = {"translation": ("accept", "reject"), "toxicity": ("clean", "flagged")}
COLUMNS = ("sheet", "row", "id", "lang", "source", "text", "reason", "decision", "reviewer", "note")
_KEPT = ("kind", "id", "lang", "decision", "reviewer", "note", "text_sha256", "sheet", "read_at")
OVERRIDES = pa.schema([(name, pa.string()) for name in _KEPT])


@dataclass(frozen=True)
class ReviewRow:
    """One thing to decide about.

    id, lang: the key; lang "" stands for an image as a whole.
    source, text: what it was made from, and what is asked about; either may be "".
    image: the picture's name, None for none.
    reason: why it is in the sheet, in words.
    """

    id: str
    lang: str
    text: str = ""
    source: str = ""
    source_lang: str = ""
    image: str | None = None
    reason: str = ""


def read_overrides(folder: Path, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(id, lang) -> {"decision", "reviewer", "note", "text_sha256", "sheet", "read_at"} of one kind."""
    return {
        (row["id"], row["lang"]): {k: v for k, v in row.items() if k not in ("kind", "id", "lang")}
        for row in all_overrides(folder)
        if row["kind"] == kind
    }


def all_overrides(folder: Path) -> list[dict[str, Any]]:
    """All decisions in force, of every kind. Raises ValueError for a file of another form."""
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
    """Add decisions to those in force, where the newer one holds.

    Returns:
        How many differ from an earlier decision about the same row; all decisions.
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
