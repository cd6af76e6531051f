"""The run of this tower: its model with the training heads, and the fitting of its later parts."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..image_run import ImageRun, Means, update
from ..muon import Muon
from ..storing import set_rates
from ..text_codes import concept_codes, ngram_buckets
from .dataset import Dataset
from .network import TowerWithHeads, whiten_patches
from .recipe import WHERE, VisionTowerRecipe


class TowerRun(ImageRun):
    """One run of the three parts; the steps of `ImageRun` are those of the first part.

    Attributes:
        features: [concepts][languages], n-gram buckets of the captions; empty without a caption.
    """

    recipe: VisionTowerRecipe
    model: TowerWithHeads

    def __init__(self, recipe: VisionTowerRecipe, dataset: Dataset, output_dir: Path) -> None:
        if recipe.memory_layers * recipe.intermediate_size < len(dataset.concepts):
            raise ValueError(
                f"{WHERE}: memory_layers: expected {recipe.memory_layers} memory_layers of {recipe.intermediate_size} "
                f"units (intermediate_size) to hold {len(dataset.concepts)} concepts: raise one of the "
                "two"
            )
        super().__init__(recipe, dataset, output_dir)
        category = [dataset.categories[number] for number in dataset.category.tolist()]
        codes = concept_codes(dataset.captions, category, recipe.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = TowerWithHeads(recipe, codes, len(dataset.categories))
        generator = self.generator(0, 0)
        rows = torch.randperm(len(dataset.train.pixels), generator=generator)[:1500]
        whiten_patches(model.tower, self.redrawn(rows, 0.5, generator), generator)
        self.begin(model)
        self.features = [
            [ngram_buckets(name) if name else [] for name in captions]
            for captions in dataset.captions
        ]

    def averaged(self) -> TowerWithHeads:
        """Return a copy of the model with the averaged weights, for evaluation."""
        codes = self.model.code.codes
        model = TowerWithHeads(self.recipe, codes, len(self.dataset.categories))
        model.load_state_dict(self.average)
        return model.eval()

    def fit(
        self,
        name: str,
        steps: int,
        rates: tuple[float, float],
        layers: nn.Module,
        heads: Sequence[nn.Module | nn.Parameter],
        count: int,
        loss: Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]],
    ) -> None:
        """Train a later part on stored features.

        Args:
            name: name of the part, for the log.
            rates: peak rates of Muon, for the matrices of `layers`, and of AdamW.
            heads: modules trained by AdamW, together with the other parameters of `layers`.
            count: number of rows to draw from.
            loss: returns the loss of the drawn rows, and the figures to log.
        """
        matrices = [p for p in layers.parameters() if p.ndim == 2]
        rest = [p for p in layers.parameters() if p.ndim != 2]
        for head in heads:
            rest += [head] if isinstance(head, nn.Parameter) else head.parameters()
        optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, rates[0], weight_decay=0.01, iterations=4),
            torch.optim.AdamW(rest, lr=rates[1], betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.model.train()
        means = Means()
        for step in range(steps):
            generator = self.generator(0, step + 1)
            rows = torch.randint(count, (self.recipe.code_batch_size,), generator=generator)
            value, figures = loss(rows, generator)
            set_rates(optimizers, rates, min(1.0, (step + 1) / 50, 1.2 * (steps - step) / steps))
            update(optimizers, value, [*matrices, *rest])
            means.add(figures)
            if (step + 1) % self.recipe.log_every == 0 or step + 1 == steps:
                self.write_log(name, step + 1, steps, means.take())
