"""Text of strangers in messages: one line, bounded, without control characters; and in spreadsheets."""

from __future__ import annotations

import re
import unicodedata

# Longest error message of a command, in characters.
LONGEST = 500
# Spreadsheets look for a formula behind spaces and quotes too, and take full-width forms for the others.
_FORMULA = re.compile(
    r"[\s\"'`‘’“”«»\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060\ufeff]*[=+\-@＝＋－＠﹦﹢﹣﹫]|"
    r"[\s\"'`]*[\t\r]"
)


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


def found(value: object) -> str:
    """A value of others in a few printable words: `a number 7`, `text 'abc'`, `a list of 2`, `nothing`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"a truth value {value}"
    if isinstance(value, str):
        return f"text {printable(repr(value if len(value) <= 60 else f'{value[:57]}...'))}"
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{len(value):,} bytes"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value):,}"
    if isinstance(value, dict):
        return one_line(f"a mapping of {', '.join(map(str, value)) or 'nothing'}", 80)
    kind = "a number" if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    return one_line(f"{kind} {value}", 80)


def shown(value: object) -> str:
    """A value of others as Python writes it, printable and cut where it is long."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def reason(error: BaseException) -> str:
    """What an error says in one line, with what caused it, which libraries often leave unsaid."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(said) < 8:
        text = " ".join(str(cause).split()) or type(cause).__name__
        if not any(text in other for other in said):
            said.append(text)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return one_line(": ".join(said))


def inert(text: str) -> str:
    """`text` for a spreadsheet's cell, with an apostrophe before it where it would be run as a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def original(text: str) -> str:
    """The text that `inert` made this cell of: original(inert(text)) == text."""
    rest = text.removeprefix("'")
    return rest if rest != text and _FORMULA.match(rest) else text
