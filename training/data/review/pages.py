"""Review sheets: rows that people look at, decide about, and whose decisions win over checks and judges.

    write_sheet(folder, "translation", rows)          # review/translation-1.csv, .html, .json
    read_sheet(folder, Path("filled.csv"))            # into review/overrides.parquet
    read_overrides(folder, "translation")             # (id, lang) -> decision, reviewer, note

A sheet is a CSV for a spreadsheet and an HTML page that needs nothing else: the page shows pictures
(blurred, if asked for), sets Arabic and Urdu from right to left, and saves the same CSV, filled.
People fill the columns decision, reviewer and note; an empty decision is none. What comes back is
taken whole or not at all: a sheet that is damaged is refused with every place that is wrong. The
JSON beside a sheet says what was asked, so a row is known by its number even where a spreadsheet
made 42 of the id 000042.

A decision is about the text that was shown: it holds its SHA-256, and is not applied to another text.
"""

import base64
import csv
import html
import io
import json
import random
import re
import string
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ...common.cells import inert, original
from ...common.files import sha256_text, write_bytes, write_json, write_parquet
from ...common.images import load_image, to_rgb
from ...common.reading import read_bytes, read_json
from ...common.shapes import check_shape
from ...common.telling import one_line, printable
from ...rows.parquet import check_columns, is_text, read_rows
from ..checks.identify import SCRIPTS, primary
from ..sources.pictures import Pictures

# What people may decide, by kind of sheet.
DECISIONS = {"translation": ("accept", "reject"), "toxicity": ("clean", "flagged")}
COLUMNS = ("sheet", "row", "id", "lang", "source", "text", "reason", "decision", "reviewer", "note")
OVERRIDES = pa.schema(
    [
        ("kind", pa.string()),
        ("id", pa.string()),
        ("lang", pa.string()),
        ("decision", pa.string()),
        ("reviewer", pa.string()),
        ("note", pa.string()),
        ("text_sha256", pa.string()),
        ("sheet", pa.string()),
        ("read_at", pa.string()),
    ]
)
# What the JSON beside a sheet says.
_ABOUT = {
    "kind": str,
    "rows": [{"id": str, "lang": str, "text_sha256": str, "decidable": [str]}],
}
_THUMBNAIL = 160
_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class ReviewRow:
    """One thing to decide about.

    id, lang: the key; lang "" stands for an image as a whole.
    source, text: what it was made from, and what is asked about; either may be "".
    image: the picture's name, None for none.
    reason: why it is in the sheet, in words.
    decidable: the decisions that make sense for it, all of the kind's if empty.
    """

    id: str
    lang: str
    text: str = ""
    source: str = ""
    source_lang: str = ""
    image: str | None = None
    reason: str = ""
    decidable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """A written sheet: its name and files."""

    name: str
    csv: Path
    html: Path
    rows: int


@dataclass(frozen=True)
class ReadBack:
    """What came of a filled sheet; counts of rows."""

    sheet: str
    kind: str
    rows: int
    undecided: int
    decisions: dict[str, int]
    changed: int
    """Decisions that differ from an earlier one about the same row; the new one holds."""
    in_force: int
    """Decisions of this kind that now hold, of all sheets."""


