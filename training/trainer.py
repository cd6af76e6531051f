"""MayaTrainer: TRL's SFTTrainer with groups for samples and a loss over explicit pairs."""

import math
import os
import shutil
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTConfig, SFTTrainer

from .freezing import parameter_groups
from .recipe import Rule

PARTIAL = ".partial"
# Logits of at most this many (position, vocabulary) pairs are held at once.
TILE = 1 << 25


def token_losses(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy and whether the best guess is right, per supervised position.

    Args:
        hidden: (M, D), only the positions that predict; labels: (M,).
        scale: the decoder's logit scale.

    Returns:
        (M,) float32 losses in nats, (M,) bool. More than `TILE` logits are computed tile by tile
        and again in the backward pass, so the full (M, V) never exists.
    """

    def tile(h: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = (head(h) * scale).float()
        return cross_entropy(logits, y, reduction="none"), logits.detach().argmax(-1) == y

    rows = max(1, TILE // head.weight.shape[0])
    if len(labels) <= rows:
        return tile(hidden, labels)
    parts = [
        checkpoint(tile, h, y, use_reentrant=False)
        for h, y in zip(hidden.split(rows), labels.split(rows), strict=True)
    ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def add_pair_loss(model: PreTrainedModel) -> None:
    """Teach `model(..., source=...)` to return losses of pairs instead of logits.

    As TRL adds its own fused head: the call must go through the model's forward, because DDP and
    FSDP prepare gradients there. Without `source` the forward is as before.
    """
    original = model.forward

    def forward(self: Any, *args: Any, source: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if source is None:
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        head = self.get_output_embeddings()
        scale = getattr(self.config.get_text_config(), "logit_scale", None)
        losses, correct = token_losses(
            hidden.flatten(0, 1).index_select(0, source),
            head,
            labels,
            1.0 if scale is None else float(scale),
        )
        if kwargs.get("pixel_values") is None and self.training:
            # A batch of text alone: every rank must still give the projector a gradient, or DDP
            # waits for ever.
            losses = losses + 0.0 * self._dummy_features().sum()
        return losses, correct

    def dummy_features(self: Any) -> torch.Tensor:
        size = self.config.vision_config.image_size
        parameter = next(self.parameters())
        pixels = torch.zeros(1, 3, size, size, dtype=parameter.dtype, device=parameter.device)
        return torch.cat(tuple(self.base_model.get_image_features(pixels).pooler_output))

    model._dummy_features = types.MethodType(dummy_features, model)
    model.forward = types.MethodType(forward, model)


class MayaTrainer(SFTTrainer):
    """SFTTrainer over a plan of groups.

    `train_dataset` is the plan, a datasets.Dataset of {"epoch", "conversations"} in training order;
    the collator turns its rows into batches. The loss is the mean over all supervised tokens of the
    global batch. Per language, the log gets the loss (nats per token), the token accuracy and
    bits per byte of the trained text, from the same forward.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        *,
        rules: Sequence[Rule],
        languages: Sequence[str],
        **kwargs: Any,
    ):
        self.rules = list(rules)
        self.languages = list(languages)
        self._run_dir: str | None = None
        super().__init__(model, args, **kwargs)
        add_pair_loss(self.model)
        # The loss is divided by the global number of tokens here, never again by Trainer.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        # (languages, 4): sums of loss, right guesses, tokens, bytes since the last log.
        self._sums = torch.zeros(len(self.languages), 4, dtype=torch.float64)
        self._tokens_seen = 0
        self._since = time.perf_counter()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """One parameter group per rate of the recipe's `train` rules."""
        optimizer: torch.optim.Optimizer | None = self.optimizer  # type: ignore[has-type]
        if optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options.pop("lr", None)
            groups = parameter_groups(self.model, self.rules, self.args.weight_decay)
            optimizer = cls(groups, lr=self.args.learning_rate, **options)
            self.optimizer = optimizer
        return optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Mean loss over the global batch's tokens; adds to the sums per language."""
        inputs = dict(inputs)
        language = inputs.pop("language")
        text_bytes = inputs.pop("text_bytes")
        labels = inputs["labels"]
        losses, correct = model(**inputs)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / torch.as_tensor(count, device=losses.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # DDP averages gradients over ranks; `count` is that of all ranks.
            loss = loss * self.accelerator.num_processes
        with torch.no_grad():
            one = torch.ones_like(losses, dtype=torch.float64)
            values = torch.stack([losses.detach().double(), correct.double(), one], dim=1)
            sums = torch.zeros(len(self.languages), 4, dtype=torch.float64, device=losses.device)
            sums[:, :3].index_add_(0, language, values)
            sums[:, 3] = text_bytes
            self._sums = self._sums.to(losses.device) + sums
            self._tokens_seen += inputs["input_ids"].numel()
        if return_outputs:
            return loss, {"losses": losses, "correct": correct}
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds loss, accuracy and bits per byte, in all and per language, to a training log line."""
        if "loss" in logs:
            seconds = time.perf_counter() - self._since
            # One row more: the tokens put through the decoder.
            extra = torch.zeros(1, 4, dtype=torch.float64, device=self._sums.device)
            extra[0, 0] = self._tokens_seen
            sums = self.accelerator.reduce(torch.cat([self._sums, extra]), reduction="sum").cpu()
            logs.update(language_metrics(sums[:-1], self.languages))
            logs["tokens_per_second"] = round(float(sums[-1, 0]) / max(seconds, 1e-9), 1)
            self._sums.zero_()
            self._tokens_seen = 0
            self._since = time.perf_counter()
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_dir or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint beside its place and rename it when it is whole on all ranks."""
        final = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        self._run_dir = str(Path(self.args.output_dir) / PARTIAL)
        if self.is_world_process_zero():
            shutil.rmtree(self._run_dir, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            partial, self._run_dir = Path(self._run_dir) / final.name, None
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            keep = self.args.save_total_limit
            if keep:
                for old in checkpoints(Path(self.args.output_dir))[:-keep]:
                    shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: cards are written when a model is published."""


def language_metrics(sums: torch.Tensor, languages: Sequence[str]) -> dict[str, float]:
    """What a log line says, from (languages, 4) sums of loss, right guesses, tokens and bytes."""
    result: dict[str, float] = {}

    def add(prefix: str, row: Sequence[float]) -> None:
        loss, correct, tokens, size = row
        if tokens:
            result[f"{prefix}loss"] = round(loss / tokens, 5)
            result[f"{prefix}accuracy"] = round(correct / tokens, 5)
            if size:
                result[f"{prefix}bits_per_byte"] = round(loss / math.log(2) / size, 5)

    add("mean_", sums.sum(0).tolist())
    for language, row in zip(languages, sums.tolist(), strict=True):
        add(f"{language}/", row)
    return result


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first. Half-written ones have another name."""
    found = [p for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


class LineCallback(TrainerCallback):
    """Progress as plain lines: step, loss, accuracy, speed, time left."""

    def __init__(self, stage: str):
        self.stage = stage
        self.start = 0.0
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        done = state.global_step - self.first
        spent = time.monotonic() - self.start
        left = spent / max(done, 1) * (state.max_steps - state.global_step)
        print(
            f"{self.stage} {state.global_step}/{state.max_steps}  loss {logs['mean_loss']:.4f}  "
            f"accuracy {logs['mean_accuracy']:.3f}  bits/byte {logs.get('mean_bits_per_byte', 0):.3f}  "
            f"{logs['tokens_per_second']:,.0f} tokens/s  {_clock(spent)} so far, {_clock(left)} left",
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def quiet_callbacks(trainer: MayaTrainer, stage: str) -> None:
    """Lines instead of a bar and raw dictionaries."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LineCallback(stage))
