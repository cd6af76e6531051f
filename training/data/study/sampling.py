"""Sample captions so that short and long, easy and hard captions are all represented.

The method of the paper's prompt study (arXiv 2412.07112): remove captions that repeat words, then draw
proportionally from bins of length times bins of readability.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?:\s|$)")
_VOWELS = re.compile(r"[aeiouy]+")


def syllables(word: str) -> int:
    """Count the syllables of an English word by its groups of vowels, without a silent final e."""
    word = word.lower()
    silent = word.endswith("e") and not word.endswith(("le", "ee", "ye", "ue", "ie", "oe"))
    return max(1, len(_VOWELS.findall(word)) - silent)


class Readability(NamedTuple):
    """Flesch's reading ease (1948) and the grade of Kincaid et al. (1975), for English.

    ease: 0 to 100 for ordinary texts; higher is easier.
    grade: years of school.
    """

    ease: float
    grade: float


def readability(text: str) -> Readability:
    """Return the readability of a text; a text without words has the easiest values."""
    words = _WORD.findall(text)
    if not words:
        return Readability(206.835, -15.59)
    sentences = max(1, len(_SENTENCE_END.findall(text.strip())))
    per_sentence = len(words) / sentences
    per_word = sum(syllables(word) for word in words) / len(words)
    return Readability(
        ease=206.835 - 1.015 * per_sentence - 84.6 * per_word,
        grade=0.39 * per_sentence + 11.8 * per_word - 15.59,
    )


def repeats_words(text: str) -> bool:
    """Return whether more words repeat than is normal for a text of this length.

    The fraction of repeated words is compared with 0.8 exp(-n / 20) + 0.3 for n words, clipped to
    [0.3, 0.8]: the original's threshold (utils/evaluation_data.py).
    """
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return False
    threshold = np.clip(0.8 * np.exp(-0.05 * len(words)) + 0.3, 0.3, 0.8)
    return bool(1 - len(set(words)) / len(words) > threshold)


@dataclass(frozen=True)
class Sample:
    """The drawn texts, and the texts they were drawn from.

    chosen: ascending indices of the drawn texts.
    repetitive: number of texts removed for repeated words.
    strata: [length bin, readability bin, number of texts, number drawn] of each non-empty bin.
    complexity: complexity of each text, from 0 (easy) to 1; all 0 with a single readability bin.
    """

    chosen: list[int]
    repetitive: int
    strata: list[tuple[int, int, int, int]]
    complexity: np.ndarray


def stratified_sample(
    texts: Sequence[str], size: int, length_bins: int, readability_bins: int, seed: int
) -> Sample:
    """Draw `size` texts over quantile bins of length (characters) and of complexity.

    Complexity is the mean of the Flesch-Kincaid grade and of 1 - reading ease, each scaled to 0-1. Each
    bin gives texts in proportion to its size, rounded by largest remainder.

    Raises:
        ValueError: fewer than `size` texts remain without those that repeat words.
    """
    kept = [i for i, text in enumerate(texts) if not repeats_words(text)]
    if len(kept) < size:
        raise ValueError(
            f"samples: expected at most {len(kept):,}, the captions without the "
            f"{len(texts) - len(kept):,} that repeat words, found {size:,}"
        )
    lengths = np.array([len(texts[i]) for i in kept], dtype=float)
    complexity = np.zeros(len(texts))
    if readability_bins > 1:
        ease, grade = np.array([readability(texts[i]) for i in kept]).T
        complexity[kept] = (_scaled(grade) + 1 - _scaled(ease)) / 2
    by_length = np.digitize(lengths, _edges(lengths, length_bins)).tolist()
    own = complexity[kept]
    by_reading = np.digitize(own, _edges(own, readability_bins)).tolist()
    members: dict[tuple[int, int], list[int]] = {}
    for index, length, reading in zip(kept, by_length, by_reading, strict=True):
        members.setdefault((length, reading), []).append(index)
    names = sorted(members)
    counts = _allotted([len(members[name]) for name in names], size)
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for name, count in zip(names, counts, strict=True):
        chosen += random.choice(members[name], size=count, replace=False).tolist()
    strata = [(*name, len(members[name]), count) for name, count in zip(names, counts, strict=True)]
    return Sample(sorted(chosen), len(texts) - len(kept), strata, complexity)


def _scaled(values: np.ndarray) -> np.ndarray:
    spread = values.max() - values.min()
    return (values - values.min()) / spread if spread else np.zeros_like(values)


def _edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Return the inner edges of quantile bins; fewer if quantiles are equal."""
    return np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1]))


def _allotted(counts: Sequence[int], size: int) -> list[int]:
    """Distribute `size` in proportion to `counts`, no share above its count."""
    total = sum(counts)
    exact = [size * count / total for count in counts]
    shares = Counter({i: int(share) for i, share in enumerate(exact)})
    order = sorted(range(len(counts)), key=lambda i: (int(exact[i]) - exact[i], i))
    for i in order[: size - sum(shares.values())]:
        shares[i] += 1
    return [shares[i] for i in range(len(counts))]