def stratified(
    rows: Iterable[Any], count: int, stratum: Callable[[Any], Any], seed: int = 0
) -> list[Any]:
    """`count` rows, as equally many of each stratum as there are; in memory are count a stratum.

    The same rows and seed give the same sample, in the order of `rows`.
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


# Writing


def write_sheet(
    folder: Path,
    kind: str,
    rows: Sequence[ReviewRow],
    *,
    name: str | None = None,
    title: str = "",
    pictures: Pictures | None = None,
    blur: bool = False,
) -> Sheet:
    """Write `review/<name>.csv`, `.html` and `.json` of a build; earlier sheets stay.

    A row whose picture cannot be shown is there without it, and its reason says why.

    Args:
        folder: of the build.
        kind: "translation" or "toxicity".
        name: of the sheet; default: the kind and the next free number.
        pictures: where those are that rows name; None shows none.
        blur: pictures are blurred until clicked on.

    Raises ValueError for no rows, two rows with one (id, lang), or a name that is taken.
    """
    if kind not in DECISIONS:
        raise ValueError(f"kind {kind!r}: expected one of {', '.join(DECISIONS)}")
    if not rows:
        raise ValueError(f"{folder}: there is nothing to review")
    keys = Counter((row.id, row.lang) for row in rows)
    (key, times), *_ = keys.most_common(1)
    if times > 1:
        raise ValueError(f"row {key[0]!r} ({key[1]!r}) stands {times} times in one sheet")
    review = folder / "review"
    if name is None:
        taken = [p.stem.rpartition("-")[2] for p in review.glob(f"{kind}-*.json")]
        name = f"{kind}-{max((int(n) for n in taken if n.isdigit()), default=0) + 1}"
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"sheet name {name!r}: expected letters, digits, dots and hyphens")
    if (review / f"{name}.json").exists():
        raise ValueError(f"{review / name}.json: there is a sheet of this name; choose another")
    thumbnails: list[str | None] = []
    shown = []
    for row in rows:
        row, thumbnail = _pictured(row, pictures)
        shown.append(row)
        thumbnails.append(thumbnail)
    records = [
        {
            "sheet": name,
            "row": str(number),
            "id": inert(row.id),
            "lang": inert(row.lang),
            "source": inert(row.source),
            "text": inert(row.text),
            "reason": inert(row.reason),
            "decision": "",
            "reviewer": "",
            "note": "",
        }
        for number, row in enumerate(shown, 1)
    ]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(records)
    title = title or f"{kind} review {name}"
    page = _page(name, title, shown, records, DECISIONS[kind], thumbnails, blur)
    # With a byte order mark spreadsheets read UTF-8.
    write_bytes(review / f"{name}.csv", buffer.getvalue().encode("utf-8-sig"))
    write_bytes(review / f"{name}.html", page.encode())
    write_json(
        review / f"{name}.json",
        {
            "sheet": name,
            "kind": kind,
            "rows": [
                {
                    "id": row.id,
                    "lang": row.lang,
                    "text_sha256": sha256_text(row.text),
                    "decidable": list(row.decidable or DECISIONS[kind]),
                }
                for row in rows
            ],
        },
    )
    return Sheet(name, review / f"{name}.csv", review / f"{name}.html", len(rows))


def _pictured(row: ReviewRow, pictures: Pictures | None) -> tuple[ReviewRow, str | None]:
    """The row and its picture's thumbnail, or None and the reason in the row."""
    if row.image is None or pictures is None:
        return row, None
    try:
        return row, _thumbnail(pictures.read(row.image))
    except (ValueError, OSError) as error:
        told = one_line(f"{row.reason}; no picture: {error}")
        return replace(row, reason=told), None


def direction(lang: str) -> str:
    """ "rtl" for languages that are written from right to left."""
    scripts = SCRIPTS.get(primary(lang), ())
    written = {"arabic", "hebrew"} & set(scripts)
    return "rtl" if written or primary(lang) in ("ps", "sd", "ug", "ku", "yi", "dv") else "ltr"


