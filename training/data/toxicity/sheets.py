"""Select rows of the toxicity step for review, and write their sheets.

Sheets are those of `review/sheets.py`, with blurred pictures. An image or a source text concerns all languages
of its id, and is one row with the language ""; each translation is a separate row.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator

from ...common.files import sha256_text
from ...rows.parquet import Row, check_columns, read_rows
from ..engine.unit_files import Key
from ..review.decisions import ReviewRow
from ..review.sheets import Sheet, write_sheet
from ..sources.pictures import Pictures
from .decisions import DECISION_SCHEMA, rows_by_id
from .step import ToxicityStep
from .verdicts import text_of

SHEET_ROWS = 1000  # pages with more pictures open slowly


def to_review(
    step: ToxicityStep, *, rare: int = 50, clean: int = 200, seed: int = 0
) -> Iterator[ReviewRow]:
    """Yield rows for review, sorted by id.

    They are: all rows in review; all flagged rows of categories with fewer than `rare` flagged rows; and
    `clean` clean rows per language, drawn with `seed`. Rows that people have decided are excluded.
    """
    path = step.root / "decisions.parquet"
    check_columns(path, {field.name: field.type for field in DECISION_SCHEMA})
    sizes = Counter(row["category"] for row in read_rows(path) if row["decision"] == "flagged")
    chosen: dict[Key, Row] = {}
    drawn: dict[str, list[tuple[int, str, Row]]] = {lang: [] for lang in step.languages}
    for row in read_rows(path):
        id_, lang = row["id"], row["lang"]
        if row["override"]:
            continue
        if row["decision"] == "clean":
            number = int(sha256_text(f"{seed}/{id_}/{lang}")[:15], 16)
            heapq.heappush(drawn[lang], (-number, id_, row))
            if len(drawn[lang]) > clean:
                heapq.heappop(drawn[lang])
        elif row["decision"] == "review" or sizes[row["category"]] < rare:
            chosen[id_, lang if row["stage"] == "translation" else ""] = row
    for lang, heap in drawn.items():
        chosen |= {(id_, lang): row for _, id_, row in heap}
    for group in rows_by_id(step):
        texts = {row["lang"]: text_of(row) or "" for row in group}
        source = texts.get(step.source_language, "")
        for lang in ("", *texts):
            found = chosen.get((group[0]["id"], lang))
            if found is not None:
                yield ReviewRow(
                    found["id"],
                    lang,
                    text=texts[lang] if lang else source,
                    source=source if lang not in ("", step.source_language) else "",
                    source_lang=step.source_language,
                    image=group[0]["image"],
                    reason=f"{found['decision']}: {found['reason']}",
                )


def write_sheets(step: ToxicityStep, *, clean: int = 200) -> list[Sheet]:
    """Write the rows of `to_review` to sheets of at most `SHEET_ROWS` rows; no rows give no sheet."""
    pictures = Pictures(step.images, follow_links=True) if step.images is not None else None
    rows = to_review(step, clean=clean)
    sheets: list[Sheet] = []
    while part := list(itertools.islice(rows, SHEET_ROWS)):
        sheets.append(write_sheet(step.folder, "toxicity", part, pictures=pictures, blur=True))
    return sheets
