"""The third part: the last layer and the pooling head learn from captions, as SigLIP does."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .network import read_before_last
from .probe import score_codes
from .run import TowerRun


def train_captions(run: TowerRun, lower: Tensor, concept: Tensor) -> None:
    """Train the third part, and score the codes and captions.

    Args:
        lower, concept: what `train_codes` returns.
    """
    recipe, model, tower = run.recipe, run.model, run.model.tower
    stored = read_before_last(model, lower).half()
    last = nn.ModuleList([tower.encoder.layers[-1], tower.head, tower.post_layernorm])
    heads = [model.captions, model.picture_projection, model.log_scale, model.bias]
    rates = (recipe.contrastive_matrix_learning_rate, recipe.contrastive_learning_rate)
    loss = partial(_contrastive_loss, run, stored, concept)
    run.fit("contrastive", recipe.contrastive_steps, rates, last, heads, len(stored), loss)
    run.average = {name: value.clone() for name, value in model.state_dict().items()}
    scores = score_codes(run.averaged(), run.dataset, recipe.languages, run.features)
    run.evaluations.append({"code_step": recipe.code_steps, **scores})
    print(
        "codes  validation  " + "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
    )


def _contrastive_loss(
    run: TowerRun, stored: Tensor, concepts: Tensor, rows: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """SigLIP's loss of pictures against one caption each, in a language drawn for each."""
    model, concept, features = run.model, concepts[rows], []
    draws = torch.rand(len(rows), generator=generator).tolist()
    for number, draw in zip(concept.tolist(), draws, strict=True):
        named = [caption for caption in run.features[number] if caption]
        features.append(named[int(draw * len(named))])
    captions = F.normalize(model.captions(features), dim=-1)
    similarity = model.embed(stored[rows].float()) @ captions.T
    pair_logits = similarity * model.log_scale.exp() + model.bias
    # Two pictures of one concept in a batch both go with both captions.
    target = (concept[:, None] == concept[None]).float() * 2 - 1
    contrastive = -F.logsigmoid(target * pair_logits).sum() / len(rows)
    return contrastive, {"contrastive": contrastive}
