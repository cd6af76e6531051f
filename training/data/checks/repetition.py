"""Find loops: a decoder that fails repeats the same words."""

import re
from collections import Counter

# A unit of at least three characters three times in a row, or a shorter unit four times.
_LOOP = re.compile(r"(?P<long>.{3,60}?)(?P=long){2,}|(?P<short>\S{1,2}?)(?P=short){3,}", re.S)
_WINDOW = 600
_EDGES = " .,;:!?…。，、；：！？।۔\"'”’»）)』」*-–—"


def _find_loop(text: str) -> re.Match[str] | None:
    """Return a loop at the end of the text, or anywhere in a text with many repeats."""
    # Match backwards: a loop that was cut off at any point is complete from its end.
    loop = _LOOP.match(text.rstrip(_EDGES)[: -_WINDOW - 1 : -1])
    if loop is None and len(text) > 12:
        tail = text[-_WINDOW:]
        pieces = len(tail) - 5
        if len({tail[i : i + 6] for i in range(pieces)}) < 0.75 * pieces:
            loop = _LOOP.search(tail)
    # Ignore digits and short rows of dots or dashes, which may repeat.
    if loop and (any(map(str.isalpha, loop.group())) or len(loop.group()) >= 6):
        return None if loop.group().isdigit() else loop
    return None


def find_repetition(source: str, text: str) -> tuple[str, str] | None:
    """Return the check's name, "loop" or "repeated", and its evidence; None without unusual repetition.

    Repetition that the source also contains is allowed.
    """
    loop = _find_loop(text)
    if loop and not _find_loop(source):
        unit = loop["long"] or loop["short"]
        size, copies = len(loop.group()), len(loop.group()) // len(unit)
        certain = size >= 20 or (copies > 3 if loop["long"] else size >= 8)
        certain = certain and any(map(str.isalpha, unit))
        unit = unit if unit in text else unit[::-1]
        return ("loop" if certain else "repeated", f"{unit.strip()[:40]!r} {copies} times")
    words = text.split()
    half = len(words) // 2
    if (
        len(words) >= 8
        and words[:half] == words[-half:]
        and source.split()[:half] != source.split()[-half:]
    ):
        return ("loop", "the text twice")
    if len(words) >= 20:
        share, before = _repeats(words), _repeats(source.split())
        if share > 0.3 and share > before + 0.2:
            return ("loop", f"{share:.0%} of its four-word sequences are repeated")
    return None


def _repeats(words: list[str]) -> float:
    """Return the fraction of four-word sequences that repeat an earlier one."""
    grams = Counter(tuple(words[i : i + 4]) for i in range(len(words) - 3))
    total = sum(grams.values())
    return 1 - len(grams) / total if total else 0.0
