"""State that the three parts of a run share: the model, random numbers, log, and saved state."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..augmentation import augment
from ..muon import Muon
from ..storing import (
    load_optimizers,
    optimizer_tensors,
    part_of,
    read_state,
    save_state,
    set_rates,
)
from ..text_codes import concept_codes, ngram_buckets
from .dataset import Dataset
from .network import TowerWithHeads, normalize, whiten_patches
from .recipe import WHERE, VisionTowerRecipe

STATE_FILE = "training_state.safetensors"


class TowerRun:
    """One run, from new weights; `resume` restores the state of an earlier, stopped run.

    Attributes:
        key: hash of everything that determines the weights, except `steps`.
        average: exponential moving average of the model's state.
        features: [concepts][languages], n-gram buckets of the captions; empty without a caption.
        step: finished steps of the first part.
    """

    def __init__(self, recipe: VisionTowerRecipe, dataset: Dataset, output_dir: Path) -> None:
        self.recipe, self.dataset, self.output_dir = recipe, dataset, output_dir
        if recipe.memory_layers * recipe.intermediate_size < len(dataset.concepts):
            raise ValueError(
                f"{WHERE}: memory_layers: expected {recipe.memory_layers} memory_layers of {recipe.intermediate_size} "
                f"units (intermediate_size) to hold {len(dataset.concepts)} concepts: raise one of the "
                "two"
            )
        self.key = _run_key(recipe, dataset)
        category = [dataset.categories[number] for number in dataset.category.tolist()]
        codes = concept_codes(dataset.captions, category, recipe.hidden_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.model = TowerWithHeads(recipe, codes, len(dataset.categories))
        generator = self.generator(0, 0)
        rows = torch.randperm(len(dataset.train.pixels), generator=generator)[:1500]
        whiten_patches(self.model.tower, self.redrawn(rows, 0.5, generator), generator)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.features = [
            [ngram_buckets(name) if name else [] for name in captions]
            for captions in dataset.captions
        ]
        self.step = 0
        self.log: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before an interruption."""
        return time.monotonic() - self._started

    def generator(self, purpose: int, number: int) -> torch.Generator:
        """Return the random generator of one step or pass. Resuming needs no stored random state."""
        seed = (self.recipe.seed * 4 + purpose) * 1_000_003 + number
        return torch.Generator().manual_seed(seed)

    def redrawn(self, rows: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Return augmented training images: float [rows, 3, size, size], normalized."""
        train = self.dataset.train
        pictures = augment(
            train.pixels[rows].float() / 255,
            self.dataset.may_flip[train.concept[rows]],
            self.recipe.augmentation.at(strength),
            generator,
        )
        return normalize(pictures)

    def averaged(self) -> TowerWithHeads:
        """Return a copy of the model with the averaged weights, for evaluation."""
        codes = self.model.code.codes
        model = TowerWithHeads(self.recipe, codes, len(self.dataset.categories))
        model.load_state_dict(self.average)
        return model.eval()

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the model, by less at later steps."""
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def write_log(self, name: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Print and store a line of the log; `name` is "step", or the part's name."""
        seconds = self.seconds
        key = name if name == "step" else f"{name}_step"
        self.log.append({key: step, "seconds": round(seconds, 1), **figures})
        shown = "  ".join(f"{key} {figure:.3f}" for key, figure in figures.items())
        print(f"{name} {step}/{steps}  {seconds:.0f} s  {shown}", flush=True)

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

    # One file holds everything that the next step of the first part depends on.

    @property
    def state_path(self) -> Path:
        """The file that holds the state of the run."""
        return self.output_dir / STATE_FILE

    def save_state(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Replace the state file by the state of the current step."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        notes = {
            "key": self.key,
            "step": self.step,
            "steps": self.recipe.steps,
            "seconds": self.seconds,
            "log": self.log,
            "evaluations": self.evaluations,
        }
        save_state(
            self.state_path, tensors | optimizer_tensors(optimizers), {"run": json.dumps(notes)}
        )

    def resume(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Continue from the state in the output folder, if there is one.

        Raises:
            ValueError: if the state belongs to another run, or it is too late to change `steps`.
        """
        path, steps = self.state_path, self.recipe.steps
        if not path.exists():
            return
        tensors, metadata = read_state(path)
        notes = json.loads(metadata.get("run", "{}"))
        if notes.get("key") != self.key:
            raise ValueError(
                f"{path}: expected the state of this recipe and dataset, found another run's: give another "
                "output folder, or delete this file to start again"
            )
        if notes["steps"] != steps and notes["step"] > (
            min(notes["steps"], steps) - self.recipe.cooldown_steps
        ):
            raise ValueError(
                f"{path}: at step {notes['step']} of {notes['steps']} the cool-down has begun: "
                f"`steps` cannot change to {steps} any more"
            )
        self.model.load_state_dict(part_of(tensors, "model"))
        self.average = part_of(tensors, "average")
        load_optimizers(optimizers, tensors)
        self.step, self._started = notes["step"], self._started - notes["seconds"]
        self.log, self.evaluations = notes["log"], notes["evaluations"]
        print(f"continuing after step {self.step}", flush=True)


class Means:
    """Means of figures over several steps, for one line of the log."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.count = 0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Add the figures of one step."""
        self.count += 1
        for name, value in figures.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value.detach())

    def take(self) -> dict[str, float]:
        """Return the means since the last call."""
        means = {name: round(total / self.count, 4) for name, total in self.totals.items()}
        self.totals, self.count = {}, 0
        return means


def update(
    optimizers: Sequence[torch.optim.Optimizer], loss: Tensor, parameters: list[nn.Parameter]
) -> None:
    """Take one gradient step on `loss`, with the gradient norm over `parameters` clipped to 1."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def _run_key(recipe: VisionTowerRecipe, dataset: Dataset) -> str:
    """Return a hash of recipe, images and captions; only a run with the same hash is continued.

    `steps` is excluded: until the cool-down, a longer and a shorter run are the same run.
    """
    same = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "steps"}
    content = hashlib.sha256(json.dumps(same, sort_keys=True).encode())
    content.update(json.dumps([dataset.concepts, dataset.captions]).encode())
    for pictures in (dataset.train, dataset.validation):
        content.update(pictures.pixels.numpy().tobytes())
    return content.hexdigest()
