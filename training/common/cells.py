"""Text of strangers in the cells of a spreadsheet: what one would run as a formula is made inert.

original(inert(text)) == text
"""

from __future__ import annotations

import re

# Spreadsheets look for a formula behind spaces and quotes too, and take full-width forms for the others.
_FORMULA = re.compile(
    r"[\s\"'`‘’“”«»\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060\ufeff]*[=+\-@＝＋－＠﹦﹢﹣﹫]|"
    r"[\s\"'`]*[\t\r]"
)


def inert(text: str) -> str:
    """`text` with an apostrophe before it where a spreadsheet would run it."""
    return f"'{text}" if _FORMULA.match(text) else text


def original(text: str) -> str:
    """The text that `inert` made this cell of."""
    rest = text.removeprefix("'")
    return rest if rest != text and _FORMULA.match(rest) else text
