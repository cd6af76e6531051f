"""Sample rows, and write review sheets: a CSV, an HTML page, and a JSON file with the questions."""

import csv
import io
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...common.files import sha256_text, write_bytes, write_json
from ...common.telling import inert, one_line
from ..sources.pictures import Pictures
from .decisions import COLUMNS, DECISIONS, ReviewRow
from .pages import sheet_page, thumbnail


@dataclass(frozen=True)
class Sheet:
    """A written sheet: name, files, number of rows."""

    name: str
    csv: Path
    html: Path
    rows: int


def stratified(
    rows: Iterable[Any], count: int, stratum: Callable[[Any], Any], seed: int = 0
) -> list[Any]:
    """Sample `count` rows, spread as equally over the strata as their sizes allow.

    The same rows and seed give the same sample, in the order of `rows`. Memory holds at most `count`
    rows per stratum.
    """
    rng = random.Random(seed)
    seen: Counter[Any] = Counter()
    kept: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for number, row in enumerate(rows):
        key = stratum(row)
        seen[key] += 1
        if len(kept[key]) < count:
            kept[key].append((number, row))
        elif (place := rng.randrange(seen[key])) < count:
            kept[key][place] = (number, row)
    pools = [rng.sample(kept[key], len(kept[key])) for key in sorted(kept, key=str)]
    chosen: list[tuple[int, Any]] = []
    while len(chosen) < count and any(pools):
        for pool in pools:
            if pool and len(chosen) < count:
                chosen.append(pool.pop())
    return [row for _, row in sorted(chosen, key=lambda item: item[0])]


def write_sheet(
    folder: Path,
    kind: str,
    rows: Sequence[ReviewRow],
    *,
    title: str = "",
    pictures: Pictures | None = None,
    blur: bool = False,
) -> Sheet:
    """Write `review/<name>.csv`, `.html` and `.json` of a build; earlier sheets stay.

    If a picture cannot be shown, its row appears without it and the reason says why.

    Args:
        folder: folder of the build.
        kind: kind of sheet, a key of `DECISIONS`.
        rows: rows to decide about.
        title: title of the page; default: kind and name.
        pictures: the pictures that rows name; None shows none.
        blur: blur each picture until it is clicked.

    Raises:
        ValueError: there are no rows, or two rows have the same (id, lang).
    """
    if kind not in DECISIONS:
        raise ValueError(f"kind: expected one of {', '.join(DECISIONS)}, found {kind!r}")
    if not rows:
        raise ValueError(f"{folder}: expected rows to review, found none")
    ((key, times),) = Counter((row.id, row.lang) for row in rows).most_common(1)
    if times > 1:
        raise ValueError(
            f"row {key[0]!r} ({key[1]!r}): expected once in a sheet, found {times} times"
        )
    review = folder / "review"
    taken = [path.stem.rpartition("-")[2] for path in review.glob(f"{kind}-*.json")]
    name = f"{kind}-{max((int(n) for n in taken if n.isdigit()), default=0) + 1}"
    pictured = [_pictured(row, pictures) for row in rows]
    shown, thumbnails = [row for row, _ in pictured], [thumbnail for _, thumbnail in pictured]
    records = [_record(name, number, row) for number, row in enumerate(shown, 1)]
    title = title or f"{kind} review {name}"
    page = sheet_page(name, title, shown, records, DECISIONS[kind], thumbnails, blur)
    # Spreadsheets detect UTF-8 by a byte order mark.
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(records)
    write_bytes(review / f"{name}.csv", buffer.getvalue().encode("utf-8-sig"))
    write_bytes(review / f"{name}.html", page.encode())
    asked = [
        {
            "id": row.id,
            "lang": row.lang,
            "text_sha256": sha256_text(row.text),
            "decidable": list(DECISIONS[kind]),
        }
        for row in rows
    ]
    write_json(review / f"{name}.json", {"sheet": name, "kind": kind, "rows": asked})
    return Sheet(name, review / f"{name}.csv", review / f"{name}.html", len(rows))


def _record(name: str, number: int, row: ReviewRow) -> dict[str, str]:
    """Return a row of the CSV."""
    texts = {key: inert(getattr(row, key)) for key in ("id", "lang", "source", "text", "reason")}
    return {"sheet": name, "row": str(number), **texts, "decision": "", "reviewer": "", "note": ""}


def _pictured(row: ReviewRow, pictures: Pictures | None) -> tuple[ReviewRow, str | None]:
    """Return the row and its thumbnail; without a picture None, with the cause added to the reason."""
    if row.image is None or pictures is None:
        return row, None
    try:
        return row, thumbnail(pictures.read(row.image))
    except (ValueError, OSError) as error:
        told = one_line(f"{row.reason}; no picture: {error}")
        return replace(row, reason=told), None
