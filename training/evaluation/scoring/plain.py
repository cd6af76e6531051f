"""Text normalisation for parsers and metrics: no markup, no invisible characters, no variants of a letter."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Scripts without spaces between words, by the beginning of their Unicode names.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
# Variants of Arabic letters that Arabic, Urdu and Persian keyboards interchange, and ё, which Russian also
# writes without its dots.
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
    """Return `text` without a reasoning block, closed or cut off."""
    return _END_OF_THOUGHT.sub("", _THOUGHT.sub("", text))


def normalise(text: str) -> str:
    """Return the form in which answers are compared: NFKC, case folded, single spaces, no end stop."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(" .!?。！？।۔؟\"'«»“”")


def plain(text: str) -> str:
    """Return NFKC text without markup and invisible characters, in lower case, with unified letter variants.

    Lines are kept, with single spaces between words. The variants are those of Arabic and Russian letters.
    """
    return lowered(visible(text))


@lru_cache(maxsize=65536)
def _as_seen(char: str) -> str:
    """Return a character, "" for an invisible one, and a digit of any script as 0 to 9."""
    if char in "\n\t" or unicodedata.category(char) not in ("Cf", "Cc", "Cs"):
        return str(unicodedata.decimal(char)) if char.isdecimal() else char
    return ""


def lowered(text: str) -> str:
    """Return `text` in lower case with unchanged length: a letter whose lower case is two characters stays."""
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def visible(text: str) -> str:
    """Return the form of `plain` with its case kept."""
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
    """Return whether a character is a letter, a digit or a combining mark."""
    return unicodedata.category(char)[0] in "LMN"


@lru_cache(maxsize=65536)
def script_kind(char: str) -> str:
    """Return the kind of script of a word character: "latin" (digits too), "unspaced" or "other"."""
    name = unicodedata.name(char, "")
    if name.startswith(_UNSPACED):
        return "unspaced"
    return "latin" if name.startswith("LATIN") or unicodedata.category(char)[0] == "N" else "other"


def _joined(text: str, place: int) -> bool:
    """Return whether the mark at `place` is part of a word or number: don't, t-shirt, 3.5."""
    if not 0 < place < len(text) - 1:
        return False
    before, mark, after = text[place - 1], text[place], text[place + 1]
    if mark in ".,":
        return before.isdecimal() and after.isdecimal()
    return mark in "'-" and is_word_character(before) and is_word_character(after)


def at_boundary(text: str, place: int) -> bool:
    """Return whether a word may begin or end at `place`: no word, number or compound runs across it.

    Scripts without spaces have a boundary between any two characters. A change of script is a boundary too:
    Japanese or Bengali text has Latin letters without a space.
    """
    if not 0 < place < len(text):
        return True
    before, after = text[place - 1], text[place]
    if is_word_character(before) and is_word_character(after):
        kinds = {script_kind(before), script_kind(after)}
        return len(kinds) > 1 or kinds == {"unspaced"}
    return not (_joined(text, place - 1) or _joined(text, place))


def words(text: str) -> list[tuple[int, int]]:
    """Return begin and end of every word: a run of letters, digits and marks of one kind of script."""
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
    """Return the parts of a text between punctuation marks and line ends, with single spaces."""
    kept = (
        char if is_word_character(char) or char == " " or _joined(text, place) else "\n"
        for place, char in enumerate(text)
    )
    parts = (" ".join(part.split()) for part in "".join(kept).split("\n"))
    return [part for part in parts if part]
