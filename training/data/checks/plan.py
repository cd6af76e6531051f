"""The plan of the checks: their names, which of them reject a row, and their thresholds."""

import math
from dataclasses import dataclass, field

from ...common.schema import Bounds

# Check -> meaning of its flag.
CHECKS = {
    "empty": "no text",
    "finish_reason": "the server reported another end than stop: cut off, or filtered",
    "language": "another language, clearly",
    "language_unsure": "perhaps another language",
    "script": "most letters belong to another script",
    "kept_words": "source words kept unchanged, which is right for names and models",
    "stray_script": "some letters of a script that neither language uses",
    "mixed_language": "a part is still in the source language or in English",
    "copy": "the untranslated source",
    "copy_name": "equal to the source, but possibly a name",
    "length": "unusually long or short",
    "length_extreme": "longer or shorter than any correct text",
    "loop": "the same words again and again",
    "repeated": "more repeated words than the source",
    "preface": "talks about the translation before giving it",
    "refusal": "refuses or apologises",
    "about_translation": "mentions translating or being a model, and the source does not",
    "note": "a remark after the translation",
    "colon": "a colon that the source does not have, as after a title or before a remark",
    "aside": "brackets that the source does not have, as around a remark",
    "extra_sentence": "more sentences than the source",
    "extra_lines": "more lines than the source",
    "quoted": "in quotation marks that the source does not have",
    "brackets": "contains the answer brackets of the prompt",
    "markup": "markup or chat tokens that the source does not have",
    "placeholder": "image placeholders differ from the source",
    "numbers": "numbers of the source are missing",
    "end_mark": "no end mark, but the source has one",
    "dangling": "ends with a word that cannot end a sentence",
    # `code` is a check of the translator, which keeps code unchanged; the others need a whole build.
    "code": "code of the source is missing",
    "same_start": "begins like many texts with unrelated sources",
    "same_end": "ends like many texts with unrelated sources",
    "quality": "low score of the quality-estimation model",
    "quality_failed": "no score from the quality-estimation model",
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

# log(characters of the language / characters of English) as (median, spread), measured on interface
# strings and names. The step verify replaces them by values from the build's own rows.
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
    """Lengths of translations whose source has at least `least` characters (up to the next bin).

    median, spread: robust median and spread of log(characters of translation / characters of source).
    """

    least: int
    median: float
    spread: float
    rows: int = 0


@dataclass(frozen=True)
class CheckPlan:
    """Section `verification.checks` of a plan.

    > Parameters for flags

    hard: checks whose flag makes the translator retry and then rejects the row; other checks are soft.
    off: checks that do not run.

    > Parameters for language identification

    distractors: further languages that an answer may be in.
    scripts: scripts of languages that lingua does not know, for example {am: [ethiopic]}.
    least_letters, least_latin_letters: minimum letters of a text for identification.
    language_confidence, language_expected: a text is in another language if the confidence in that
        language is at least the first and the confidence in the expected language at most the second.
    language_unsure: a text may be in another language if the confidence in the expected language is
        below this value and less than half of the other's.
    script_share: minimum fraction of letters in the language's scripts, above 0.

    > Parameters for the other checks

    length_z, length_extreme_z: robust standard deviations of the log length ratio.
    length_extreme_characters: minimum deviation of an extreme length, in characters of the source; 0
        uses the ratio alone.
    lengths: length bins of a language, to replace the defaults.
    mixed_share: minimum fraction of words in another language that rejects a mixed text.
    brackets: the bracket pair that a translator's prompt asks for; an answer must not contain either.
    phrases: files of phrases for further languages, or to replace shipped ones: {sw: path}.
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
                        f"verification.checks.{key}: expected one of {', '.join(CHECKS)}, found {name!r}"
                    )
        for key in ("script_share", "mixed_share"):
            Bounds(above=0, most=1).check(getattr(self, key), "verification.checks", key)
        for lang, bins in self.lengths.items():
            starts = [b.least for b in bins]
            if not bins or starts[0] != 0 or starts != sorted(set(starts)):
                raise ValueError(
                    f"verification.checks.lengths.{lang}: expected bins that begin at 0 and rise, found {starts}"
                )
            if any(b.spread <= 0 for b in bins):
                raise ValueError(f"verification.checks.lengths.{lang}: spread: expected above 0")


DEFAULTS = CheckPlan()
