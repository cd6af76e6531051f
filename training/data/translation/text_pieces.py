"""Split a text into pieces to translate and pieces to keep: `<image>`, code, and text without letters."""

import re
from dataclasses import dataclass

# Fenced code up to its fence, or to the end of the text where that is missing.
_KEPT = re.compile(r"<image>|```.*?(?:```|\Z)", re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True)
class Piece:
    """A piece of text; `language` says whether to translate it."""

    text: str
    language: bool


def split(text: str) -> list[Piece]:
    """Return the pieces of a text, in order; joined they are the text.

    Spaces and line breaks around a piece of language are pieces of their own, kept as they are.
    """
    pieces: list[Piece] = []
    end = 0
    for kept in _KEPT.finditer(text):
        pieces += _language(text[end : kept.start()])
        pieces.append(Piece(kept.group(), False))
        end = kept.end()
    return pieces + _language(text[end:])


def lost_code(source: str, text: str) -> list[str]:
    """Return inline code (`between backquotes`) of the source that the text lacks."""
    return [code for code in _INLINE_CODE.findall(source) if code not in text]


def _language(text: str) -> list[Piece]:
    inside = text.strip()
    if not any(c.isalpha() for c in inside):
        return [Piece(text, False)] if text else []
    start = text.index(inside)
    around = (text[:start], inside, text[start + len(inside) :])
    return [Piece(piece, piece is inside) for piece in around if piece]