def _page(
    name: str,
    title: str,
    rows: Sequence[ReviewRow],
    records: Sequence[dict[str, str]],
    decisions: Sequence[str],
    thumbnails: Sequence[str | None],
    blur: bool,
) -> str:
    template = (Path(__file__).parent / "review.html").read_text(encoding="utf-8")
    articles = []
    look = "blurred" if blur else "clear"
    for number, (row, thumbnail) in enumerate(zip(rows, thumbnails, strict=True), 1):
        picture = f'<img class="{look}" alt="" src="{thumbnail}">' if thumbnail else ""
        choices = "".join(
            f'<label><input type="radio" name="d{number}" value="{word}"> {word}</label>'
            for word in (row.decidable or decisions)
        )
        articles.append(
            f'<article class="{"" if picture else "plain"}">{picture}<div>'
            f'<p class="id">{number}. {_shown(row.id)} {_shown(row.lang)}</p>'
            + _paragraph("source", row.source, row.source_lang)
            + _paragraph("text", row.text, row.lang)
            + _paragraph("reason", row.reason, "en")
            + f'<p>{choices}<input class="note" placeholder="note"></p></div></article>'
        )
    return string.Template(template).substitute(
        title=_shown(title),
        count=f"{len(rows):,}",
        rows="\n".join(articles),
        columns=_script(list(COLUMNS)),
        sheet=_script(list(records)),
        name=_script(f"{name}.csv"),
    )


def _paragraph(name: str, text: str, lang: str) -> str:
    if not text:
        return ""
    code = _shown(lang)
    return f'<p class="{name}" lang="{code}" dir="{direction(lang)}">{_shown(text)}</p>'


def _shown(text: str) -> str:
    """Text of a page: without markup, control characters as escapes."""
    return html.escape("\n".join(printable(line.expandtabs()) for line in text.split("\n")))


def _script(value: Any) -> str:
    """JSON that cannot end its script element, without raw control characters."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        char if char not in "<>&" and printable(char) == char else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    # As JSON writes it: two halves for what is beyond 16 bits.
    return json.dumps(char)[1:-1] if ord(char) > 126 else f"\\u{ord(char):04x}"


def _thumbnail(data: bytes) -> str:
    """A picture as a small JPEG in a data: URI. Raises ValueError for what is no picture."""
    small = to_rgb(load_image(data))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# Reading back


def read_sheet(folder: Path, path: Path) -> ReadBack:
    """Take a filled sheet into `review/overrides.parquet`, all of it or nothing.

    Separators may be commas, semicolons or tabs, and the file may begin with a byte order mark.

    Raises ValueError naming file and rows: not UTF-8, other columns, an unknown sheet or row, an id
    or text that was changed, a decision that the sheet does not know, a row decided twice.
    """
    rows = _read_csv(path)
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
            f"{path}: sheet: {name!r} is none of this build's sheets ({_listed(known)})"
        )
    sheet = read_json(about)
    check_shape(sheet, _ABOUT, str(about))
    if sheet["kind"] not in DECISIONS:
        raise ValueError(
            f"{about}: kind: expected {' or '.join(DECISIONS)}, found {one_line(sheet['kind'], 60)!r}"
        )
    kind, asked = sheet["kind"], sheet["rows"]
    errors: list[str] = []
    decided: dict[int, dict[str, Any]] = {}
    undecided = 0
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for line, row in rows:
        number = _number(row["row"])
        if number is None or not 1 <= number <= len(asked):
            errors.append(f"line {line}: row: expected 1 to {len(asked)}, found {row['row']!r}")
            continue
        item = asked[number - 1]
        error = _altered(row, item)
        if error:
            errors.append(f"line {line}: {error}")
            continue
        decision = row["decision"].strip().casefold()
        if not decision:
            undecided += 1
            continue
        if decision not in item["decidable"]:
            errors.append(
                f"line {line}: decision: expected {' or '.join(item['decidable'])}, "
                f"found {row['decision']!r}"
            )
            continue
        if number in decided:
            errors.append(f"line {line}: row {number} ({item['id']!r}) is decided twice")
            continue
        decided[number] = {
            "kind": kind,
            "id": item["id"],
            "lang": item["lang"],
            "decision": decision,
            "reviewer": original(row["reviewer"].strip()),
            "note": original(row["note"].strip()),
            "text_sha256": item["text_sha256"],
            "sheet": name,
            "read_at": now,
        }
    if errors:
        more = f"; and {len(errors) - _SHOWN_ERRORS} more" if len(errors) > _SHOWN_ERRORS else ""
        told = one_line("; ".join(one_line(error, 200) for error in errors[:_SHOWN_ERRORS]), 1000)
        raise ValueError(f"{path}: {told}{more}; nothing of the sheet was taken")
    kept = {(o["kind"], o["id"], o["lang"]): o for o in _overrides(folder)}
    changed = 0
    for override in decided.values():
        key = (override["kind"], override["id"], override["lang"])
        changed += key in kept and kept[key]["decision"] != override["decision"]
        kept[key] = override
    ordered = [kept[key] for key in sorted(kept)]
    write_parquet(
        folder / "review" / "overrides.parquet", pa.Table.from_pylist(ordered, schema=OVERRIDES)
    )
    counts = Counter(override["decision"] for override in decided.values())
    total = sum(1 for override in ordered if override["kind"] == kind)
    return ReadBack(name, kind, len(rows), undecided, dict(sorted(counts.items())), changed, total)


def read_overrides(folder: Path, kind: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(id, lang) -> {"decision", "reviewer", "note", "text_sha256", "sheet", "read_at"} of one kind."""
    return {
        (row["id"], row["lang"]): {k: v for k, v in row.items() if k not in ("kind", "id", "lang")}
        for row in _overrides(folder)
        if row["kind"] == kind
    }


