"""Identify the language of a text, by its script if that decides, otherwise with lingua.

Candidates are the project's languages and a few distractors: with all 75 languages of lingua, a third of
Hindi is identified as Marathi. In most projects Hindi, Bengali, Chinese or Thai have a script to themselves;
then the script decides, hundreds of times faster. Lingua decides among languages that share a script. Kana,
and characters that Japanese does not have, distinguish Japanese from Chinese.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

# Script -> its languages, for the 75 languages that lingua knows. Scripts have their lower-case name in
# Unicode character names; "han" means CJK ideographs, "kana" means hiragana and katakana.
_SCRIPTS = {
    "latin": "af az bs ca cs cy da de en eo es et eu fi fr ga hr hu id is it la lg lt lv mi ms nb "
    "nl nn pl pt ro sk sl sn so sq st sv sw tl tn tr ts vi xh yo zu",
    "cyrillic": "be bg kk mk mn ru sr uk",
    "arabic": "ar fa ur",
    "devanagari": "hi mr",
    "armenian": "hy",
    "bengali": "bn",
    "georgian": "ka",
    "greek": "el",
    "gujarati": "gu",
    "gurmukhi": "pa",
    "hangul": "ko",
    "han": "zh",
    "hebrew": "he",
    "tamil": "ta",
    "telugu": "te",
    "thai": "th",
}
SCRIPTS: dict[str, tuple[str, ...]] = {
    lang: (script,) for script, langs in _SCRIPTS.items() for lang in langs.split()
}
SCRIPTS["ja"] = ("kana", "han")

# Minimum confidence at which the fast detector's result is accepted.
_CERTAIN = 0.9
# Maximum characters that lingua reads: a long word takes quadratic time.
_LOOKED_AT = 20_000

_RENAMED = {"cjk": "han", "hiragana": "kana", "katakana": "kana", "ideographic": "han"}


class _ScriptOf(dict):
    """Character -> script; "" for characters without one (digits, punctuation, spaces, symbols)."""

    def __missing__(self, char: str) -> str:
        script = ""
        if unicodedata.category(char)[0] in "LM":
            words = unicodedata.name(char, "").lower().replace("-", " ").split()
            if words and words[0] in ("halfwidth", "fullwidth", "modifier"):
                words = words[1:]
            script = _RENAMED.get(words[0], words[0]) if words else ""
            if script in ("combining", "variation", "letter", "masculine", "feminine"):
                script = ""
        self[char] = script
        return script


_script_of = _ScriptOf()


def primary(lang: str) -> str:
    """Return the primary subtag, `pt` of `pt-BR`: identification does not distinguish regions."""
    return lang.split("-")[0].lower()


def code_of(lang: str) -> str:
    """Return the code that identification uses: the primary subtag, but `nb` for `no`, which lingua lacks."""
    code = primary(lang)
    return "nb" if code == "no" else code


def language_name(lang: str) -> str:
    """Return the English name of a language; its code if lingua does not know it."""
    from lingua import IsoCode639_1, Language

    code = code_of(lang)
    if code not in SCRIPTS:
        return lang
    return Language.from_iso_code_639_1(IsoCode639_1.from_str(code)).name.title()


def scripts(text: str) -> Counter[str]:
    """Count the letters and marks of the text by script."""
    counts = Counter(map(_script_of.__getitem__, text))
    del counts[""]
    return counts


def is_japanese_han(text: str) -> bool:
    """Return whether all ideographs of the text exist in Japanese (JIS X 0208); simplified ones do not."""
    for char in text:
        if _script_of[char] == "han":
            try:
                char.encode("shift_jis")
            except UnicodeEncodeError:
                return False
    return True


@dataclass(frozen=True, slots=True)
class Identified:
    """An identified language: `language` is the best guess, "" for too little text; confidences are 0 to 1."""

    language: str
    confidence: float
    expected: float


class Identifier:
    """Identify a text's language among those of a project and a few distractors.

    Args:
        languages: BCP-47 codes of the project, including the source language.
        distractors: further languages that a text may be in, by a model's mistake.
        least: minimum letters for identification in other scripts than Latin.
        least_latin: minimum letters in Latin script, where short names look alike in many languages.
        scripts: scripts of languages that lingua does not know, for example {"am": ["ethiopic"]}. Only the
            script identifies such a language.

    Raises:
        ValueError: neither lingua nor a script can identify a language.
    """

    def __init__(
        self,
        languages: Sequence[str],
        distractors: Sequence[str] = (),
        *,
        least: int = 2,
        least_latin: int = 12,
        scripts: Mapping[str, Sequence[str]] | None = None,
    ):
        extra = {code_of(lang): tuple(names) for lang, names in (scripts or {}).items()}
        self.candidates: dict[str, tuple[str, ...]] = {}
        for lang in (*languages, *distractors):
            code = code_of(lang)
            found = extra.get(code) or SCRIPTS.get(code)
            if not found:
                raise ValueError(
                    f"language {lang!r} cannot be identified: lingua knows {' '.join(sorted(SCRIPTS))}; "
                    f"for a language that has a script to itself, name the script in "
                    "verification.checks.scripts, for example {am: [ethiopic]}"
                )
            self.candidates[code] = found
        self.least, self.least_latin = least, least_latin
        self._codes: dict[object, str] = {}
        # Script -> languages that share it; lingua has to distinguish them.
        self._sharing: dict[str, list[str]] = {}
        for code, names in self.candidates.items():
            for name in names:
                self._sharing.setdefault(name, []).append(code)
        for script, codes in self._sharing.items():
            unknown = [c for c in codes if c not in SCRIPTS]
            if len(codes) > 1 and unknown and script != "han":
                raise ValueError(
                    f"language {unknown[0]!r} cannot be distinguished from {', '.join(c for c in codes if c != unknown[0])}: "
                    f"lingua does not know it and they share the {script} script; remove one"
                )
        self._detectors: tuple[Any, Any] | None = None

    @property
    def version(self) -> str:
        return f"lingua {metadata.version('lingua-language-detector')}"

    def _lingua(self) -> tuple[Any, Any]:
        """Return two detectors: trigrams only (fast), and all n-grams."""
        if self._detectors is None:
            # Import late: loading takes a second, and only shared scripts need it.
            from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

            known = [
                Language.from_iso_code_639_1(IsoCode639_1.from_str(code))
                for code in self.candidates
                if code in SCRIPTS
            ]
            self._codes = {one: one.iso_code_639_1.name.lower() for one in known}
            builder = LanguageDetectorBuilder.from_languages(*known)
            self._detectors = (
                LanguageDetectorBuilder.from_languages(*known).with_low_accuracy_mode().build(),
                builder.build(),
            )
        return self._detectors

    def identify(self, text: str, lang: str, counts: Counter[str] | None = None) -> Identified:
        """Identify the language of `text`.

        Args:
            text: the text; remove placeholders first.
            lang: the expected language; the result has its confidence too.
            counts: result of `scripts` for the text, if known.
        """
        code = code_of(lang)
        counts = scripts(text) if counts is None else counts
        total = sum(counts.values())
        if not total:
            return Identified("", 0.0, 0.0)
        script, letters = max(counts.items(), key=lambda item: item[1])
        share = letters / total
        if script in ("han", "kana"):
            if total < self.least:
                return Identified("", 0.0, 0.0)
            return self._east_asian(text, code, counts, total)
        if total < (self.least_latin if script == "latin" else self.least):
            return Identified("", 0.0, 0.0)
        sharing = self._sharing.get(script, [])
        if not sharing:
            return Identified("und", share, 0.0)
        if len(sharing) == 1:
            return Identified(sharing[0], share, share if sharing[0] == code else 0.0)
        for detector in self._lingua():
            values = detector.compute_language_confidence_values(text[:_LOOKED_AT])
            best, confidence = self._codes[values[0].language], values[0].value
            if best == code and confidence >= _CERTAIN:
                # Trigrams take a third of the time, and never reach this confidence for a wrong language.
                return Identified(best, confidence, confidence)
        expected = next((v.value for v in values if self._codes[v.language] == code), 0.0)
        return Identified(best, confidence, expected)

    def _east_asian(self, text: str, code: str, counts: Counter[str], total: int) -> Identified:
        share = (counts["han"] + counts["kana"]) / total
        # A single の in Chinese advertising is not Japanese.
        if (counts["kana"] > 1 and counts["kana"] >= 0.1 * counts["han"]) or not counts["han"]:
            return Identified("ja", share, share if code == "ja" else 0.0)
        if code == "ja" and is_japanese_han(text):
            return Identified("ja", share, share)
        return Identified("zh", share, share if code == "zh" else 0.0)
