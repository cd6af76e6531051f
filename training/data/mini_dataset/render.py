"""Render emoji vector art as 64 x 64 palette PNGs, with the same bytes on every run."""

from __future__ import annotations

import functools
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.files import sha256_bytes
from .concepts import Concept
from .sources import SOURCES, SPLITS, Archive, SourceError

SIZE = 64
COLOURS = 64
# Draw at three times the size, then reduce: edges are smoother than with drawing at 64.
_OVERSAMPLING = 3
REFUSED_FILE = Path(__file__).with_name("refused.json")


@dataclass(frozen=True)
class Picture:
    """One concept in one style. `png`: bytes of a PNG file, 64 x 64 pixels, palette mode."""

    concept: Concept
    style: str
    png: bytes

    @property
    def path(self) -> str:
        return f"{self.style}/{self.concept.id}.png"

    @functools.cached_property
    def sha256(self) -> str:
        return sha256_bytes(self.png)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def icon_candidates(concept: Concept, style: str) -> list[str]:
    """Return names of `concept` to look for in the icon set of `style`, best first."""
    if not SOURCES[style].named_after:
        return [concept.icon_names[style]] if style in concept.icon_names else []
    names = [concept.icon_names.get(key, "") for key in SOURCES[style].named_after]
    names.append(_slug(concept.names["en"]))
    if style == "fxemoji":
        # Names in this set have no separators ("beermug").
        names = [name.replace("-", "") for name in names]
    if style == "streamline":
        # The first of several drawings ends in -1; some names come from an older CLDR.
        names = [name + end for end in ("", "-1", "-face", "-face-1") for name in names if name]
    return [name for name in dict.fromkeys(names) if name]


def _find_icon(icons: dict[str, Any], candidates: list[str]) -> dict[str, Any] | None:
    for name in candidates:
        alias = icons.get("aliases", {}).get(name)
        if alias is not None and set(alias) == {"parent"}:
            name = alias["parent"]
        icon = icons["icons"].get(name)
        if icon is not None:
            return icon
    return None


def to_svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    """Return an iconify icon as a square SVG document; the shorter side is padded evenly."""

    def field(name: str, default: float) -> float:
        return icon.get(name, icons.get(name, default))

    width, height = field("width", 16), field("height", 16)
    side = max(width, height)
    left = field("left", 0) - (side - width) / 2
    top = field("top", 0) - (side - height) / 2
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left:g} {top:g} {side:g} {side:g}" width="{SIZE}" height="{SIZE}">'
        f"{icon['body']}</svg>"
    )


def rasterise(svg: str) -> bytes:
    """Return an SVG document as PNG bytes, on white: 64 x 64 pixels, at most 64 colours."""
    # Import here: only the build needs it, not users of the shipped dataset.
    import resvg_py

    large = SIZE * _OVERSAMPLING
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg, background="white", width=large, height=large, skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(drawn))).convert("RGB")
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).quantize(COLOURS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def load_refused() -> dict[str, dict[str, str]]:
    """Return {style: {concept id: why its icon is not used}}."""
    return json.loads(REFUSED_FILE.read_text(encoding="utf-8"))


def draw_style(
    style: str, concepts: list[Concept], archive: Archive
) -> tuple[list[Picture], dict[str, list[str]]]:
    """Draw every concept that the style has.

    A training style omits held-out concepts. If two concepts have equal pixels in a style, pictures
    cannot distinguish them, so both are omitted.

    Returns:
        Pictures sorted by path; reason -> ids of omitted concepts.

    Raises:
        SourceError: an icon cannot be drawn.
    """
    icons = archive.read_json(["icons.json"])["icons.json"]
    refused = load_refused().get(style, {})
    left_out: dict[str, list[str]] = {}
    pictures: dict[bytes, list[Picture]] = {}
    for concept in concepts:
        icon = _find_icon(icons, icon_candidates(concept, style))
        reason = None
        if icon is None:
            reason = "not in this set"
        elif concept.id in refused:
            reason = "wrong or doubtful picture"
        elif SPLITS[style] == "train" and not concept.seen:
            reason = "held out"
        if reason is not None or icon is None:
            left_out.setdefault(str(reason), []).append(concept.id)
            continue
        try:
            png = rasterise(to_svg(icon, icons))
        except ValueError as error:
            raise SourceError(f"{style}: {concept.id} cannot be drawn: {error}") from None
        pictures.setdefault(png, []).append(Picture(concept, style, png))
    for same in pictures.values():
        if len(same) > 1:
            ids = left_out.setdefault("same pixels as another concept", [])
            ids.extend(picture.concept.id for picture in same)
    alone = [same[0] for same in pictures.values() if len(same) == 1]
    return sorted(alone, key=lambda picture: picture.path), left_out
