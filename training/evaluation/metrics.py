"""Proportions with the intervals that belong to them, and how answers are compared."""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

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


class Interval(NamedTuple):
    """A value with its 95 % interval [low, high]."""

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


def proportion(values: Sequence[float]) -> Interval:
    """The share of ones among zeros and ones, with Wilson's interval; ValueError if there is none."""
    return Interval(sum(values) / max(1, len(values)), *wilson(int(sum(values)), len(values)))


def mean(values: Sequence[tuple[str, float]], seed: int = 0, *, resamples: int = 2000) -> Interval:
    """Mean of (item, value) pairs, with a bootstrap over items.

    Where no item has two values and all are 0 or 1, the interval is Wilson's.
    """
    alone = len({item for item, _ in values}) == len(values)
    if alone and all(value in (0, 1) for _, value in values):
        return proportion([value for _, value in values])
    return mean_of_languages({"": values}, resamples=resamples, seed=seed)


def mean_of_languages(
    values: Mapping[str, Sequence[tuple[str, float]]], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Unweighted mean of the languages' means, with a bootstrap over items.

    `values` gives, for each language, (item, value) pairs. The same item is asked about in every
    language, so answers are not independent: whole items are drawn with replacement, which keeps
    that dependence. Raises ValueError if a language has no value.
    """
    languages = list(values)
    empty = [language for language in languages if not values[language]]
    if empty or not languages:
        raise ValueError(f"no answers in {', '.join(empty) or 'any language'}: nothing to average")
    items = sorted({item for pairs in values.values() for item, _ in pairs})
    index = {item: i for i, item in enumerate(items)}
    total = np.zeros((len(items), len(languages)))
    asked = np.zeros_like(total)
    for column, language in enumerate(languages):
        for item, value in values[language]:
            total[index[item], column] += value
            asked[index[item], column] += 1
    weights = _draws(len(items), resamples, seed)
    drawn = weights @ asked
    with np.errstate(invalid="ignore"):
        means = np.nanmean(np.where(drawn > 0, (weights @ total) / drawn, np.nan), axis=1)
    low, high = map(float, np.nanpercentile(means, [2.5, 97.5]))
    # Where all are 0 or all are 1, drawing them again shows no spread: take that of the items.
    if {value for pairs in values.values() for _, value in pairs} in ({0}, {1}):
        low, high = wilson(len(items) if total.sum() else 0, len(items))
    return Interval(float((total.sum(0) / asked.sum(0)).mean()), low, high)


@lru_cache(maxsize=4)
def _draws(items: int, resamples: int, seed: int) -> np.ndarray:
    """How often each item is drawn when all are drawn again with replacement: [resamples, items]."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(items, np.full(items, 1 / items), size=resamples).astype(float)


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
