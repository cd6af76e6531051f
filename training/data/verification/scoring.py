"""Score translations against references: BLEU with the language's tokenizer, chrF++, paired bootstrap.

Scores are sacrebleu's; their signatures belong to them and are stored. The bootstrap resamples texts,
the same ones for every system, and adds up sacrebleu's statistics of each text: its corpus scores of
the resampled texts, without reading them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

METRICS = ("bleu", "chrf++")
# 13a splits at spaces; on correct Chinese and Japanese it gives 0.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}


@lru_cache
def metric(name: str, lang: str) -> Metric:
    """Return sacrebleu's metric for a language. Raises ValueError for a name not in METRICS."""
    if name == "bleu":
        return BLEU(tokenize=TOKENIZERS.get(lang.split("-")[0], "13a"))
    if name == "chrf++":
        return CHRF(word_order=2)
    raise ValueError(f"metric {name!r}: expected one of {', '.join(METRICS)}")


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Return chrF++ of one text, 0 to 100."""
    return metric("chrf++", "").sentence_score(hypothesis, [reference]).score


@dataclass(frozen=True)
class Estimate:
    """A corpus score (0 to 100), or a difference of two, and the 95 % interval of its bootstrap."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """The lead of the best system over another one.

    p: two-sided, of the paired bootstrap.
    """

    p: float


@dataclass(frozen=True)
class Comparison:
    """Systems on the same texts by one metric.

    winner: `best`, if it is ahead of every other system with p < alpha; else None.
    best_share: of each system, the share of resamples in which it is the best.
    """

    signature: str
    scores: dict[str, Estimate]
    best: str
    winner: str | None
    against: dict[str, Difference]
    best_share: dict[str, float]


def compare(
    name: str,
    lang: str,
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    resamples: int = 1000,
    alpha: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Score systems' translations of the same texts, and find out whether one is the best.

    Raises ValueError where a system has not one translation per reference.
    """
    for system, texts in systems.items():
        if len(texts) != len(references):
            raise ValueError(
                f"{system}: expected {len(references)} translations, found {len(texts)}"
            )
    scorer = metric(name, lang)
    drawn = _resampled(len(references), resamples, seed)
    points: dict[str, float] = {}
    spread: dict[str, np.ndarray] = {}
    for system, texts in systems.items():
        statistics = np.array(scorer._extract_corpus_statistics(list(texts), [list(references)]))
        points[system] = _score(scorer, statistics.sum(0))
        spread[system] = np.array([_score(scorer, row) for row in drawn @ statistics])
    best = max(points, key=lambda system: points[system])
    against = {}
    for system in systems:
        if system != best:
            ahead = spread[best] - spread[system]
            # One more, as if the sample itself were a resample: p is never 0.
            behind = (1 + np.count_nonzero(ahead <= 0)) / (resamples + 1)
            low, high = np.quantile(ahead, (0.025, 0.975))
            difference = points[best] - points[system]
            against[system] = Difference(difference, low, high, min(1.0, 2 * behind))
    tops = np.argmax([spread[system] for system in systems], axis=0)
    return Comparison(
        signature=str(scorer.get_signature()),
        scores={
            system: Estimate(points[system], *np.quantile(spread[system], (0.025, 0.975)).tolist())
            for system in systems
        },
        best=best,
        winner=best if all(each.p < alpha for each in against.values()) and against else None,
        against=against,
        best_share={
            system: float(np.mean(tops == number)) for number, system in enumerate(systems)
        },
    )


def _resampled(texts: int, resamples: int, seed: int) -> np.ndarray:
    """Return (resamples, texts): the number of times each text is drawn."""
    return np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=resamples)


def _score(scorer: Metric, statistics: np.ndarray) -> float:
    return scorer._compute_score_from_stats(statistics.tolist()).score
