"""Proportions with the intervals that belong to them, and how answers are compared."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution

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


class Score(TypedDict):
    """A proportion `value = correct / n` with its 95 % interval [low, high]."""

    n: int
    correct: int
    value: float
    low: float
    high: float


class Mean(TypedDict):
    """The unweighted mean of several languages' proportions, with a 95 % interval."""

    languages: list[str]
    concepts: int
    n: int
    value: float
    low: float
    high: float


def wilson(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion: right at 0 and 1 too, unlike the normal one.

    Raises ValueError unless 0 <= correct <= n and n > 0.
    """
    if n <= 0 or not 0 <= correct <= n:
        raise ValueError(f"a proportion needs 0 <= correct <= n and n > 0, got {correct} of {n}")
    p = correct / n
    centre = p + Z95**2 / (2 * n)
    spread = Z95 * np.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    return max(0.0, float((centre - spread) / scale)), min(1.0, float((centre + spread) / scale))


def proportion(right: Sequence[bool]) -> Score:
    """Score of a sequence of right and wrong answers; ValueError if it is empty."""
    correct, n = sum(right), len(right)
    low, high = wilson(correct, n)
    return {"n": n, "correct": correct, "value": correct / n, "low": low, "high": high}


def mean_of_languages(
    right: Mapping[str, Sequence[tuple[str, bool]]], *, resamples: int = 2000, seed: int = 0
) -> Mean:
    """Mean of the languages' proportions, with a bootstrap over concepts.

    `right` gives, for each language, (concept, answered rightly) pairs. The same picture is asked
    about in every language, so answers are not independent: whole concepts are drawn with
    replacement, which keeps that dependence. Raises ValueError if a language has no answer.
    """
    languages = list(right)
    empty = [language for language in languages if not right[language]]
    if empty or not languages:
        raise ValueError(f"no answers in {', '.join(empty) or 'any language'}: nothing to average")
    concepts = sorted({concept for pairs in right.values() for concept, _ in pairs})
    index = {concept: i for i, concept in enumerate(concepts)}
    correct = np.zeros((len(concepts), len(languages)))
    asked = np.zeros_like(correct)
    for column, language in enumerate(languages):
        for concept, is_right in right[language]:
            correct[index[concept], column] += is_right
            asked[index[concept], column] += 1
    rng = np.random.default_rng(seed)
    # Drawing concepts with replacement is drawing how often each one is taken: [resamples, concepts]
    weights = rng.multinomial(
        len(concepts), np.full(len(concepts), 1 / len(concepts)), size=resamples
    )
    drawn = weights @ asked
    with np.errstate(invalid="ignore"):
        values = np.nanmean(np.where(drawn > 0, (weights @ correct) / drawn, np.nan), axis=1)
    low, high = map(float, np.nanpercentile(values, [2.5, 97.5]))
    # Where all answers are alike, drawing them again shows no spread: take that of the concepts.
    if correct.sum() in (0, asked.sum()):
        low, high = wilson(len(concepts) if correct.sum() else 0, len(concepts))
    return {
        "languages": languages,
        "concepts": len(concepts),
        "n": int(asked.sum()),
        "value": float((correct.sum(0) / asked.sum(0)).mean()),
        "low": low,
        "high": high,
    }


def normalise(text: str) -> str:
    """The form in which answers are compared: NFKC, case folded, single spaces, no end stop."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(" .!?。！？।۔؟\"'«»“”")


def same_answer(answer: str, expected: str) -> bool:
    """Exact match after `normalise`; an empty answer never matches."""
    return normalise(answer) != "" and normalise(answer) == normalise(expected)


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
