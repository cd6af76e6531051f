"""Retrieval: whether the caption nearest to a validation image is its own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..vision_tower.dataset import Dataset
from ..vision_tower.network import normalize
from ..vision_tower.probe import top
from .captions import Captions
from .network import TwoTowers


@torch.no_grad()
def score_retrieval(
    model: TwoTowers, dataset: Dataset, captions: Captions, languages: list[str]
) -> dict[str, float]:
    """Score each validation image against the captions of all concepts, language by language.

    Returns:
        `retrieval_top1_LANG` and `retrieval_top5_LANG`, shares of images whose own caption is the
        nearest or among the five nearest; without `_LANG`, their means over languages.
    """
    pictures = torch.cat(
        [
            model.get_image_features(pixel_values=normalize(part.float() / 255)).pooler_output
            for part in dataset.validation.pixels.split(256)
        ]
    )
    pictures, concept = F.normalize(pictures, dim=-1), dataset.validation.concept
    scores: dict[str, float] = {}
    for number, language in enumerate(languages):
        similarity = pictures @ embed_captions(model, captions.ids[:, number]).T
        # Concepts without a name in the language are neither asked for nor offered.
        named = captions.named[:, number]
        similarity = similarity[named[concept]].masked_fill(~named, -2.0)
        for count in (1, 5):
            share = top(similarity, concept[named[concept]], count)
            scores[f"retrieval_top{count}_{language}"] = share
    means = {}
    for count in (1, 5):
        found = [scores[f"retrieval_top{count}_{language}"] for language in languages]
        means[f"retrieval_top{count}"] = sum(found) / len(found)
    return {name: round(value, 4) for name, value in {**means, **scores}.items()}


@torch.no_grad()
def embed_captions(model: TwoTowers, ids: Tensor) -> Tensor:
    """Map captions, int64 [n, text_length], to vectors of unit length, float [n, width]."""
    parts = [model.get_text_features(input_ids=part).pooler_output for part in ids.split(512)]
    return F.normalize(torch.cat(parts), dim=-1)
