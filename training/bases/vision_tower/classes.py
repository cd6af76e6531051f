"""The first part of training: the lower layers learn to classify the concepts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..muon import Muon
from ..storing import set_rates
from .network import TowerWithHeads
from .probe import score_classes
from .recipe import VisionTowerRecipe
from .run import Means, TowerRun, update


def train_classes(run: TowerRun) -> None:
    """Train the first part to its end, resuming from the state in the run's folder if there is one.

    Raises:
        ValueError: if the state belongs to another run, or the loss is not finite.
    """
    recipe, model = run.recipe, run.model
    optimizers = _optimizers(model, recipe)
    peaks = (recipe.matrix_learning_rate, recipe.learning_rate)
    parameters = list(model.parameters())
    run.resume(optimizers)
    means = Means()
    while run.step < recipe.steps:
        # Forward, backward, update.
        model.train()
        losses = class_losses(run)
        accuracy = losses.pop("accuracy")
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise ValueError(
                f"step {run.step}: expected a finite loss, found {loss.item()}: lower learning_rate and "
                "matrix_learning_rate in the recipe"
            )
        rate = min(
            1.0,
            (run.step + 1) / max(1, recipe.warmup_steps),
            (recipe.steps - run.step) / max(1, recipe.cooldown_steps),
        )
        set_rates(optimizers, peaks, rate)
        update(optimizers, loss, parameters)
        run.update_average()
        run.step += 1
        means.add({**losses, "accuracy": accuracy, "loss": loss})

        # Log, evaluate, save.
        last = run.step == recipe.steps
        if run.step % recipe.log_every == 0 or last:
            run.write_log("step", run.step, recipe.steps, means.take())
        if run.step % recipe.evaluate_every == 0 or last:
            scores = score_classes(run.averaged(), run.dataset)
            run.evaluations.append({"step": run.step, **scores})
            shown = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
            print(f"step {run.step}/{recipe.steps}  validation  {shown}", flush=True)
        if run.step % recipe.save_every == 0 or last:
            run.save_state(optimizers)


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
    concepts, size, ramp = (
        run.dataset.train.concept,
        run.recipe.batch_size,
        run.recipe.augmentation_ramp,
    )
    places = range(run.step * size, (run.step + 1) * size)
    epochs = {place // len(concepts) for place in places}
    orders = {e: torch.randperm(len(concepts), generator=run.generator(1, e)) for e in epochs}
    rows = torch.stack([orders[place // len(concepts)][place % len(concepts)] for place in places])
    strength = min(1.0, 0.15 + 0.85 * run.step / ramp) if ramp else 1.0
    return run.redrawn(rows, strength, run.generator(2, run.step)), concepts[rows]
