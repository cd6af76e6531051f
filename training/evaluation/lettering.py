"""Lines of text in any script as SVG, with fonts that come as Python packages.

HarfBuzz says which font has a character and how wide a run is; resvg shapes the runs when it draws
them. Neither needs a system library or a system font, so a picture is the same on every machine.
"""

import importlib.util
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from pathlib import Path
from typing import Any

PACKAGES = ("resvg_py", "uharfbuzz", "manimgx_fonts", "manimgx_fonts_cjk")
RIGHT_TO_LEFT = ("ar", "ur")
FIRST = {
    "ar": "Noto Sans Arabic",
    "ur": "Noto Sans Arabic",
    "hi": "Noto Sans Devanagari",
    "bn": "Noto Sans Bengali",
    "zh": "Noto Sans CJK SC",
    "ja": "Noto Sans CJK JP",
}
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Run:
    """Characters that one font draws in one direction, in reading order."""

    family: str
    text: str
    backwards: bool


def check_packages() -> None:
    """Raises ValueError, naming what to install, where pictures of text cannot be drawn."""
    missing = [
        name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ValueError(
            f"the answer sheet needs {', '.join(missing)}, not installed here: "
            f"pip install 'maya-vlm[eval]'"
        )


@lru_cache(maxsize=1)
def font_files() -> list[str]:
    """The files of the font packages."""
    files: list[str] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            files += [str(f) for f in sorted(folder.iterdir()) if f.suffix in (".ttf", ".ttc")]
    return files


@lru_cache(maxsize=1)
def _faces() -> dict[str, Any]:
    """Every upright face by family name; Noto Sans first, then the others."""
    import uharfbuzz as hb

    faces: dict[str, Any] = {}
    for file in font_files():
        if "Italic" in file:
            continue
        blob = hb.Blob.from_file_path(file)
        for number in range((len(blob) and hb.Face(blob).count) or 1):
            face = hb.Face(blob, number)
            faces[face.get_name(hb.OTNameIdPredefined.FONT_FAMILY)] = face
    return dict(sorted(faces.items(), key=lambda item: (item[0] != "Noto Sans", item[0])))


@cache
def _font(family: str, weight: int) -> Any:
    import uharfbuzz as hb

    font = hb.Font(_faces()[family])
    font.set_variations({"wght": weight})
    return font


def _has(family: str, character: str) -> bool:
    return _font(family, 400).get_nominal_glyph(ord(character)) is not None


def runs(text: str, language: str) -> list[Run]:
    """The text, split by font and direction; what no font has becomes U+FFFD."""
    first = FIRST.get(language, "Noto Sans")
    order = [first, *(family for family in _faces() if family != first)]
    found: list[Run] = []
    last = first
    for character in text:
        if not character.isprintable() or unicodedata.category(character) == "Co":
            character = REPLACEMENT
        if unicodedata.category(character) == "Cf" and not _has(last, character):
            continue
        family = next((f for f in (last, *order) if _has(f, character)), None)
        if family is None:
            character = REPLACEMENT
            family = next(f for f in order if _has(f, character))
        kind = unicodedata.bidirectional(character)
        joins = bool(found) and found[-1].family == family
        if kind in ("R", "AL") or (kind != "L" and joins and found[-1].backwards):
            backwards = True
        elif kind == "L" or (kind in ("EN", "ET", "ES") and not joins):
            backwards = False
        else:
            # A space or a stop keeps the direction of its run, or takes the line's.
            backwards = found[-1].backwards if joins else language in RIGHT_TO_LEFT
        if joins and found[-1].backwards == backwards:
            found[-1] = Run(family, found[-1].text + character, backwards)
        else:
            found.append(Run(family, character, backwards))
        last = family
    return found


def width(text: str, language: str, size: float, weight: int = 400) -> float:
    """How wide the line is, in pixels."""
    return sum(_run_width(run, size, weight) for run in runs(text, language))


def _run_width(run: Run, size: float, weight: int) -> float:
    import uharfbuzz as hb

    font = _font(run.family, weight)
    buffer = hb.Buffer()
    buffer.add_str(run.text)
    buffer.guess_segment_properties()
    hb.shape(font, buffer)
    return sum(place.x_advance for place in buffer.glyph_positions) * size / font.face.upem


def fit(text: str, language: str, size: float, room: float) -> str:
    """The text on one line, cut and marked with an ellipsis where it is wider than `room` pixels."""
    text = " ".join(text.split())
    if width(text, language, size) <= room:
        return text
    while text and width(text + "…", language, size) > room:
        text = text[:-1]
    return text.rstrip() + "…"


def line(
    x: float,
    y: float,
    text: str,
    language: str,
    size: float,
    colour: str,
    *,
    at_end: bool = False,
    weight: int = 400,
) -> str:
    """SVG of a line of text whose left (or, `at_end`, right) end is x.

    Every run is placed by its measured width and is a text of its own: mixing fonts inside one
    makes the renderer exchange glyphs between them.
    """
    placed = runs(text, language)
    if language in RIGHT_TO_LEFT:
        placed.reverse()
    widths = [_run_width(run, size, weight) for run in placed]
    if at_end:
        x -= sum(widths)
    parts = []
    for run, advance in zip(placed, widths, strict=True):
        content = escape(run.text)
        if run.backwards:
            content = f"\u2067{content}\u2069"  # isolated, so that brackets and stops are mirrored
        parts.append(
            f'<text x="{x:.2f}" y="{y}" font-size="{size}" fill="{colour}" xml:space="preserve" '
            f'font-family="{run.family}" font-weight="{weight}">{content}</text>'
        )
        x += advance
    return "".join(parts)
