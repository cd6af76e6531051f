"""Scores of a trained model: greedy exact match by probe and language."""

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CohereForCausalLM

from .corpus import Corpus, Segment
from .network import answer_loss

SOFT = "a soft context"
PROBES = (
    "name from the pivot name",
    "name from another language's name",
    "name from keywords",
    f"name from {SOFT}",
    "category from the pivot name",
    f"category from {SOFT}",
    "yes/no from the pivot name",
    f"yes/no from {SOFT}",
    "keywords from the pivot name",
)


@torch.no_grad()
def score(
    model: CohereForCausalLM, corpus: Corpus, soft: Tensor, concepts: list[int], seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """Score greedy exact match: {probe: {language: {"exact": share, "n": questions}}}.

    An answer counts only if each of its tokens, including the end of turn, is the most probable token
    given those before it. Exactly such answers come out of greedy decoding. Yes/no questions state every
    concept's own name and one confusable name. Soft contexts have half of the training's largest noise,
    and no mixture. A model trained without soft contexts is not scored on them.
    """
    rng = np.random.default_rng((seed, 3))
    probes = [p for p in PROBES if corpus.recipe.soft_contexts or not p.endswith(SOFT)]
    right: dict[str, dict[str, list[bool]]] = {p: defaultdict(list) for p in probes}
    for probe in probes:
        rows = _rows(corpus, probe, concepts, rng)
        for start in range(0, len(rows), 32):
            batch = corpus.batch(rows[start : start + 32])
            _, logits, _ = answer_loss(model, corpus, batch, soft, seed + start)
            hit = (logits.argmax(-1) == batch.target).long()
            whole = torch.ones(len(batch.segments), dtype=torch.long)
            whole.scatter_reduce_(0, batch.group, hit, "amin")
            for segment, good in zip(batch.segments, whole.tolist(), strict=True):
                right[probe][segment.lang].append(bool(good))
    return {
        probe: {
            lang: {"exact": float(np.mean(found)), "n": len(found)}
            for lang, found in sorted(by.items(), key=lambda x: corpus.languages.index(x[0]))
        }
        for probe, by in right.items()
    }


def _rows(
    corpus: Corpus, probe: str, concepts: list[int], rng: np.random.Generator
) -> list[tuple[list[int], Any, list[Segment]]]:
    """Build a probe's rows for `Corpus.batch`: two per concept, each asking in half of the languages."""
    task, _, source = probe.partition(" from ")
    task = {"yes/no": "yesno"}.get(task, task)
    rows = []
    for concept in concepts:
        near = corpus.concepts.confusable[concept]
        wrong = near[rng.integers(len(near))]
        named = rng.permutation(corpus.languages_of(concept)).tolist()
        for langs in (named[: len(named) // 2], named[len(named) // 2 :]):
            context, described = _context(corpus, source, concept, langs, named, rng)
            segments = [
                corpus.segment(task, concept, x, rng, about)
                for x in langs
                for about in ((concept, wrong) if task == "yesno" else (None,))
                if about is None or corpus.named[x][about]
            ]
            if segments:
                rows.append((context, described, segments))
    return rows


def _context(
    corpus: Corpus,
    source: str,
    concept: int,
    langs: list[str],
    named: list[str],
    rng: np.random.Generator,
) -> tuple[list[int], Any]:
    """Return a context's tokens and, if it is soft, the content of its slots as from `Corpus._soft`.

    Args:
        source: the part of the probe's name after "from".
        langs: languages of the questions.
        named: all languages in which the concept has a name.
    """
    recipe, slots = corpus.recipe, corpus.recipe.context_slots
    if source == SOFT:
        noise: np.ndarray = np.full(slots + 1, 0.5 * recipe.soft_slot_noise, np.float32)
        noise[-1] = 0.5 * recipe.soft_shared_noise
        weights = np.tile(np.array([[1.0, 0.0]], np.float32), (slots, 1))
        context = [corpus.tokenizer.unk_token_id] * slots
        return context, ([concept, concept], weights, noise)
    lang, kind = recipe.pivot, "pivot"
    if source == "another language's name":
        others = [x for x in named if x not in langs] or langs
        lang = others[rng.integers(len(others))]
    elif source == "keywords":
        lang, kind = langs[0], "keywords"
    return corpus.context(kind, concept, lang, rng), None


def score_table(scores: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format the scores in percent as a text table, one row per probe and one column per language."""
    langs = list(next(iter(scores.values())))
    lines = [f"{'exact match, %':36s}" + "".join(f"{x:>6s}" for x in [*langs, "mean", "n"])]
    for probe, by in scores.items():
        values = [100 * by[lang]["exact"] for lang in langs]
        cells = "".join(f"{v:6.1f}" for v in [*values, float(np.mean(values))])
        lines.append(f"{probe:36s}{cells}{sum(int(b['n']) for b in by.values()):6d}")
    return "\n".join(lines)
