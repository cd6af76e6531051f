"""Whether an answer is in the script of its language: a quick look, where fidelity.py detects the language."""

from __future__ import annotations

import unicodedata

# The scripts in which an answer in each language is written.
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
    """Whether at least half of the answer's letters are of a script of its language.

    Punctuation, digits and combining marks do not count; an answer without letters is not in any
    script. Raises ValueError for a language without a known script.
    """
    if language not in SCRIPTS:
        raise ValueError(f"no script known for language {language!r}; known: {', '.join(SCRIPTS)}")
    letters = [unicodedata.name(c, "?") for c in answer if unicodedata.category(c).startswith("L")]
    own = sum(name.split(" ")[0] in SCRIPTS[language] for name in letters)
    return bool(letters) and 2 * own >= len(letters)
