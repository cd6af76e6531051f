"""Text of strangers in messages: one line, bounded, without control characters."""

from __future__ import annotations

import unicodedata

# Longest error message of a command, in characters.
LONGEST = 500


def printable(text: str) -> str:
    """`text` with control characters, separators and lone surrogates written as escapes.

    A terminal or a page then shows them and does nothing else. Marks that Arabic, Indic and emoji
    sequences need (the zero-width joiner and non-joiner) stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        letter if _harmless(letter) else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def _harmless(letter: str) -> bool:
    if letter in "\u200c\u200d":
        return True
    # Cc: control, Cf: invisible formats such as directions, Cs: surrogates, Zl and Zp: line ends.
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def one_line(text: str, longest: int = LONGEST) -> str:
    """`text` as one printable line of at most `longest` characters; what is cut out is the middle."""
    if len(text) > 20 * longest:
        # Megabytes are not looked through for what is not shown.
        text = f"{text[: 10 * longest]} {text[-10 * longest :]}"
    line = printable(" ".join(text.split()))
    if len(line) <= longest:
        return line
    # The beginning names the file, the end what to do.
    head = (longest - 5) * 2 // 3
    return f"{line[:head]} ... {line[head + 5 - longest :]}"
