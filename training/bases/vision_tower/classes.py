"""The first part of training: the lower layers learn to classify the concepts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..muon import Muon
from .network import TowerWithHeads
from .probe import score_classes
from .recipe import VisionTowerRecipe
from .run import TowerRun


def train_classes(run: TowerRun) -> None:
    """Train the first part to its end, resuming from the state in the run's folder if there is one.

    Raises:
        ValueError: if the state belongs to another run, or the loss is not finite.
    """
    recipe = run.recipe
    run.train_steps(
        _optimizers(run.model, recipe),
        (recipe.matrix_learning_rate, recipe.learning_rate),
        lambda: class_losses(run),
        lambda: score_classes(run.averaged(), run.dataset),
    )


def _optimizers(model: TowerWithHeads, recipe: VisionTowerRecipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the class layers' matrices, and AdamW for the other parameters of the first part."""
    later = [
        *model.tower.encoder.layers[model.class_layers :].parameters(),
        *model.tower.head.parameters(),
        *model.tower.post_layernorm.parameters(),
        *model.captions.parameters(),
        *model.picture_projection.parameters(),
        model.log_scale,
        model.bias,
    ]
    layers = model.tower.encoder.layers[: model.class_layers]
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in [*later, *matrices]}
    others = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [
        Muon(matrices, recipe.matrix_learning_rate, recipe.weight_decay, iterations=4),
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98)),
    ]


def class_losses(run: TowerRun) -> dict[str, Tensor]:
    """Return the weighted losses of the current step, and the accuracy of the concept head."""
    recipe, model = run.recipe, run.model
    smoothing = recipe.label_smoothing
    pixels, concept = _batch(run)
    generator = run.generator(3, run.step)
    classes = model.classes(pixels)
    mean = model.mean_norm(classes.mean(1))
    logits = model.concept(mean)
    losses = {"concept": F.cross_entropy(logits, concept, label_smoothing=smoothing)}
    which = torch.randint(classes.shape[1], (len(concept),), generator=generator)
    patch = model.patch_norm(classes[torch.arange(len(concept)), which])
    losses["patch"] = recipe.patch_loss_weight * F.cross_entropy(
        model.patch_concept(patch), concept, label_smoothing=smoothing
    )
    losses["code"] = recipe.code_loss_weight * F.cross_entropy(
        model.code(torch.cat([mean, patch])), concept.repeat(2), label_smoothing=smoothing
    )
    losses["category"] = recipe.category_loss_weight * F.cross_entropy(
        model.category(mean), run.dataset.category[concept]
    )
    losses["accuracy"] = (logits.argmax(1) == concept).float().mean().detach()
    return losses


def _batch(run: TowerRun) -> tuple[Tensor, Tensor]:
    """Return the current step's images, float [batch, 3, size, size] from -1 to 1, and their concepts.

    Every epoch is one shuffle of all training images.
    """
    concepts, size = run.dataset.train.concept, run.recipe.batch_size
    places = range(run.step * size, (run.step + 1) * size)
    epochs = {place // len(concepts) for place in places}
    orders = {e: torch.randperm(len(concepts), generator=run.generator(1, e)) for e in epochs}
    rows = torch.stack([orders[place // len(concepts)][place % len(concepts)] for place in places])
    return run.redrawn(rows, run.strength, run.generator(2, run.step)), concepts[rows]
