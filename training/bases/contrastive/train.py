"""Train a small vision tower and a text tower of its own on images and captions, and keep the first.

The tower meets words only through the captions of its images, as SigLIP and CLIP do: no text code and no
concept label is a target, and nothing in it is shaped for a decoder. A Maya that is built on it and on a
decoder of text only (recipes/bases/apart_language_model.yaml) has to align two models that have not met.

`loss: sigmoid` trains transformers' SiglipModel with the pairwise sigmoid loss (Zhai et al., 2023,
arXiv:2303.15343), `loss: softmax` its CLIPModel, whose vision tower has a class token, with the softmax
loss over images and captions (Radford et al., 2021, arXiv:2103.00020). Both losses take every other caption
of a batch for wrong, so a batch has each concept at most once. A caption is a concept's name in a random
language. Concepts that the dataset holds out (seen = False) are in no batch and not in the tokenizer's texts.
Matrices inside the layers are updated with Muon (Jordan et al., 2024), everything else with AdamW.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..image_run import ImageRun, print_data
from ..muon import Muon
from ..vision_tower.dataset import Dataset, read_dataset
from ..vision_tower.network import whiten_patches
from ..vision_tower.probe import probe
from .captions import draw_captions, read_captions
from .network import TwoTowers, build_towers, pair_loss
from .probe import score_retrieval
from .recipe import WHERE, ContrastiveRecipe

# Radford et al., section 2.5: the scale is kept at 100 or less.
MAX_LOG_SCALE = math.log(100.0)


class ContrastiveRun(ImageRun):
    """One run, from new weights; `ImageRun` explains how it continues an earlier one."""

    recipe: ContrastiveRecipe
    model: TwoTowers

    def __init__(self, recipe: ContrastiveRecipe, dataset: Dataset, output_dir: Path) -> None:
        if recipe.batch_size > len(dataset.concepts):
            raise ValueError(
                f"{WHERE}: batch_size: expected at most {len(dataset.concepts)}, the number of concepts, "
                f"because a batch has each concept once, found {recipe.batch_size}"
            )
        super().__init__(recipe, dataset, output_dir)
        self.captions = read_captions(dataset, recipe)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = build_towers(recipe, self.captions.tokenizer)
        generator = self.generator(0, 0)
        rows = torch.randperm(len(dataset.train.pixels), generator=generator)[:1500]
        whiten_patches(model.vision_model, self.redrawn(rows, 0.5, generator), generator)
        self.begin(model)
        # Training images in the order of their concepts, and where each concept's begin and end.
        self._rows = dataset.train.concept.argsort(stable=True)
        self._count = torch.bincount(dataset.train.concept, minlength=len(dataset.concepts))
        self._start = self._count.cumsum(0) - self._count

    def averaged(self) -> TwoTowers:
        """Return a copy of the model with the averaged weights, for evaluation."""
        with torch.random.fork_rng(devices=[]):
            model = build_towers(self.recipe, self.captions.tokenizer)
        model.load_state_dict(self.average)
        return model.eval()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices of the layers of both towers, and AdamW for everything else."""
        recipe = self.recipe
        named = list(self.model.named_parameters())
        matrices = [p for name, p in named if ".layers." in name and p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [
            Muon(matrices, recipe.matrix_learning_rate, recipe.weight_decay, iterations=4),
            torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98)),
        ]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the current step's batch. Every epoch is one shuffle of all concepts.

        Returns:
            Concepts, int64 [batch], all different; their augmented images, float [batch, 3, size, size]
            from -1 to 1; and their captions, int64
            [captions_per_image, batch, text_length].
        """
        size, count = self.recipe.batch_size, len(self.dataset.concepts)
        epoch, place = divmod(self.step, count // size)
        order = torch.randperm(count, generator=self.generator(1, epoch))
        concepts = order[place * size : (place + 1) * size]
        generator = self.generator(2, self.step)
        draw = torch.rand(size, generator=generator) * self._count[concepts]
        rows = self._rows[self._start[concepts] + draw.long()]
        count = self.recipe.captions_per_image
        captions = draw_captions(self.captions, concepts, count, generator)
        return concepts, self.redrawn(rows, self.strength, generator), captions

    def losses(self) -> dict[str, Tensor]:
        """Return the loss of the current step, the mean over its captions, and the share found."""
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=MAX_LOG_SCALE)
        _, pixels, captions = self.batch()
        pictures = self.model.get_image_features(pixel_values=pixels).pooler_output
        texts = self.model.get_text_features(input_ids=captions.flatten(0, 1)).pooler_output
        parts = [pair_loss(self.model, pictures, each) for each in texts.split(len(pictures))]
        losses, found = (torch.stack(each).mean() for each in zip(*parts, strict=True))
        return {"contrastive": losses, "accuracy": found}


def train_contrastive(recipe: ContrastiveRecipe, output_dir: Path) -> Path:
    """Train both towers, save the vision tower in `output_dir`, and return that folder.

    The folder gets config.json, model.safetensors, preprocessor_config.json, the resolved recipe.yaml
    and metrics.json. During training it also holds the state of the run; the same call continues from
    it, a call with a changed recipe does not.

    Raises:
        FileNotFoundError: if the dataset does not exist.
        ValueError: if recipe or dataset are bad, or output_dir holds the state of another run.
    """
    run = ContrastiveRun(recipe, read_dataset(recipe, WHERE), Path(output_dir))
    _print_parts(run)

    def scores() -> dict[str, float]:
        return score_retrieval(run.averaged(), run.dataset, run.captions, recipe.languages)

    rates = (recipe.matrix_learning_rate, recipe.learning_rate)
    run.train_steps(run.optimizers(), rates, run.losses, scores)
    retrieval = run.evaluations[-1]

    def metrics(tower: PreTrainedModel) -> dict[str, Any]:
        return {
            "what": f"{type(tower).__name__}, trained with a text tower of its own; scores are shares of "
            "pictures whose concept, category or caption is found",
            "loss": recipe.loss,
            "stored_weights": probe(tower, run.dataset),
            "retrieval_before_storing": retrieval,
            "captions_cut": run.captions.cut,
        }

    return run.save_tower("contrastive", run.averaged().vision_model, metrics)


def _print_parts(run: ContrastiveRun) -> None:
    vision = run.model.vision_model.num_parameters()
    rest = sum(p.numel() for p in run.model.parameters()) - vision
    print(f"vision tower {vision:>12,}  saved")
    print(f"text tower   {rest:>12,}  training only")
    print(f"{run.captions.cut} of {int(run.captions.named.sum())} captions are cut to text_length")
    print_data(run)
