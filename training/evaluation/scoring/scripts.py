"""A quick check whether an answer is in its language's script; fidelity.py detects the language itself."""

from __future__ import annotations

import unicodedata

# BCP-47 code -> the scripts in which the language is written, by the beginning of Unicode names.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "en": ("LATIN",),
    "fr": ("LATIN",),
    "es": ("LATIN",),
    "ru": ("CYRILLIC",),
    "zh": ("CJK",),
    "ja": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK"),
    "ar": ("ARABIC",),
    "ur": ("ARABIC",),
    "hi": ("DEVANAGARI",),
    "bn": ("BENGALI",),
}


def in_script(answer: str, language: str) -> bool:
    """Return whether at least half of the answer's letters belong to a script of its language.

    Punctuation, digits and combining marks do not count. An answer without letters is in no script.

    Raises:
        ValueError: no script is known for the language.
    """
    if language not in SCRIPTS:
        raise ValueError(f"language: expected one of {', '.join(SCRIPTS)}, found {language!r}")
    letters = [unicodedata.name(c, "?") for c in answer if unicodedata.category(c).startswith("L")]
    own = sum(name.split(" ")[0] in SCRIPTS[language] for name in letters)
    return bool(letters) and 2 * own >= len(letters)
