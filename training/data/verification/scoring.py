"""Score translations against references: BLEU with the language's tokenizer, chrF++, paired bootstrap.

The scores are sacrebleu's, and sacrebleu's signature is stored with them. The bootstrap resamples texts, the
same for every system, and sums sacrebleu's statistics of each text: this gives sacrebleu's corpus score of
the resampled texts without processing them again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

METRICS = ("bleu", "chrf++")
# The tokenizer 13a splits at spaces, and gives 0 for correct Chinese and Japanese.
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}


@lru_cache
def metric(name: str, lang: str) -> Metric:
    """Return sacrebleu's metric for a language; raise ValueError for a name that is not in METRICS."""
    if name == "bleu":
        return BLEU(tokenize=TOKENIZERS.get(lang.split("-")[0], "13a"))
    if name == "chrf++":
        return CHRF(word_order=2)
    raise ValueError(f"metric: expected one of {', '.join(METRICS)}, found {name!r}")


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Return chrF++ of one text (0 to 100)."""
    return metric("chrf++", "").sentence_score(hypothesis, [reference]).score


@dataclass(frozen=True)
class Estimate:
    """A corpus score (0 to 100) or a difference of two, with the bootstrap's 95 % interval."""

    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """The lead of the best system over another system.

    p: two-sided p-value of the paired bootstrap.
    """

    p: float


@dataclass(frozen=True)
class Comparison:
    """The comparison of systems on the same texts by one metric.

    winner: `best` if it leads every other system with p < alpha, else None.
    best_share: system -> fraction of resamples in which it is the best.
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
    """Score systems' translations of the same texts, and test whether one system is the best.

    Args:
        name: name of the metric, one of METRICS.
        lang: language of the translations.
        systems: system -> its translations.
        references: reference of each text.
        resamples: number of resamples.
        alpha: a winner needs p below this value.
        seed: seed of the bootstrap.

    Raises:
        ValueError: a system does not have one translation per reference.
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
            # Add one, as if the sample itself were a resample, so that p is never 0.
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
    """Return how often each text is drawn, as (resamples, texts)."""
    return np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=resamples)


def _score(scorer: Metric, statistics: np.ndarray) -> float:
    return scorer._compute_score_from_stats(statistics.tolist()).score
