"""Texts as parsers and metrics compare them: without markup, invisible marks, or variants of a letter."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Scripts that put no spaces between words. Unicode names begin with these.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
# Variants of Arabic letters that Arabic, Urdu and Persian keyboards use for one another, and the letter
# that Russian also writes without its dots.
_VARIANTS = str.maketrans(
    {
        "ي": "ی",
        "ى": "ی",
        "ك": "ک",
        "ه": "ہ",
        "ة": "ہ",
        "أ": "ا",
        "إ": "ا",
        "آ": "ا",
        "ٱ": "ا",
        "ـ": None,
        "ё": "е",
        "Ё": "Е",
    }
    | {chr(mark): None for mark in (*range(0x064B, 0x0653), 0x0670)}
)
_MARKUP = str.maketrans(dict.fromkeys("*`~#", " "))
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_END_OF_THOUGHT = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def without_thought(text: str) -> str:
    """`text` without a reasoning block, closed or cut off."""
    return _END_OF_THOUGHT.sub("", _THOUGHT.sub("", text))


def normalise(text: str) -> str:
    """The form in which answers are compared: NFKC, case folded, single spaces, no end stop."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(" .!?。！？।۔؟\"'«»“”")


def plain(text: str) -> str:
    """NFKC without markup and invisible marks, in small letters, variants of Arabic and Russian letters unified.

    Lines are kept, spaces within them are single.
    """
    return lowered(visible(text))


@lru_cache(maxsize=65536)
def _as_seen(char: str) -> str:
    """A character, "" for an invisible one, a digit of any script as 0 to 9."""
    if char in "\n\t" or unicodedata.category(char) not in ("Cf", "Cc", "Cs"):
        return str(unicodedata.decimal(char)) if char.isdecimal() else char
    return ""


def lowered(text: str) -> str:
    """`text` in small letters, each at its place: a letter that would become two stays."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def visible(text: str) -> str:
    """As `plain`, with upper and lower case kept."""
    text = (
        unicodedata.normalize("NFKC", text)
        .replace("’", "'")
        .translate(_MARKUP)
        .translate(_VARIANTS)
    )
    text = "".join(map(_as_seen, text))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


@lru_cache(maxsize=65536)
def is_word_character(char: str) -> bool:
    """Whether a character is a letter, a digit or a mark on one."""
    return unicodedata.category(char)[0] in "LMN"


@lru_cache(maxsize=65536)
def script_kind(char: str) -> str:
    """The kind of script of a word character: "latin" (digits too), "unspaced" or "other"."""
    name = unicodedata.name(char, "")
    if name.startswith(_UNSPACED):
        return "unspaced"
    return "latin" if name.startswith("LATIN") or unicodedata.category(char)[0] == "N" else "other"


def _joined(text: str, place: int) -> bool:
    """Whether the mark at `place` belongs to a word or number: don't, t-shirt, 3.5."""
    if not 0 < place < len(text) - 1:
        return False
    before, mark, after = text[place - 1], text[place], text[place + 1]
    if mark in ".,":
        return before.isdecimal() and after.isdecimal()
    return mark in "'-" and is_word_character(before) and is_word_character(after)


def at_boundary(text: str, place: int) -> bool:
    """Whether a word may begin or end at `place`: no word, number or compound runs across it.

    Scripts without spaces have a boundary between all characters, and so has a change of script:
    Latin letters stand in Japanese or Bengali without a space.
    """
    if not 0 < place < len(text):
        return True
    before, after = text[place - 1], text[place]
    if is_word_character(before) and is_word_character(after):
        kinds = {script_kind(before), script_kind(after)}
        return len(kinds) > 1 or kinds == {"unspaced"}
    return not (_joined(text, place - 1) or _joined(text, place))


def words(text: str) -> list[tuple[int, int]]:
    """Begin and end of every word: a run of letters, digits and marks of one kind of script."""
    found: list[tuple[int, int]] = []
    begin = None
    for place, char in enumerate(text):
        inside = is_word_character(char) or _joined(text, place)
        if begin is not None:
            changed = inside and is_word_character(char) and is_word_character(text[place - 1])
            if not inside or (changed and script_kind(char) != script_kind(text[place - 1])):
                found.append((begin, place))
                begin = None
        if inside and begin is None:
            begin = place
    if begin is not None:
        found.append((begin, len(text)))
    return found


def clauses(text: str) -> list[str]:
    """The parts of a text between punctuation marks and line ends, with single spaces."""
    kept = (
        char if is_word_character(char) or char == " " or _joined(text, place) else "\n"
        for place, char in enumerate(text)
    )
    parts = (" ".join(part.split()) for part in "".join(kept).split("\n"))
    return [part for part in parts if part]
