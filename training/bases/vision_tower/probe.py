"""Scores of a tower on the validation styles: of its heads, and of probes fitted to its features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .dataset import Dataset
from .network import TowerWithHeads, read_before_last, read_classes, read_features


@torch.no_grad()
def score_classes(model: TowerWithHeads, dataset: Dataset) -> dict[str, float]:
    """Score the first part's heads on all seen concepts."""
    concept, category = dataset.validation.concept, dataset.category
    classes = read_classes(model, dataset.validation.pixels)
    mean = model.mean_norm(classes.mean(1))
    logits = model.concept(mean)
    first_patch = model.patch_concept(model.patch_norm(classes[:, 0]))
    return _rounded(
        {
            "code_top1": top(model.code(mean), concept, 1),
            "top1": top(logits, concept, 1),
            "top5": top(logits, concept, 5),
            "first_patch_top1": top(first_patch, concept, 1),
            "category": top(model.category(mean), category[concept], 1),
            "category_of_top1": _share(category[logits.argmax(1)] == category[concept]),
        }
    )


@torch.no_grad()
def score_codes(
    model: TowerWithHeads,
    dataset: Dataset,
    languages: list[str],
    features: list[list[list[int]]],
) -> dict[str, float]:
    """Score codes and captions on all seen concepts.

    The class heads are not scored, because the second part rescales the stream that their norms expect.

    Args:
        features: [concepts][languages], n-gram buckets of the captions; empty without a caption.
    """
    concept = dataset.validation.concept
    before_last = read_before_last(model, read_classes(model, dataset.validation.pixels))
    cosines = model.code.cosines(before_last.mean(1))
    pictures = model.embed(before_last)
    scores = {
        "code_top1": top(cosines, concept, 1),
        "code_cosine": float(cosines.gather(1, concept[:, None]).mean()),
    }
    for number, language in enumerate(languages):
        named = [row for row, captions in enumerate(features) if captions[number]]
        captions = model.captions([features[row][number] for row in named])
        similarity = pictures @ F.normalize(captions, dim=-1).T
        column = torch.full((len(features),), -1).index_put(
            (torch.tensor(named),), torch.arange(len(named))
        )[concept]
        has_name = column >= 0
        scores[f"caption_top5_{language}"] = top(similarity[has_name], column[has_name], 5)
    return _rounded(scores)


def probe(tower: PreTrainedModel, dataset: Dataset) -> dict[str, float]:
    """Score how well two probes, fitted to the train styles, read concepts from hidden_states[-2].

    `linear_*` is a linear classifier on the mean over patches, fitted with AdamW for 300 full passes.
    `centroid_*` compares this mean, standardized, with each concept's mean over the train styles by
    cosine. Scores are for the validation styles.
    """
    train = read_features(tower, dataset.train.pixels).mean(1)
    validation = read_features(tower, dataset.validation.pixels).mean(1)
    scale = float(train.std())
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, validation = (train - mean) / deviation, (validation - mean) / deviation
    concept, right = dataset.train.concept, dataset.validation.concept

    sums = torch.zeros(len(dataset.concepts), train.shape[1]).index_add_(
        0, concept, F.normalize(train, dim=1)
    )
    near = F.normalize(validation, dim=1) @ F.normalize(sums, dim=1).T

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(train.shape[1], len(dataset.concepts))
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.03, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(linear(train), concept, label_smoothing=0.1).backward()
        optimizer.step()
    with torch.no_grad():
        logits = linear(validation)
    category = dataset.category
    scores = {
        "linear_top1": top(logits, right, 1),
        "linear_top5": top(logits, right, 5),
        "linear_category": _share(category[logits.argmax(1)] == category[right]),
        "centroid_top1": top(near, right, 1),
        "centroid_top5": top(near, right, 5),
        "feature_std": scale,
    }
    return _rounded(scores)


def top(scores: Tensor, right: Tensor, count: int) -> float:
    """Return the share of rows whose right column is among the `count` highest."""
    above = (scores > scores.gather(1, right[:, None])).sum(1)
    return _share(above < count)


def _share(hits: Tensor) -> float:
    return float(hits.float().mean())


def _rounded(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in scores.items()}
