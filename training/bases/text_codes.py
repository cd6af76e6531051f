"""Fixed vectors ("codes") of concepts, computed from their captions and shared by both mini bases.

Aya-23 and SigLIP fit together in Maya because both have learned from the same web: one can say what the
other can see. Two tiny models trained separately on 1,300 concepts share nothing, and a projector trained
for minutes cannot connect them alone. So both mini bases train against one fixed text encoder, a bag of
hashed character n-grams over a concept's names in all languages. The vision tower learns to move its
features towards the code of what it sees. The language model learns to read noisy codes at the positions of
image tokens. Neither base is trained on the other, and no weight of the encoder is learned or shipped.
However, the tower's memory layers (vision_tower/memory.py) are initialized from the codes of its training
concepts.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

BUCKETS = 16384


def ngram_buckets(text: str) -> list[int]:
    """Return bucket numbers of a text's character 2- to 4-grams, equal on every machine."""
    marked = f"^{text.casefold()}$"
    grams = {marked[i : i + n] for n in (2, 3, 4) for i in range(max(1, len(marked) - n + 1))}
    digests = (hashlib.blake2b(gram.encode(), digest_size=4).digest() for gram in sorted(grams))
    return [int.from_bytes(digest, "little") % BUCKETS for digest in digests]


def concept_codes(
    names: list[list[str | None]], category: list[str], width: int, category_share: float = 0.2
) -> Tensor:
    """Compute one code per concept, far from all others: float32 [concepts, width], rows of RMS 1.

    n-grams are weighted by rarity, projected at random, and whitened (ZCA: unlike principal components it
    has no free signs, so every machine gets the same codes). Concepts of one category share a random
    direction with `category_share` of a code's energy.

    Args:
        names: [concepts][languages]; None or "" if a language has no name.
        category: [concepts].
        width: length of a code, less than the number of concepts.

    Raises:
        ValueError: if a concept has no name in any language.
    """
    counts = torch.zeros(len(names), BUCKETS, dtype=torch.float64)
    for row, spoken in enumerate(names):
        if not any(spoken):
            raise ValueError(
                f"text codes: concept number {row}: expected a name in a language, found none"
            )
        for name in spoken:
            for bucket in ngram_buckets(name) if name else ():
                counts[row, bucket] += 1
    rarity = torch.log(len(names) / (counts > 0).sum(0).clamp(min=1).double())
    weighted = F.normalize(counts.sqrt() * rarity, dim=1)
    generator = torch.Generator().manual_seed(0)
    projected = weighted @ torch.randn(BUCKETS, width, generator=generator, dtype=torch.float64)
    projected = projected - projected.mean(0)
    values, vectors = torch.linalg.eigh(projected.T @ projected / len(names))
    floor = 1e-3 * values[-1]
    white = projected @ vectors @ torch.diag((values.clamp(min=0) + floor).rsqrt()) @ vectors.T
    kinds = sorted(set(category))
    shared = torch.randn(len(kinds), width, generator=generator, dtype=torch.float64)
    own = torch.tensor([kinds.index(kind) for kind in category])
    codes = math.sqrt(1 - category_share) * F.normalize(white, dim=1) + math.sqrt(
        category_share
    ) * F.normalize(shared[own], dim=1)
    return (F.normalize(codes, dim=1) * math.sqrt(width)).float()
