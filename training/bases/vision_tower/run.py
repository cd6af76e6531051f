"""What the three parts of a run share: the model, its randomness, its log, the state to go on from."""

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
    """One run, from fresh weights; `resume` brings it to where an earlier one stopped.

    Attributes:
        key: hash of all that decides the weights but `steps`.
        average: exponential moving average of the model's state.
        features: [concepts][languages], n-gram buckets of the captions; empty where there is none.
        step: steps of the first part that are done.
    """

    def __init__(self, recipe: VisionTowerRecipe, dataset: Dataset, output_dir: Path) -> None:
        self.recipe, self.dataset, self.output_dir = recipe, dataset, output_dir
        if recipe.memory_layers * recipe.intermediate_size < len(dataset.concepts):
            raise ValueError(
                f"{WHERE}: {recipe.memory_layers} memory_layers of {recipe.intermediate_size} units "
                f"(intermediate_size) cannot hold {len(dataset.concepts)} concepts; raise one of the "
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
        """Of training, those before an interruption included."""
        return time.monotonic() - self._started

    def generator(self, purpose: int, number: int) -> torch.Generator:
        """Randomness of one step or pass: nothing to store, and resuming changes nothing."""
        seed = (self.recipe.seed * 4 + purpose) * 1_000_003 + number
        return torch.Generator().manual_seed(seed)

    def redrawn(self, rows: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Training pictures, augmented: float [rows, 3, size, size], normalized."""
        train = self.dataset.train
        pictures = augment(
            train.pixels[rows].float() / 255,
            self.dataset.may_flip[train.concept[rows]],
            self.recipe.augmentation.at(strength),
            generator,
        )
        return normalize(pictures)

    def averaged(self) -> TowerWithHeads:
        """A model of its own with the averaged weights, for evaluation."""
        codes = self.model.code.codes
        model = TowerWithHeads(self.recipe, codes, len(self.dataset.categories))
        model.load_state_dict(self.average)
        return model.eval()

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the model, less so the later the step."""
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def write_log(self, name: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Print and keep a line of the log; `name` is "step", or the part's own."""
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
            name: of the part, in the log.
            rates: peaks of Muon, for the matrices of `layers`, and of AdamW.
            heads: trained by AdamW beside what is left of `layers`.
            count: rows to draw from.
            loss: of the rows drawn, with the figures to log.
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

    # Everything that the next step of the first part depends on is in one file.

    @property
    def state_path(self) -> Path:
        return self.output_dir / STATE_FILE

    def save_state(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Replace the state file by that of the present step."""
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

        Raises ValueError if it is another run's, or too late for a change of `steps`.
        """
        path, steps = self.state_path, self.recipe.steps
        if not path.exists():
            return
        tensors, metadata = read_state(path)
        notes = json.loads(metadata.get("run", "{}"))
        if notes.get("key") != self.key:
            raise ValueError(
                f"{path}: the state of a run with another recipe or dataset; give another "
                "output folder, or delete this file to start anew"
            )
        if notes["steps"] != steps and notes["step"] > (
            min(notes["steps"], steps) - self.recipe.cooldown_steps
        ):
            raise ValueError(
                f"{path}: at step {notes['step']} of {notes['steps']} the cool-down has begun; "
                f"`steps` cannot become {steps} any more"
            )
        self.model.load_state_dict(part_of(tensors, "model"))
        self.average = part_of(tensors, "average")
        load_optimizers(optimizers, tensors)
        self.step, self._started = notes["step"], self._started - notes["seconds"]
        self.log, self.evaluations = notes["log"], notes["evaluations"]
        print(f"continuing after step {self.step}", flush=True)


class Means:
    """Means of the figures of some steps, for one line of the log."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.count = 0

    def add(self, figures: Mapping[str, Tensor]) -> None:
        self.count += 1
        for name, value in figures.items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value.detach())

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: round(total / self.count, 4) for name, total in self.totals.items()}
        self.totals, self.count = {}, 0
        return means


def update(
    optimizers: Sequence[torch.optim.Optimizer], loss: Tensor, parameters: list[nn.Parameter]
) -> None:
    """One step down the gradient of `loss`, its norm over `parameters` clipped to 1."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    for optimizer in optimizers:
        optimizer.step()


def _run_key(recipe: VisionTowerRecipe, dataset: Dataset) -> str:
    """Hash of the recipe, the pictures and the captions: only the same ones continue a run.

    The run's length is left out: until the cool-down, a longer and a shorter run are the same run.
    """
    same = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "steps"}
    content = hashlib.sha256(json.dumps(same, sort_keys=True).encode())
    content.update(json.dumps([dataset.concepts, dataset.captions]).encode())
    for pictures in (dataset.train, dataset.validation):
        content.update(pictures.pixels.numpy().tobytes())
    return content.hexdigest()