def _overrides(folder: Path) -> list[dict[str, Any]]:
    path = folder / "review" / "overrides.parquet"
    if not path.is_file():
        return []
    check_columns(path, dict.fromkeys(OVERRIDES.names, is_text))
    rows = list(read_rows(path, OVERRIDES.names))
    for row in rows:
        if any(row[name] is None for name in ("kind", "id", "lang", "decision", "text_sha256")):
            raise ValueError(f"{path}: expected decisions, found {one_line(str(row), 200)}")
    return rows


def _read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with the line they begin on."""
    data = read_bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"  # what Excel calls Unicode text
    else:
        encoding = "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not {'UTF-16' if encoding == 'utf-16' else 'UTF-8'} (byte {error.start}); in the spreadsheet save it as 'CSV UTF-8'"
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
            header.pop()  # spreadsheets add empty columns
        if sorted(header) != sorted(COLUMNS):
            missing = [c for c in COLUMNS if c not in header]
            extra = [c for c in header if c not in COLUMNS]
            twice = [c for c, n in Counter(header).items() if n > 1]
            raise ValueError(
                f"{path}: expected the columns {', '.join(COLUMNS)}; "
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
                    "a text with a separator or line break must stand in quotation marks"
                )
            rows.append((at, dict(zip(header, values, strict=False))))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num + offset}: not CSV: {error}") from None
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def _altered(row: dict[str, str], item: dict[str, Any]) -> str | None:
    """What of a row does not agree with what was asked; None if all does."""
    found = row["id"].strip()
    accepted = {item["id"], inert(item["id"])}
    # A spreadsheet reads 000042 as a number.
    if found not in accepted and not (item["id"].isdecimal() and _number(found) == int(item["id"])):
        return f"id: expected {item['id']!r} in row {row['row']}, found {found!r}; was the sheet sorted by one column only?"
    if row["lang"].strip() not in (item["lang"], inert(item["lang"])):
        return f"lang: expected {item['lang']!r} for {item['id']!r}, found {row['lang']!r}"
    # A spreadsheet may write other line ends, and our apostrophe may still be there: or both.
    texts = {row["text"], original(row["text"]), row["text"].removeprefix("'")}
    texts |= {text.replace("\r\n", "\n") for text in texts}
    texts |= {text.replace("\n", "\r\n") for text in texts if "\r" not in text}
    if item["text_sha256"] not in {sha256_text(text) for text in texts}:
        return f"text: that of {item['id']!r} was changed; leave it, and put a better one into the note"
    return None


def _number(text: str) -> int | None:
    """A whole number as spreadsheets may write it: 42, 42.0, 4.2E+01."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _listed(names: Sequence[str]) -> str:
    return one_line(", ".join(names), 200) or "none"
