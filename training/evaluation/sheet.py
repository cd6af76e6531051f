"""The answer sheet: test pictures with a question and its answer in every language, as a PNG.

Drawn as SVG and rendered by resvg; see lettering.py for the scripts.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

from .generation import Answer
from .lettering import RIGHT_TO_LEFT, check_packages, fit, line
from .mini import Benchmark, Row, right, sample

# Sizes in pixels.
COLUMNS, CARD, GAP, MARGIN, TITLE = 4, 440, 16, 24, 64
PICTURE, HEADER, LINE = 96, 124, 42
RIGHT, WRONG, QUIET, INK, PAPER = "#13703a", "#b3261e", "#6b7280", "#111827", "#f3f4f6"


def draw_sheet(
    benchmark: Benchmark,
    rows: Sequence[Row],
    answers: Sequence[Answer],
    path: Path,
    *,
    pictures: int = 12,
    seed: int = 0,
) -> None:
    """Write the sheet of some of the pictures, drawn from the seed and not by how they went.

    Only concepts seen in training are shown, unless there are none. Raises ValueError where
    nothing was answered or a package is missing.
    """
    check_packages()
    import resvg_py

    named = [(row, given) for row, given in zip(rows, answers, strict=True) if row.task == "name"]
    if not named:
        raise ValueError("no naming questions were answered: there is nothing to draw")
    seen = sorted({row.image for row, _ in named if row.seen})
    images = sample(seen or sorted({row.image for row, _ in named}), pictures, seed)
    style = ", ".join(sorted({row.style for row, _ in named}))
    height = HEADER + LINE * len(benchmark.languages) + 8
    columns = min(COLUMNS, len(images))
    deep = -(-len(images) // columns)
    size = (
        2 * MARGIN + columns * CARD + (columns - 1) * GAP,
        2 * MARGIN + TITLE + deep * height + (deep - 1) * GAP,
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size[0]}" height="{size[1]}">',
        f'<rect width="{size[0]}" height="{size[1]}" fill="{PAPER}"/>',
        line(MARGIN, MARGIN + 22, "What is on the picture?", "en", 24, INK, weight=600),
        line(
            MARGIN,
            MARGIN + 46,
            f"{len(images)} pictures of the split {benchmark.split} ({style}), drawn at random; "
            f"grey at the end of a line: what was expected",
            "en",
            14,
            QUIET,
        ),
    ]
    for number, image in enumerate(images):
        x = MARGIN + (number % columns) * (CARD + GAP)
        y = MARGIN + TITLE + (number // columns) * (height + GAP)
        parts.append(
            f'<rect x="{x}" y="{y}" width="{CARD}" height="{height}" rx="10" fill="#ffffff" '
            f'stroke="#d1d5db"/>'
        )
        lines = {row.lang: (row, given) for row, given in named if row.image == image}
        parts += _card(benchmark, image, lines, x, y)
    parts.append("</svg>")
    content = resvg_py.svg_to_bytes(svg_string="".join(parts), skip_system_fonts=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(bytes(content))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _card(
    benchmark: Benchmark, image: str, lines: dict[str, tuple[Row, Answer]], x: int, y: int
) -> list[str]:
    """One picture with a line for each language; (x, y) is the card's corner."""
    language = "en" if "en" in lines else next(iter(lines))
    first = lines[language][0]
    title = first.expected
    correct = sum(right(row, given) for row, given in lines.values())
    encoded = base64.b64encode(benchmark.pictures[image]).decode()
    left = x + 14 + PICTURE + 14
    parts = [
        f'<image x="{x + 14}" y="{y + 14}" width="{PICTURE}" height="{PICTURE}" '
        f'xlink:href="data:image/png;base64,{encoded}"/>',
        line(left, y + 40, fit(title, language, 18, CARD - 150), language, 18, INK, weight=600),
        line(left, y + 66, f"{correct} of {len(lines)} languages right", "en", 14, QUIET),
        line(left, y + 88, "seen in training" if first.seen else "held out", "en", 14, QUIET),
    ]
    start, end = x + 62, x + CARD - 14
    for number, language in enumerate(lang for lang in benchmark.languages if lang in lines):
        row, given = lines[language]
        good = right(row, given)
        top = y + HEADER + number * LINE
        parts += [
            f'<line x1="{x + 14}" x2="{end}" y1="{top}" y2="{top}" stroke="#e5e7eb"/>',
            _mark(x + 22, top + 22, good),
            line(x + 36, top + 27, language, "en", 13, QUIET, weight=600),
        ]
        backwards = language in RIGHT_TO_LEFT
        near, far = (end, start) if backwards else (start, end)
        room = end - start if good else 0.56 * (end - start)
        question = fit(row.question, language, 11, end - start)
        said = fit(given.text, language, 17, room)
        parts.append(line(near, top + 14, question, language, 11, QUIET, at_end=backwards))
        if said:
            colour = RIGHT if good else WRONG
            parts.append(line(near, top + 34, said, language, 17, colour, at_end=backwards))
        else:
            parts.append(line(near, top + 34, "(no answer)", "en", 14, WRONG, at_end=backwards))
        if not good:
            wanted = fit(row.expected, language, 13, 0.42 * (end - start))
            parts.append(line(far, top + 34, wanted, language, 13, QUIET, at_end=not backwards))
    return parts


def _mark(x: int, y: int, good: bool) -> str:
    """A check or a cross of 12 pixels around (x, y), drawn: fonts differ in having them."""
    path = "M-6 0 L-2 5 L6 -6" if good else "M-5 -5 L5 5 M5 -5 L-5 5"
    return (
        f'<path transform="translate({x} {y})" d="{path}" fill="none" stroke-width="2.6" '
        f'stroke-linecap="round" stroke-linejoin="round" stroke="{RIGHT if good else WRONG}"/>'
    )
