"""The answer sheet: test pictures with a question and its answer in every language, as a PNG.

The sheet is drawn as SVG and rendered by resvg; lettering.py draws the texts.
"""

from collections.abc import Sequence
from pathlib import Path

from ...common.files import write_bytes
from ...common.images import png_url
from ..protocol import Loaded, Scored, Task, sample
from .lettering import RIGHT_TO_LEFT, fit, line, missing_packages

# Sizes in pixels.
COLUMNS, CARD, GAP, MARGIN, TITLE = 4, 440, 16, 24, 64
PICTURE, HEADER, LINE = 96, 124, 42
RIGHT, WRONG, QUIET, INK, PAPER = "#13703a", "#b3261e", "#6b7280", "#111827", "#f3f4f6"


def draw_sheet(
    task: Task,
    loaded: Loaded,
    scored: Sequence[Scored],
    path: Path,
    *,
    pictures: int = 12,
    seed: int = 0,
) -> None:
    """Write the sheet of some pictures, which are drawn from the seed, independent of the answers' scores.

    All answers come from one subset: the first in `Task.sheet` that has answers.

    Raises:
        ValueError: no subset in `Task.sheet` has answers, or a package is missing.
    """
    if missing := missing_packages():
        raise ValueError(missing)
    import resvg_py

    chosen: list[Scored] = []
    for subset in task.sheet:
        chosen = chosen or [one for one in scored if one.request.subset == subset]
    if not chosen:
        raise ValueError(f"sheet: expected answers of {', '.join(task.sheet)}, found none")
    images = sample({one.request.pictures[0] for one in chosen}, pictures, seed)
    style = ", ".join(loaded.data["styles"])
    height = HEADER + LINE * len(loaded.languages) + 8
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
            f"{len(images)} pictures of the split {loaded.data['split']} ({style}), drawn at random; "
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
        lines = {one.request.language: one for one in chosen if one.request.pictures[0] == image}
        parts += _card(task, loaded, image, lines, x, y)
    parts.append("</svg>")
    content = resvg_py.svg_to_bytes(svg_string="".join(parts), skip_system_fonts=True)
    write_bytes(path, bytes(content))


def _card(
    task: Task, loaded: Loaded, image: str, lines: dict[str, Scored], x: int, y: int
) -> list[str]:
    """Draw one picture with a line for each language; (x, y) is the card's corner."""
    language = "en" if "en" in lines else next(iter(lines))
    first = lines[language].request
    title = first.expected
    correct = sum(_right(task, one) for one in lines.values())
    part = task.parts.get(first.subset.partition("/")[0], "")
    left = x + 14 + PICTURE + 14
    parts = [
        f'<image x="{x + 14}" y="{y + 14}" width="{PICTURE}" height="{PICTURE}" '
        f'xlink:href="{png_url(loaded.pictures.load(image))}"/>',
        line(left, y + 40, fit(title, language, 18, CARD - 150), language, 18, INK, weight=600),
        line(left, y + 66, f"{correct} of {len(lines)} languages right", "en", 14, QUIET),
        line(left, y + 88, part, "en", 14, QUIET),
    ]
    start, end = x + 62, x + CARD - 14
    for number, language in enumerate(lang for lang in loaded.languages if lang in lines):
        one = lines[language]
        good = _right(task, one)
        top = y + HEADER + number * LINE
        parts += [
            f'<line x1="{x + 14}" x2="{end}" y1="{top}" y2="{top}" stroke="#e5e7eb"/>',
            _mark(x + 22, top + 22, good),
            line(x + 36, top + 27, language, "en", 13, QUIET, weight=600),
        ]
        backwards = language in RIGHT_TO_LEFT
        near, far = (end, start) if backwards else (start, end)
        room = end - start if good else 0.56 * (end - start)
        question = fit(one.request.text, language, 11, end - start)
        said = fit(one.answer.text, language, 17, room)
        parts.append(line(near, top + 14, question, language, 11, QUIET, at_end=backwards))
        if said:
            colour = RIGHT if good else WRONG
            parts.append(line(near, top + 34, said, language, 17, colour, at_end=backwards))
        else:
            parts.append(line(near, top + 34, "(no answer)", "en", 14, WRONG, at_end=backwards))
        if not good:
            wanted = fit(one.request.expected, language, 13, 0.42 * (end - start))
            parts.append(line(far, top + 34, wanted, language, 13, QUIET, at_end=not backwards))
    return parts


def _right(task: Task, one: Scored) -> bool:
    return one.score.values[task.metric] == 1


def _mark(x: int, y: int, good: bool) -> str:
    """Draw a check or a cross of 12 pixels around (x, y), as a path since not all fonts have both signs."""
    path = "M-6 0 L-2 5 L6 -6" if good else "M-5 -5 L5 5 M5 -5 L-5 5"
    return (
        f'<path transform="translate({x} {y})" d="{path}" fill="none" stroke-width="2.6" '
        f'stroke-linecap="round" stroke-linejoin="round" stroke="{RIGHT if good else WRONG}"/>'
    )
