"""Lines of text in any script as SVG outlines, with fonts that come as Python packages.

HarfBuzz selects and places the glyphs, and their outlines become paths. A picture therefore is the same on every
machine: it does not depend on system libraries, system fonts or a renderer's text layout. Mixed lines follow the
Unicode bidirectional algorithm as far as one line without embedded controls needs it (rules W7, N1, N2, L2).
"""

import importlib.util
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
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


def missing_packages() -> str:
    """Return the install command for missing packages, "" if none is missing."""
    missing = [
        name.replace("_", "-") for name in PACKAGES if importlib.util.find_spec(name) is None
    ]
    if not missing:
        return ""
    return (
        f"the answer sheet needs {', '.join(missing)}, not installed here: "
        f"pip install 'maya-vlm[eval]'"
    )


@lru_cache(maxsize=1)
def _faces() -> dict[str, Any]:
    """Return every upright face by family name, Noto Sans first."""
    import uharfbuzz as hb

    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    folders = [Path(spec.origin).parent for spec in specs if spec and spec.origin]
    faces: dict[str, Any] = {}
    for file in [file for folder in folders for file in sorted(folder.iterdir())]:
        if file.suffix not in (".ttf", ".ttc") or "Italic" in file.name:
            continue
        blob = hb.Blob.from_file_path(str(file))
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
    """Split a text by font and direction; characters in no font become U+FFFD."""
    first = FIRST.get(language, "Noto Sans")
    order = [first, *(family for family in _faces() if family != first)]
    found: list[Run] = []
    last = first
    for character, backwards in zip(text, _backwards(text, language), strict=True):
        if not character.isprintable() or unicodedata.category(character) == "Co":
            character = REPLACEMENT
        if unicodedata.category(character) == "Cf" and not _has(last, character):
            continue
        family = next((f for f in (last, *order) if _has(f, character)), None)
        if family is None:
            character = REPLACEMENT
            family = next(f for f in order if _has(f, character))
        if found and found[-1].family == family and found[-1].backwards == backwards:
            found[-1] = Run(family, found[-1].text + character, backwards)
        else:
            found.append(Run(family, character, backwards))
        last = family
    return found


def _backwards(text: str, language: str) -> list[bool]:
    """Return, for each character, whether it is set from right to left."""
    base = "R" if language in RIGHT_TO_LEFT else "L"
    kinds = []  # L, R, or N for characters that take the direction of their neighbours
    strong = base
    for character in text:
        kind = unicodedata.bidirectional(character)
        if kind in ("L", "R", "AL"):
            strong = "L" if kind == "L" else "R"
            kinds.append(strong)
        elif kind in ("EN", "AN"):
            kinds.append(strong)  # a number goes with the text before it
        elif kind == "NSM" and kinds:
            kinds.append(kinds[-1])
        else:
            kinds.append("N")
    following, after = base, []
    for kind in reversed(kinds):
        following = kind if kind != "N" else following
        after.append(following)
    previous, directions = base, []
    for character, kind, following in zip(text, kinds, reversed(after), strict=True):
        if kind == "N":
            directions.append((previous if previous == following else base) == "R")
            continue
        previous = kind
        number = unicodedata.bidirectional(character) in ("EN", "AN")
        directions.append(kind == "R" and not number)  # digits always run to the right
    return directions


def visual(found: list[Run], language: str) -> list[Run]:
    """Return the runs in visual order, from left to right."""
    pieces = [
        list(group)[:: -1 if backwards else 1]
        for backwards, group in groupby(found, key=lambda run: run.backwards)
    ]
    if language in RIGHT_TO_LEFT:
        pieces.reverse()
    return [run for piece in pieces for run in piece]


def width(text: str, language: str, size: float, weight: int = 400) -> float:
    """Return the line's width in pixels."""
    total = 0.0
    for run in runs(text, language):
        font, glyphs = _shape(run, weight)
        total += sum(advance for _, advance, _, _ in glyphs) * size / font.face.upem
    return total


def _shape(run: Run, weight: int) -> tuple[Any, list[tuple[int, int, int, int]]]:
    """Return the font, and its glyphs from the left: (number, advance, x offset, y offset) in font units."""
    import uharfbuzz as hb

    font = _font(run.family, weight)
    buffer = hb.Buffer()
    buffer.add_str(run.text)
    buffer.guess_segment_properties()
    buffer.direction = "rtl" if run.backwards else "ltr"
    hb.shape(font, buffer)
    places = zip(buffer.glyph_infos, buffer.glyph_positions, strict=True)
    return font, [(i.codepoint, p.x_advance, p.x_offset, p.y_offset) for i, p in places]


@cache
def _outline(family: str, weight: int, glyph: int) -> str:
    """Return the SVG path data of a glyph, in font units, y upwards."""
    import uharfbuzz as hb

    parts: list[str] = []
    functions = hb.DrawFuncs()
    functions.set_move_to_func(lambda x, y, _: parts.append(f"M{x:g} {y:g}"))
    functions.set_line_to_func(lambda x, y, _: parts.append(f"L{x:g} {y:g}"))
    functions.set_quadratic_to_func(
        lambda x1, y1, x, y, _: parts.append(f"Q{x1:g} {y1:g} {x:g} {y:g}")
    )
    functions.set_cubic_to_func(
        lambda x1, y1, x2, y2, x, y, _: parts.append(f"C{x1:g} {y1:g} {x2:g} {y2:g} {x:g} {y:g}")
    )
    functions.set_close_path_func(lambda _: parts.append("Z"))
    _font(family, weight).draw_glyph(glyph, functions)
    return "".join(parts)


def fit(text: str, language: str, size: float, room: float) -> str:
    """Return the text on one line; a text wider than `room` pixels is cut and ends with an ellipsis."""
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
    """Return the SVG of a line of text whose left (or, `at_end`, right) end is x."""
    if at_end:
        x -= width(text, language, size, weight)
    parts = []
    for run in visual(runs(text, language), language):
        font, glyphs = _shape(run, weight)
        scale = size / font.face.upem
        for glyph, advance, right, up in glyphs:
            outline = _outline(run.family, weight, glyph)
            if outline:
                parts.append(
                    f'<path transform="translate({x + right * scale:.2f} {y - up * scale:.2f}) '
                    f'scale({scale:.5f} {-scale:.5f})" d="{outline}"/>'
                )
            x += advance * scale
    return f'<g fill="{colour}">{"".join(parts)}</g>'
