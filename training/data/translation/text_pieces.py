"""Split a text into pieces to translate and pieces to keep: `<image>`, code, and text without letters."""

import re
from dataclasses import dataclass

# Fenced code up to its closing fence, or to the end of the text without one.
_KEPT = re.compile(r"<image>|```.*?(?:```|\Z)", re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]+`")


@dataclass(frozen=True)
class Piece:
    """A piece of text; `language` says whether to translate it."""

    text: str
    language: bool


def split(text: str) -> list[Piece]:
    """Split a text into pieces, in order; joined they equal the text.

    Spaces and line breaks around a translated piece are separate pieces that stay unchanged.
    """
    pieces: list[Piece] = []
    end = 0
    for kept in _KEPT.finditer(text):
        pieces += _language(text[end : kept.start()])
        pieces.append(Piece(kept.group(), False))
        end = kept.end()
    return pieces + _language(text[end:])


def lost_code(source: str, text: str) -> list[str]:
    """Return inline code (`between backquotes`) of the source that is missing from the text."""
    return [code for code in _INLINE_CODE.findall(source) if code not in text]


def _language(text: str) -> list[Piece]:
    inside = text.strip()
    if not any(c.isalpha() for c in inside):
        return [Piece(text, False)] if text else []
    start = text.index(inside)
    around = (text[:start], inside, text[start + len(inside) :])
    return [Piece(piece, piece is inside) for piece in around if piece]
