"""Which language a text is in: by its script where that decides, by lingua where it does not.

Identification is restricted to the project's languages plus a few distractors: among all 75 languages
of lingua a third of Hindi is called Marathi. Hindi, Bengali, Chinese or Thai are alone in their script
in most projects, so the script decides, hundreds of times faster; lingua is asked among languages that
share one. Chinese and Japanese are told apart by kana and by characters that Japanese does not have.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

# Scripts by their name in Unicode character names, lower case; "han" stands for CJK ideographs and
# "kana" for hiragana and katakana. The 75 languages that lingua knows.
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

# From here on the quick detector is believed.
_CERTAIN = 0.9
# Characters of a text that are looked at: a long word takes the square of its length.
_LOOKED_AT = 20_000

_RENAMED = {"cjk": "han", "hiragana": "kana", "katakana": "kana", "ideographic": "han"}


class _ScriptOf(dict):
    """Script of a character, "" for what has none (digits, punctuation, spaces, symbols)."""

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
    """`pt` of `pt-BR`: what identification can tell apart."""
    return lang.split("-")[0].lower()


def code_of(lang: str) -> str:
    """What identification calls a language: its primary code, and `nb` for `no`, which lingua lacks."""
    code = primary(lang)
    return "nb" if code == "no" else code


def language_name(lang: str) -> str:
    """The English name of a language, its code where lingua has none."""
    from lingua import IsoCode639_1, Language

    code = code_of(lang)
    if code not in SCRIPTS:
        return lang
    return Language.from_iso_code_639_1(IsoCode639_1.from_str(code)).name.title()


def scripts(text: str) -> Counter[str]:
    """Letters and marks of the text by script."""
    counts = Counter(map(_script_of.__getitem__, text))
    del counts[""]
    return counts


def is_japanese_han(text: str) -> bool:
    """Whether all ideographs of the text exist in Japanese (JIS X 0208), as simplified ones do not."""
    for char in text:
        if _script_of[char] == "han":
            try:
                char.encode("shift_jis")
            except UnicodeEncodeError:
                return False
    return True


@dataclass(frozen=True, slots=True)
class Identified:
    """`language` is the best guess, "" if there was too little text; confidences are 0 to 1."""

    language: str
    confidence: float
    expected: float


class Identifier:
    """Tells the languages of a project apart, and from some that a model may answer in by mistake.

    Args:
        languages: BCP-47 codes of the project, source included.
        distractors: more languages a text may turn out to be in.
        least_latin: letters below which a Latin-script text is not identified (short names are the
            same in many languages); for other scripts the limit is `least`.
        scripts: scripts of languages that lingua does not know, such as {"am": ["ethiopic"]}: such a
            language is told by its script alone.

    Raises:
        ValueError: a language that can be told neither by lingua nor by its script.
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
                    f"a language with a script of its own can be named in verification.checks.scripts, "
                    "such as {am: [ethiopic]}"
                )
            self.candidates[code] = found
        self.least, self.least_latin = least, least_latin
        self._codes: dict[object, str] = {}
        # Languages that share a script, and need lingua to be told apart.
        self._sharing: dict[str, list[str]] = {}
        for code, names in self.candidates.items():
            for name in names:
                self._sharing.setdefault(name, []).append(code)
        for script, codes in self._sharing.items():
            unknown = [c for c in codes if c not in SCRIPTS]
            if len(codes) > 1 and unknown and script != "han":
                raise ValueError(
                    f"language {unknown[0]!r} cannot be told from {', '.join(c for c in codes if c != unknown[0])}: "
                    f"lingua does not know it and they share the {script} script; leave one out"
                )
        self._detectors: tuple[Any, Any] | None = None

    @property
    def version(self) -> str:
        return f"lingua {metadata.version('lingua-language-detector')}"

    def _lingua(self) -> tuple[Any, Any]:
        """Detectors by trigrams, and by all n-grams."""
        if self._detectors is None:
            # Imported late: loading it takes a second, and few scripts of a project need it.
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
        """The language of `text`, and how far it may be `lang`. Placeholders should be taken out before."""
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
                # Trigrams take a third of the time, and are never so sure of a wrong language.
                return Identified(best, confidence, confidence)
        expected = next((v.value for v in values if self._codes[v.language] == code), 0.0)
        return Identified(best, confidence, expected)

    def _east_asian(self, text: str, code: str, counts: Counter[str], total: int) -> Identified:
        share = (counts["han"] + counts["kana"]) / total
        # A lone の in Chinese advertising is no Japanese.
        if (counts["kana"] > 1 and counts["kana"] >= 0.1 * counts["han"]) or not counts["han"]:
            return Identified("ja", share, share if code == "ja" else 0.0)
        if code == "ja" and is_japanese_han(text):
            return Identified("ja", share, share)
        return Identified("zh", share, share if code == "zh" else 0.0)
