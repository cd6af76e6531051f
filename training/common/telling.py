"""Make untrusted text safe: one bounded printable line for messages, no formulas in spreadsheets."""

from __future__ import annotations

import re
import unicodedata

# Longest error message of a command, in characters.
LONGEST = 500
# Spreadsheets skip spaces and quotes before a formula, and accept full-width signs too.
_FORMULA = re.compile(
    r"[\s\"'`‘’“”«»\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060\ufeff]*[=+\-@＝＋－＠﹦﹢﹣﹫]|"
    r"[\s\"'`]*[\t\r]"
)


def printable(text: str) -> str:
    """Return `text` with control characters, separators and lone surrogates as escapes.

    Terminals and pages then show these characters and do not act on them. The zero-width joiner and
    non-joiner stay, because Arabic, Indic and emoji sequences need them.
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
    # Cc: control, Cf: invisible format (text direction), Cs: surrogate, Zl and Zp: line separators.
    return unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return `text` as one printable line of at most `longest` characters, cut in the middle."""
    if len(text) > 20 * longest:
        # Drop the middle of very long texts first; it will not be shown.
        text = f"{text[: 10 * longest]} {text[-10 * longest :]}"
    line = printable(" ".join(text.split()))
    if len(line) <= longest:
        return line
    # The start names the file, the end says what to do.
    head = (longest - 5) * 2 // 3
    return f"{line[:head]} ... {line[head + 5 - longest :]}"


def found(value: object) -> str:
    """Describe a value in a few printable words: `a number 7`, `text 'abc'`, `a list of 2`, `nothing`."""
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
    """Return a value's `repr`, printable and cut to 60 characters."""
    text = printable(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def reason(error: BaseException) -> str:
    """Return the messages of an error and of its causes in one line; libraries often omit the cause."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(said) < 8:
        text = " ".join(str(cause).split()) or type(cause).__name__
        if not any(text in other for other in said):
            said.append(text)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return one_line(": ".join(said))


def inert(text: str) -> str:
    """Return `text` for a spreadsheet cell, with an apostrophe before anything that would be a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def original(text: str) -> str:
    """Return the text that `inert` changed: original(inert(text)) == text."""
    rest = text.removeprefix("'")
    return rest if rest != text and _FORMULA.match(rest) else text
