"""The picture of samples in the dataset card: concepts in every style, named in every language."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont, features

from .concepts import LANGUAGES
from .render import SIZE, SPLITS

# Fonts that can write each language, best first; the first one found is used.
FONTS = {
    "latin": ("NotoSans-Regular.ttf", "DejaVuSans.ttf"),
    "cjk": ("wqy-microhei.ttc", "NotoSansCJK-Regular.ttc", "DroidSansFallbackFull.ttf"),
    "devanagari": ("NotoSansDevanagari-Regular.ttf", "Lohit-Devanagari.ttf"),
    "bengali": ("NotoSansBengali-Regular.ttf", "Lohit-Bengali.ttf"),
    "arabic": ("NotoNaskhArabic-Regular.ttf", "NotoSansArabic-Regular.ttf", "DejaVuSans.ttf"),
}
SCRIPTS = {
    "zh": "cjk",
    "ja": "cjk",
    "hi": "devanagari",
    "bn": "bengali",
    "ar": "arabic",
    "ur": "arabic",
}
RIGHT_TO_LEFT = ("ar", "ur")
FONT_FOLDERS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), Path.home() / ".fonts")

# One of each category, all in every style.
CONCEPTS = ("1f47d", "1f478", "1f418", "1f354", "1f680", "1f3ae", "1f3b8", "264c")
_GAP = 10
_LINE = 22
_TEXT_WIDTH = 190
_FONT_SIZE = 15
_STYLE_FONT_SIZE = 12  # the longest name has to fit above its picture


def find_fonts(folders: Iterable[Path] = FONT_FOLDERS) -> dict[str, Path]:
    """Script -> font file, for the scripts of FONTS that a font is found for."""
    files: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.tt[cf]")):
            files.setdefault(path.name, path)
    return {
        script: next(files[name] for name in names if name in files)
        for script, names in FONTS.items()
        if any(name in files for name in names)
    }


def can_draw(fonts: dict[str, Path]) -> bool:
    """Whether every script has a font and Pillow can shape text (its raqm feature)."""
    return set(fonts) == set(FONTS) and bool(features.check("raqm"))


def draw_samples(dataset: Path, output: Path, fonts: dict[str, Path]) -> None:
    """Draw the sample concepts of a built dataset into a PNG file.

    Names come from the split of the last style that has the concept. Right-to-left names are
    shaped and set flush right.
    """
    styles = [style for style in SPLITS if (dataset / f"images/{style}.parquet").is_file()]
    pictures = {style: _pictures(dataset / f"images/{style}.parquet") for style in styles}
    names = {language: _names(dataset, language, styles) for language in LANGUAGES}
    shown = [key for key in CONCEPTS if any(key in own for own in pictures.values())]
    columns = 5
    rows = -(-len(LANGUAGES) // columns)
    height = max(SIZE, rows * _LINE) + 2 * _GAP
    left = len(styles) * (SIZE + _GAP) + 2 * _GAP
    width = left + columns * (_TEXT_WIDTH + _GAP)
    sheet = Image.new("RGB", (width, _LINE + _GAP + height * len(shown)), "white")
    canvas = ImageDraw.Draw(sheet)
    loaded = {script: ImageFont.truetype(str(path), _FONT_SIZE) for script, path in fonts.items()}
    small = ImageFont.truetype(str(fonts["latin"]), _STYLE_FONT_SIZE)
    for column, style in enumerate(styles):
        canvas.text((_GAP + column * (SIZE + _GAP), 8), style, "#555555", small)
    for column in range(columns):
        shown_here = "  ".join(LANGUAGES[column::columns])
        x = left + column * (_TEXT_WIDTH + _GAP)
        canvas.text((x, 6), shown_here, "#555555", loaded["latin"])
    for row, concept in enumerate(shown):
        top = _LINE + _GAP + row * height
        canvas.line((0, top - _GAP // 2, width, top - _GAP // 2), "#dddddd")
        for column, style in enumerate(styles):
            if concept in pictures[style]:
                drawn = Image.open(io.BytesIO(pictures[style][concept])).convert("RGB")
                sheet.paste(drawn, (_GAP + column * (SIZE + _GAP), top))
        for place, language in enumerate(LANGUAGES):
            name = names[language].get(concept)
            if name is None:
                continue
            font = loaded[SCRIPTS.get(language, "latin")]
            x = left + place % columns * (_TEXT_WIDTH + _GAP)
            y = top + 26 + place // columns * (_LINE + 6)
            name, direction = _fit(name, font, language)
            if direction == "rtl":
                x += _TEXT_WIDTH - round(font.getlength(name, direction="rtl"))
            canvas.text(
                (x, y), name, "black", font, anchor="ls", direction=direction, language=language
            )
    sheet.save(output, optimize=True)


def _fit(name: str, font: ImageFont.FreeTypeFont, language: str) -> tuple[str, str]:
    """The name, cut where it is too wide for its cell, and its direction."""
    direction = "rtl" if language in RIGHT_TO_LEFT else "ltr"
    if font.getlength(name, direction=direction, language=language) <= _TEXT_WIDTH:
        return name, direction
    while font.getlength(name + "...", direction=direction, language=language) > _TEXT_WIDTH:
        name = name[:-1]
    return name + "...", direction


def _pictures(path: Path) -> dict[str, bytes]:
    table = pq.read_table(path, columns=["concept", "picture"]).to_pylist()
    return {row["concept"]: row["picture"]["bytes"] for row in table}


def _names(dataset: Path, language: str, styles: list[str]) -> dict[str, str]:
    split = SPLITS[styles[-1]]
    found: dict[str, str] = {}
    for part in ("clean", "flagged"):
        path = dataset / f"texts/{language}/{split}-{part}.parquet"
        for row in pq.read_table(path, columns=["concept", "text"]).to_pylist():
            found[row["concept"]] = row["text"]
    return found
