"""The HTML page of a review sheet: one file, with its pictures."""

import base64
import html
import io
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.images import load_image, to_rgb
from ...common.telling import printable
from ..checks.identify import SCRIPTS, primary
from .decisions import COLUMNS, ReviewRow

_THUMBNAIL = 160


def direction(lang: str) -> str:
    """Return "rtl" for languages written from right to left, else "ltr"."""
    scripts = SCRIPTS.get(primary(lang), ())
    written = {"arabic", "hebrew"} & set(scripts)
    return "rtl" if written or primary(lang) in ("ps", "sd", "ug", "ku", "yi", "dv") else "ltr"


def sheet_page(
    name: str,
    title: str,
    rows: Sequence[ReviewRow],
    records: Sequence[dict[str, str]],
    decisions: Sequence[str],
    thumbnails: Sequence[str | None],
    blur: bool,
) -> str:
    """Return the HTML page of a sheet, which saves the filled CSV of `records`."""
    template = (Path(__file__).parent / "review.html").read_text(encoding="utf-8")
    articles = []
    look = "blurred" if blur else "clear"
    for number, (row, thumbnail) in enumerate(zip(rows, thumbnails, strict=True), 1):
        picture = f'<img class="{look}" alt="" src="{thumbnail}">' if thumbnail else ""
        choices = "".join(
            f'<label><input type="radio" name="d{number}" value="{word}"> {word}</label>'
            for word in decisions
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
    """Return text for a page: markup escaped, control characters visible."""
    return html.escape("\n".join(printable(line.expandtabs()) for line in text.split("\n")))


def _script(value: Any) -> str:
    """Return JSON that cannot end its script element and has no raw control characters."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(
        char if char not in "<>&" and printable(char) == char else _escape(char) for char in text
    )


def _escape(char: str) -> str:
    # Same as JSON: two surrogates for characters beyond 16 bits.
    return json.dumps(char)[1:-1] if ord(char) > 126 else f"\\u{ord(char):04x}"


def thumbnail(data: bytes) -> str:
    """Return a picture as a small JPEG in a data: URI.

    Raises:
        ValueError: the data is not a picture.
    """
    small = to_rgb(load_image(data))
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
