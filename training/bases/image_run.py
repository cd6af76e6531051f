"""What the runs of all vision towers share: random numbers, steps, averaged weights, log, state, saving."""

import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import transformers
import yaml
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..common.files import write_json, write_text
from .augmentation import AugmentationRecipe, augment
from .storing import (
    complete_folder,
    load_optimizers,
    optimizer_tensors,
    part_of,
    read_state,
    save_state,
    set_rates,
)
from .vision_tower.dataset import Dataset, DatasetRecipe
from .vision_tower.network import normalize, read_features, scale_stream

STATE_FILE = "training_state.safetensors"


class ImageRecipe(DatasetRecipe, Protocol):
    """The keys that the recipes of all vision towers have."""

    steps: int
    batch_size: int
    warmup_steps: int
    cooldown_steps: int
    ema_decay: float
    augmentation: AugmentationRecipe
    augmentation_ramp: int
    storage_dtype: Literal["float16", "bfloat16", "float32"]
    seed: int
    log_every: int
    evaluate_every: int
    save_every: int


class ImageRun:
    """One run, from new weights; `resume` restores the state of an earlier, stopped run.

    Attributes:
        key: hash of everything that determines the weights, except `steps`.
        average: exponential moving average of the model's state; `begin` sets it.
        step: finished steps.
    """

    model: nn.Module

    def __init__(self, recipe: ImageRecipe, dataset: Dataset, output_dir: Path) -> None:
        self.recipe, self.dataset, self.output_dir = recipe, dataset, output_dir
        self.key = _run_key(recipe, dataset)
        self.average: dict[str, Tensor] = {}
        self.step = 0
        self.log: list[dict[str, float]] = []
        self.evaluations: list[dict[str, float]] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before an interruption."""
        return time.monotonic() - self._started

    @property
    def strength(self) -> float:
        """Strength of the augmentation in the current step, from 0 to 1."""
        ramp = self.recipe.augmentation_ramp
        return min(1.0, 0.15 + 0.85 * self.step / ramp) if ramp else 1.0

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

    def begin(self, model: nn.Module) -> None:
        """Train this model, from its weights; the average begins with them."""
        self.model = model
        self.average = {name: value.clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the average towards the model, by less at later steps."""
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def train_steps(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        peaks: Sequence[float],
        losses: Callable[[], dict[str, Tensor]],
        scores: Callable[[], dict[str, float]],
    ) -> None:
        """Train to the recipe's last step, resuming from the state in the run's folder if there is one.

        Args:
            peaks: peak rates of the optimizers.
            losses: returns the current step's weighted losses, and its "accuracy", which is only logged.
            scores: returns scores of the averaged weights on the validation styles.

        Raises:
            ValueError: if the state belongs to another run, or the loss is not finite.
        """
        recipe, parameters = self.recipe, list(self.model.parameters())
        self.resume(optimizers)
        means = Means()
        while self.step < recipe.steps:
            # Forward, backward, update.
            self.model.train()
            parts = losses()
            accuracy = parts.pop("accuracy")
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                raise ValueError(
                    f"step {self.step}: expected a finite loss, found {loss.item()}: lower learning_rate and "
                    "matrix_learning_rate in the recipe"
                )
            rate = min(
                1.0,
                (self.step + 1) / max(1, recipe.warmup_steps),
                (recipe.steps - self.step) / max(1, recipe.cooldown_steps),
            )
            set_rates(optimizers, peaks, rate)
            update(optimizers, loss, parameters)
            self.update_average()
            self.step += 1
            means.add({**parts, "accuracy": accuracy, "loss": loss})

            # Log, evaluate, save.
            last = self.step == recipe.steps
            if self.step % recipe.log_every == 0 or last:
                self.write_log("step", self.step, recipe.steps, means.take())
            if self.step % recipe.evaluate_every == 0 or last:
                found = scores()
                self.evaluations.append({"step": self.step, **found})
                shown = "  ".join(f"{name} {score:.4f}" for name, score in found.items())
                print(f"step {self.step}/{recipe.steps}  validation  {shown}", flush=True)
            if self.step % recipe.save_every == 0 or last:
                self.save_state(optimizers)

    def write_log(self, name: str, step: int, steps: int, figures: Mapping[str, float]) -> None:
        """Print and store a line of the log; `name` is "step", or the part's name."""
        seconds = self.seconds
        key = name if name == "step" else f"{name}_step"
        self.log.append({key: step, "seconds": round(seconds, 1), **figures})
        shown = "  ".join(f"{key} {figure:.3f}" for key, figure in figures.items())
        print(f"{name} {step}/{steps}  {seconds:.0f} s  {shown}", flush=True)

    # One file holds everything that the next step depends on.

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

    def save_tower(
        self,
        kind: str,
        tower: PreTrainedModel,
        metrics: Callable[[PreTrainedModel], dict[str, Any]],
    ) -> Path:
        """Save a tower, its image processor, recipe and metrics; remove the state.

        Args:
            kind: the recipe's kind.
            metrics: returns the first part of metrics.json for the tower as it was stored.

        Returns:
            The folder.
        """
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        recipe, folder = self.recipe, self.output_dir
        scale_stream(tower, read_features(tower, self.dataset.train.pixels[::4]))
        tower = tower.to(getattr(torch, recipe.storage_dtype))
        folder.mkdir(parents=True, exist_ok=True)
        # Weights are moved last: a folder with weights is complete.
        with complete_folder(
            folder, folder / ".partial", lambda f: f.suffix == ".safetensors"
        ) as part:
            tower.save_pretrained(part)
            SiglipImageProcessorPil(
                size={"height": recipe.image_size, "width": recipe.image_size},
                image_mean=[0.5, 0.5, 0.5],
                image_std=[0.5, 0.5, 0.5],
                resample=Image.Resampling.BICUBIC,
            ).save_pretrained(part)
            values = {"kind": kind, **dataclasses.asdict(recipe)}  # type: ignore[call-overload]
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
            write_text(part / "recipe.yaml", text)
            stored = type(tower).from_pretrained(part, dtype=torch.float32).eval()
            found = {**metrics(stored), **self._provenance(stored)}
            write_json(part / "metrics.json", found)
        self.state_path.unlink(missing_ok=True)
        shown = "  ".join(f"{name} {score}" for name, score in found["stored_weights"].items())
        print(f"stored weights, validation  {shown}")
        return folder

    def _provenance(self, tower: PreTrainedModel) -> dict[str, Any]:
        data, recipe = self.dataset, self.recipe
        return {
            "validation_styles": recipe.validation_styles,
            "train_styles": recipe.train_styles,
            "note": "No other style was read, and no held-out concept in any style.",
            "concepts": len(data.concepts),
            "held_out_concepts": data.held_out,
            "train_pictures": len(data.train.concept),
            "validation_pictures": len(data.validation.concept),
            "chance_top1": 1 / len(data.concepts),
            "storage_dtype": recipe.storage_dtype,
            "parameters": tower.num_parameters(),
            "seconds": round(self.seconds, 1),
            "seed": recipe.seed,
            "threads": torch.get_num_threads(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "run_key": self.key,
            "evaluations": self.evaluations,
            "log": self.log,
        }


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


def print_data(run: ImageRun) -> None:
    """Print the number of concepts and images of a run."""
    data, recipe = run.dataset, run.recipe
    print(
        f"{len(data.concepts)} concepts ({data.held_out} held out), "
        f"{len(data.train.concept)} pictures to train on "
        f"({', '.join(recipe.train_styles)}), {len(data.validation.concept)} to validate "
        f"on ({', '.join(recipe.validation_styles)})",
        flush=True,
    )


def _run_key(recipe: ImageRecipe, dataset: Dataset) -> str:
    """Return a hash of recipe, images and captions; only a run with the same hash is continued.

    `steps` is excluded: until the cool-down, a longer and a shorter run are the same run.
    """
    values = dataclasses.asdict(recipe)  # type: ignore[call-overload]
    same = {name: value for name, value in values.items() if name != "steps"}
    content = hashlib.sha256(json.dumps(same, sort_keys=True).encode())
    content.update(json.dumps([dataset.concepts, dataset.captions]).encode())
    for pictures in (dataset.train, dataset.validation):
        content.update(pictures.pixels.numpy().tobytes())
    return content.hexdigest()
