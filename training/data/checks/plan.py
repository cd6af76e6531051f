"""The checks by name, which of them reject, and their thresholds: plan data."""

import math
from dataclasses import dataclass, field

from ...common.schema import Bounds

# Every check, and what its flag says.
CHECKS = {
    "empty": "no text",
    "finish_reason": "the server did not stop by itself: cut off, or filtered",
    "language": "another language, clearly",
    "language_unsure": "perhaps another language",
    "script": "most letters are of another script",
    "kept_words": "words of the source left as they are, as names and models may be",
    "stray_script": "some letters of a script that neither language uses",
    "mixed_language": "a part left in the source language or in English",
    "copy": "the source, untranslated",
    "copy_name": "the source as it stands, but it may be a name",
    "length": "much longer or shorter than such texts are",
    "length_extreme": "longer or shorter than any such text is",
    "loop": "the same words again and again",
    "repeated": "words repeated more than in the source",
    "preface": "talks about the translation before giving it",
    "refusal": "refuses, or apologises",
    "about_translation": "speaks of translating, or as a model, where the source does not",
    "note": "a remark after the translation",
    "colon": "a colon that the source has not, as after a title or before a remark",
    "aside": "brackets that the source has not, as around a remark",
    "extra_sentence": "more sentences than the source",
    "extra_lines": "more lines than the source",
    "quoted": "in quotation marks that the source has not",
    "brackets": "answer brackets left in",
    "markup": "markup or chat tokens that the source has not",
    "placeholder": "not the image placeholders of the source",
    "numbers": "numbers of the source are missing",
    "end_mark": "no end mark, though the source has one",
    "dangling": "ends on a word that ends no sentence",
    # Of the translator, which keeps code as it stands, and of the verification of a whole build.
    "code": "code of the source is missing",
    "same_start": "begins as many texts do whose sources have nothing in common",
    "same_end": "ends as many texts do whose sources have nothing in common",
    "quality": "scored low by the quality-estimation model",
    "quality_failed": "the quality-estimation model could not score it",
}
HARD = (
    "empty",
    "finish_reason",
    "language",
    "script",
    "mixed_language",
    "copy",
    "length_extreme",
    "loop",
    "preface",
    "refusal",
    "about_translation",
    "note",
    "extra_lines",
    "brackets",
    "placeholder",
    "code",
)

# log(characters of the language / characters of English): median and spread, measured on interface
# strings and names; good until the build's own rows are calibrated (the step verify).
LENGTHS: dict[str, tuple[float, float]] = {
    "en": (0.0, 0.10),
    "zh": (math.log(0.25), 0.33),
    "ja": (math.log(0.32), 0.50),
    "ru": (math.log(1.00), 0.32),
    "hi": (math.log(0.98), 0.20),
    "fr": (math.log(1.18), 0.23),
    "es": (math.log(1.19), 0.22),
    "ar": (math.log(0.82), 0.22),
    "bn": (math.log(0.95), 0.25),
    "ur": (math.log(0.95), 0.25),
}


@dataclass(frozen=True)
class Flag:
    """One check that fired on one text."""

    name: str
    hard: bool
    detail: str


@dataclass(frozen=True)
class LengthBin:
    """Length of translations of sources of at least `least` characters (up to the next bin).

    median, spread: of log(characters of translation / characters of source), robust.
    """

    least: int
    median: float
    spread: float
    rows: int = 0


@dataclass(frozen=True)
class CheckPlan:
    """Section `verification.checks` of a plan.

    > Parameters that say what a flag does

    hard: checks whose flags make a row be retried and then rejected; the others are soft.
    off: checks that are not made at all.

    > Parameters of language identification

    distractors: languages beside the project's in which an answer may be.
    scripts: scripts of languages that lingua does not know, such as {am: [ethiopic]}.
    least_letters, least_latin_letters: shorter texts are not identified.
    language_confidence, language_expected: with at least this confidence in another language and at
        most this in the expected one, a text is in another language.
    language_unsure: below this confidence in the expected language, and with twice as much in another,
        it may be.
    script_share: least share of letters in the language's scripts, above 0.

    > Parameters of the other checks

    length_z, length_extreme_z: robust standard deviations of the log length ratio.
    length_extreme_characters: what a text must lack or have too much, in characters of the source, to
        be extreme; 0 for a ratio alone.
    lengths: a language's bins of length instead of the defaults.
    mixed_share: share of the words in another language from which on a mixed text is rejected.
    brackets: the pair that a translator's prompt asks for; neither may be left in an answer.
    phrases: files of phrases for more languages, or instead of the shipped ones: {sw: path}.
    """

    hard: tuple[str, ...] = HARD
    off: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ("pt", "it", "de", "ko", "uk", "fa", "ur", "bn")
    scripts: dict[str, list[str]] = field(default_factory=dict)
    least_letters: int = 2
    least_latin_letters: int = 12
    language_confidence: float = 0.5
    language_expected: float = 0.02
    language_unsure: float = 0.25
    script_share: float = 0.5
    length_z: float = 3.0
    length_extreme_z: float = 6.0
    length_extreme_characters: int = 20
    lengths: dict[str, list[LengthBin]] = field(default_factory=dict)
    mixed_share: float = 0.25
    brackets: tuple[str, ...] = ("〘", "〙")
    phrases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("hard", "off"):
            for name in getattr(self, key):
                if name not in CHECKS:
                    raise ValueError(
                        f"verification.checks.{key}: no check {name!r}; checks: {', '.join(CHECKS)}"
                    )
        for key in ("script_share", "mixed_share"):
            Bounds(above=0, most=1).check(getattr(self, key), "verification.checks", key)
        for lang, bins in self.lengths.items():
            starts = [b.least for b in bins]
            if not bins or starts[0] != 0 or starts != sorted(set(starts)):
                raise ValueError(
                    f"verification.checks.lengths.{lang}: bins must begin at 0 and rise, found {starts}"
                )
            if any(b.spread <= 0 for b in bins):
                raise ValueError(f"verification.checks.lengths.{lang}: spread must be above 0")


DEFAULTS = CheckPlan()
