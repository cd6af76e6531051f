"""MayaTrainer: TRL's SFTTrainer with groups as samples and a loss over explicit (position, label) pairs."""

import contextlib
import json
import math
import os
import shutil
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_callback import (
    DefaultFlowCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from ..batches.collator import BadRow, GroupCollator
from ..model.adapters import load_adapter, save_adapter
from ..model.attention import flex_inputs
from ..model.flops import (
    ForwardFlops,
    TrainableParts,
    device_peak,
    forward_flops,
    trainable_parts,
    training_flops,
)
from ..model.freezing import parameter_groups
from ..model.loss import token_losses
from ..recipe import AdapterRecipe, Rule
from .checkpoints import PREFIX, SUMS, checkpoints, drop_old, read_sums, seal, writing
from .schedule import Schedule

PARTIAL = ".partial"


def add_pair_loss(model: PreTrainedModel) -> None:
    """Make `model(..., logit_positions=..., labels=...)` return the result of `token_losses` instead of logits.

    TRL adds its fused head in the same way: the call must go through the model's forward, because DDP and
    FSDP prepare gradients there. Without `logit_positions` the forward is unchanged.

    The head is called as a module, exactly once: this call gathers sharded weights, which is a collective
    operation that all ranks must join.
    """
    original = model.forward
    head = model.get_output_embeddings()
    plain = head.forward

    def head_forward(
        self: Any, hidden: torch.Tensor, labels: torch.Tensor | None = None, scale: float = 1.0
    ) -> Any:
        return plain(hidden) if labels is None else token_losses(hidden, self, labels, scale)

    head.forward = types.MethodType(head_forward, head)

    def forward(
        self: Any,
        *args: Any,
        logit_positions: torch.Tensor | None = None,
        image_index: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if logit_positions is None:
            return original(*args, **kwargs)
        labels = kwargs.pop("labels")
        if "group" in (kwargs.get("attention_plan") or {}):
            kwargs.update(flex_inputs(kwargs["attention_plan"]))
        with contextlib.ExitStack() as stack:
            if image_index is not None:
                # Every distinct image is encoded once, and its features are repeated after the projector
                # for each block of the row that shows it. This hook inside the model's forward keeps the
                # order of module calls the same as for a row without images.
                projector = self.base_model.multi_modal_projector
                repeat = projector.register_forward_hook(lambda _, __, out: out[image_index])
                stack.callback(repeat.remove)
            hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        # A text-only batch needs no special case: MayaModel runs its tower on a blank image, so that every
        # rank calls every module once and in the same order, as DDP, FSDP and ZeRO-3 require.
        scale = getattr(self.config.get_text_config(), "logit_scale", None)
        return self.get_output_embeddings()(
            hidden.flatten(0, 1).index_select(0, logit_positions),
            labels=labels,
            scale=1.0 if scale is None else float(scale),
        )

    model.forward = types.MethodType(forward, model)


class NotFinite(ValueError):
    """The loss or a weight is NaN or infinite, so training cannot continue."""


class HeldOut:
    """The held-out rows of a stage, divided into steps of the same number of groups as in training.

    Args:
        collator: collator of the held-out rows and their plan.
    """

    def __init__(self, collator: GroupCollator):
        self.collator, self.languages = collator, collator.data.languages
        self.steps = -(-len(collator.plan) // collator.batch_size)

    def shares(self, rank: int, workers: int) -> Iterator[dict[str, Any]]:
        """Yield a rank's share of each step, as returned by the collator."""
        loader: DataLoader = DataLoader(
            [{"step": step, "rank": rank} for step in range(self.steps)],  # type: ignore[arg-type]
            batch_size=1,
            collate_fn=self.collator,
            num_workers=workers,
            # A DataLoader draws a random number: a separate generator keeps training's random state unchanged.
            generator=torch.Generator(),
        )
        for share in loader:
            if "error" in share:
                raise share["error"]
            yield share


class MayaTrainer(SFTTrainer):
    """SFTTrainer over a plan of groups.

    `train_dataset` is a datasets.Dataset of {"step", "rank"}: the ranks' shares of the steps, in training
    order. The collator turns a share into rows, and a training step computes the rows one after the other.
    The loss is the mean over all supervised tokens of the global batch. The log has, per language, the loss
    (nats per token), the token accuracy and the bits per byte of the trained text. In total it has tokens
    (without padding) and images per second, the share of padding, and the model FLOPs per second of these
    tokens, with the device's peak.

    `schedule` decides when to log, evaluate, save and stop. A NaN or infinite loss or weight ends the
    training, and such weights are not saved.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        *,
        rules: Sequence[Rule],
        languages: Sequence[str],
        schedule: Schedule | None = None,
        held_out: HeldOut | None = None,
        adapter: AdapterRecipe | None = None,
        **kwargs: Any,
    ):
        self.schedule, self.held_out = schedule, held_out
        # Trainer must not have this limit: it would also delete the checkpoint of a run that was asked to stop.
        self.keep, args.save_total_limit = args.save_total_limit, None
        self.rules = list(rules)
        self.adapter = adapter
        self.languages = list(languages)
        self._run_dir: str | None = None
        self._stop_asked = 0
        # TRL rounds trained weights of quantized models to bfloat16: restore the exact values.
        exact = [(p, p.data) for p in model.parameters() if p.requires_grad]
        super().__init__(model, args, **kwargs)
        for parameter, data in exact:
            if parameter.dtype != data.dtype:
                parameter.data = data.to(parameter.device)
        add_pair_loss(self.model)
        # compute_loss divides by the global number of tokens, so Trainer must not divide again.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        # (languages, 4): sums of loss, correct tokens, tokens and bytes since the last log.
        self._sums = torch.zeros(len(self.languages), 4, dtype=torch.float64)
        # The same sums restored from the checkpoint, accumulated since its last log line.
        self._sums_before = torch.zeros_like(self._sums)
        # (2, 2): sum and number of the steps' losses, since the last log and since the stage began.
        self._step_losses = torch.zeros(2, 2, dtype=torch.float64)
        # Since the last log: tokens, padding and distinct images. And the sum of positions: plus one per
        # token, it is the number of attention pairs.
        self._work = torch.zeros(3, dtype=torch.float64)
        self._positions = torch.zeros((), dtype=torch.float64)
        self._flops: tuple[ForwardFlops, TrainableParts] | None = None
        with contextlib.suppress(ValueError):  # the FLOPs of this architecture are unknown
            forward = forward_flops(model.config)
            named = ((n, p.shape, p.requires_grad) for n, p in model.named_parameters())
            self._flops = forward, trainable_parts(named, model.config, forward)
        half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        dtype = half or model.model.language_model.dtype
        # Peak FLOP/s of this process's device, and the source of the number.
        self._peak, self.peak_source = device_peak(args.device, dtype)
        self._since = time.perf_counter()
        self.add_callback(RestoreFp32Buffers(model))
        if schedule is not None:
            self.remove_callback(DefaultFlowCallback)
            self.add_callback(schedule)
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if args.bf16 and plugin is not None and plugin.fsdp_version == 2:
            # accelerate's default policy rounds the sums of losses and every rank's gradients to bfloat16.
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        self.bad_rows_file: Path | None = None
        self._bad_rows: set[BadRow] = set()

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Run forward and backward of every row of this rank's share, and return the step's mean loss."""
        if "error" in inputs:
            raise inputs["error"]
        self._note_bad_rows(inputs["bad_rows"])
        rows = inputs["rows"]
        count = torch.tensor(
            [sum(len(row["labels"]) for row in rows), self._stop_asked], device=self.args.device
        )
        if self.accelerator.num_processes > 1:
            count = self.accelerator.reduce(count, reduction="sum")
        tokens, stops = count.tolist()
        if stops:
            self.control.should_save = self.control.should_training_stop = True
        total = torch.zeros((), device=self.args.device)
        state = self.accelerator.gradient_state
        for number, row in enumerate(rows):
            last = number == len(rows) - 1
            state._set_sync_gradients(last)
            # With no_sync, FSDP2 would keep unsharded gradients until the last row.
            waits = not last and not self.accelerator.is_fsdp2
            with self.accelerator.no_sync(model) if waits else contextlib.nullcontext():
                total = total + super().training_step(model, row, num_items_in_batch=tokens)
        self._note_step(total)
        return total

    def _note_step(self, loss: torch.Tensor) -> None:
        """Add a step's loss, the mean over all ranks, to the sums. Raise NotFinite for NaN or infinity."""
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss.detach().clone(), reduction="mean")
        value = loss.item()
        if not math.isfinite(value):
            raise NotFinite(
                f"stage {Path(self.args.output_dir).name}: step {self.state.global_step + 1}: expected a "
                f"finite loss, found {value} {self._what_is_whole()}"
            )
        self._step_losses += torch.tensor([value, 1.0], dtype=torch.float64)

    def _what_is_whole(self) -> str:
        rate = max(float(group["lr"]) for group in self.optimizer.param_groups)
        found = checkpoints(Path(self.args.output_dir))
        left = f"the last whole checkpoint is {found[-1]}" if found else "no checkpoint was saved"
        return f"at a rate of {rate:g}: lower the rates of train, or use a longer warm-up; {left}"

    def check_weights(self) -> None:
        """Raise NotFinite on all ranks if a trained weight is not finite. All ranks must call it."""
        bad = torch.zeros((), device=self.args.device)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
                bad = bad + (~torch.isfinite(local)).any().to(bad.device)
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad, reduction="sum")
        if bad.item():
            raise NotFinite(
                f"stage {Path(self.args.output_dir).name}: after step {self.state.global_step}: expected "
                f"finite weights, found some that are not {self._what_is_whole()}"
            )

    def _note_bad_rows(self, found: Sequence[BadRow]) -> None:
        """Append new bad rows to this rank's file. A restart may repeat lines."""
        new = [row for row in found if row not in self._bad_rows]
        self._bad_rows.update(new)
        if new and self.bad_rows_file is not None:
            with self.bad_rows_file.open("a+", encoding="utf-8") as file:
                # A killed run may have left half a line.
                file.write("\n" if file.tell() else "")
                for row in new:
                    # ASCII escapes, because a reason may quote half of a surrogate pair.
                    file.write(json.dumps(vars(row)) + "\n")

    def ask_to_stop(self) -> None:
        """Save and stop after the current step, on all ranks."""
        self._stop_asked = 1

    def is_asked_to_stop(self) -> bool:
        """Return whether any rank was asked to stop. All ranks must call it."""
        asked = torch.tensor(self._stop_asked, device=self.args.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, with one parameter group per rate of the `train` rules and the adapter."""
        optimizer: torch.optim.Optimizer | None = self.optimizer  # type: ignore[has-type]
        if optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options.pop("lr", None)
            groups = parameter_groups(self.model, self.rules, self.args.weight_decay, self.adapter)
            optimizer = cls(groups, lr=self.args.learning_rate, **options)
            if options.get("optim_bits") == 8:
                # As in Trainer: embedding rows change rarely and by large steps, so their state keeps
                # 32 bits. Registered per parameter, because bitsandbytes never releases a module.
                from bitsandbytes.optim import GlobalOptimManager

                for module in self.model.modules():
                    if isinstance(module, torch.nn.Embedding) and module.weight.requires_grad:
                        GlobalOptimManager.get_instance().override_config(
                            module.weight, "optim_bits", 32
                        )
            self.optimizer = optimizer
        return optimizer

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the mean loss over the global batch's tokens, and update the sums per language."""
        inputs = dict(inputs)
        language = inputs.pop("language")
        text_bytes = inputs.pop("text_bytes")
        padding = inputs.pop("padding")
        images = len(inputs.get("pixel_values", ()))
        labels = inputs["labels"]
        total, losses, correct = model(**inputs)
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        loss = total / torch.as_tensor(count, device=total.device).clamp(min=1)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # DDP averages gradients over ranks, but `count` already includes all ranks.
            loss = loss * self.accelerator.num_processes
        with torch.no_grad():
            sums = language_sums(losses, correct, language, text_bytes)
            self._sums = self._sums.to(losses.device) + sums
            work = [inputs["input_ids"].numel() - padding, padding, images]
            self._work += torch.tensor(work, dtype=torch.float64)
            positions = inputs["position_ids"].sum()
            self._positions = self._positions.to(positions.device) + positions
        if return_outputs:
            return loss, {"losses": losses, "correct": correct}
        return loss

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Log loss, accuracy and bits per byte of the held-out rows, in total and per language.

        All ranks must call it.

        Args:
            eval_dataset: ignored; an argument of Trainer.
            ignore_keys: ignored; an argument of Trainer.
            metric_key_prefix: start of the log keys.

        Returns:
            The logged metrics.
        """
        assert self.held_out is not None
        began = time.perf_counter()
        # Only the wrapped model gathers sharded weights.
        wrapped = self.is_fsdp_enabled or self.is_deepspeed_enabled
        model = self.model_wrapped if wrapped else self.model
        learning = model.training
        model.eval()
        languages = self.held_out.languages
        sums = torch.zeros(len(languages), 4, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            shares = self.held_out.shares(self.args.process_index, self.args.dataloader_num_workers)
            for share in shares:
                self._note_bad_rows(share["bad_rows"])
                for row in share["rows"]:
                    inputs = self._prepare_inputs(row)
                    language, text_bytes = inputs.pop("language"), inputs.pop("text_bytes")
                    inputs.pop("padding")
                    _, losses, correct = model(**inputs)
                    sums += language_sums(losses, correct, language, text_bytes)
        model.train(learning)
        sums = self.accelerator.reduce(sums, reduction="sum").cpu()
        seconds = time.perf_counter() - began
        metrics = {
            f"{metric_key_prefix}_{name.removeprefix('mean_')}": value
            for name, value in language_metrics(sums, languages).items()
        }
        metrics[f"{metric_key_prefix}_runtime"] = round(seconds, 4)
        self._since += seconds  # exclude evaluations from the training speed
        self.log(metrics)
        control: Any = self.control  # type: ignore[has-type]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add loss, accuracy and bits per byte, in total and per language, to a training log line."""
        if "train_loss" in logs:
            total, steps = self._step_losses[1].tolist()
            logs["train_loss"] = total / max(steps, 1.0)
        if "loss" in logs:
            # After a resume, Trainer's value leaves out the steps of this log line before the checkpoint.
            total, steps = self._step_losses[0].tolist()
            logs["loss"] = total / max(steps, 1.0)
            self._step_losses[0] = 0.0
            seconds = time.perf_counter() - self._since
            # An extra row for the amounts of work, to reduce everything at once.
            extra = torch.zeros(1, 4, dtype=torch.float64, device=self._sums.device)
            extra[0, :3] = self._work
            extra[0, 3] = self._positions
            sums = self.accelerator.reduce(torch.cat([self._sums, extra]), reduction="sum").cpu()
            logs.update(language_metrics(sums[:-1] + self._sums_before, self.languages))
            tokens, padding, images, positions = sums[-1].tolist()
            logs["tokens_per_second"] = round(tokens / max(seconds, 1e-9), 1)
            logs["images_per_second"] = round(images / max(seconds, 1e-9), 2)
            logs["padding_share"] = round(padding / max(tokens + padding, 1), 5)
            if self._flops is not None:
                flops = training_flops(
                    *self._flops,
                    tokens=tokens,
                    pairs=positions + tokens,
                    positions=float(sums[:-1, 2].sum()),
                    images=images,
                )
                speed = flops / max(seconds, 1e-9)
                peak = self._peak * self.accelerator.num_processes
                logs["model_flops_per_second"] = speed
                logs["peak_flops_per_second"] = peak
                logs["model_flop_utilisation"] = speed / peak
            self._sums.zero_()
            self._sums_before.zero_()
            self._work.zero_()
            self._positions.zero_()
            self._since = time.perf_counter()
        super().log(logs, start_time)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Save the trained parameters in peft's format if there is an adapter, else the whole model."""
        if self.adapter is None:
            if state_dict is not None:
                # A state dict gathered from shards has tied weights twice: keep one, as without sharding.
                tied = self.accelerator.unwrap_model(self.model).all_tied_weights_keys
                state_dict = {k: v for k, v in state_dict.items() if tied.get(k) not in state_dict}
            super()._save(output_dir, state_dict)
            # Nothing reads this pickle, and it contains the hub_token.
            Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)
        elif self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            folder = Path(output_dir or self.args.output_dir)
            save_adapter(model, folder, state_dict)
            self.processing_class.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.adapter is None or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_adapter(
                self.accelerator.unwrap_model(model or self.model), Path(resume_from_checkpoint)
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore the random state, and the sums of the next log line."""
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            sums = read_sums(Path(checkpoint))
            self._sums_before = torch.tensor(sums["languages"], dtype=torch.float64)
            if "steps" in sums:
                self._step_losses = torch.tensor(sums["steps"], dtype=torch.float64)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Update the best metric only at saves that the recipe asks for, so that the best checkpoint is kept."""
        if self.schedule is not None and not self.schedule.saves:
            return False
        return super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        """Load the best checkpoint's weights at the end of the stage, but not after a request to stop."""
        if not self.is_finished:
            return
        if self.adapter is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            load_adapter(
                self.accelerator.unwrap_model(self.model), Path(self.state.best_model_checkpoint)
            )

    @property
    def is_finished(self) -> bool:
        """Return whether the stage has ended, by its last step or by early stopping."""
        early = self.schedule is not None and self.schedule.stops_early(self.state.log_history)
        return early or self.state.global_step >= self.state.max_steps

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_dir or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint with checksums under a temporary name, and rename it when all ranks are done.

        Raises:
            NotFinite: a weight is NaN or infinite.
            OSError: the disk is full or broken.
        """
        self.check_weights()
        output = Path(self.args.output_dir)
        final = output / f"{PREFIX}{self.state.global_step}"
        self._run_dir = str(output / PARTIAL)
        if self.is_world_process_zero():
            shutil.rmtree(self._run_dir, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            with writing(output):
                super()._save_checkpoint(model, trial)
        except OSError:
            shutil.rmtree(self._run_dir, ignore_errors=True)
            raise
        finally:
            partial, self._run_dir = Path(self._run_dir) / final.name, None
        # The sums of the unfinished log line.
        sums = self.accelerator.reduce(self._sums.to(self.args.device), reduction="sum").cpu()
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            with writing(output):
                languages = (sums + self._sums_before).tolist()
                text = json.dumps({"languages": languages, "steps": self._step_losses.tolist()})
                (partial / SUMS).write_text(text, encoding="utf-8")
                seal(partial)
                shutil.rmtree(final, ignore_errors=True)
                os.replace(partial, final)
            drop_old(output, self.keep, self.state.best_global_step)
        self.accelerator.wait_for_everyone()
        self.find_best()

    def find_best(self) -> None:
        """Set the final path of the best checkpoint, because Trainer has recorded the temporary path."""
        best = Path(self.args.output_dir) / f"{PREFIX}{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if best.is_dir() else None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `maya publish` writes the card."""


def language_metrics(sums: torch.Tensor, languages: Sequence[str]) -> dict[str, float]:
    """Return the values of a log line from (languages, 4) sums of loss, correct tokens, tokens and bytes."""
    result: dict[str, float] = {}
    prefixes = ["mean_", *(f"{language}/" for language in languages)]
    rows = [sums.sum(0).tolist(), *sums.tolist()]
    for prefix, (loss, correct, tokens, size) in zip(prefixes, rows, strict=True):
        if tokens:
            result[f"{prefix}loss"] = round(loss / tokens, 5)
            result[f"{prefix}accuracy"] = round(correct / tokens, 5)
            if size:
                result[f"{prefix}bits_per_byte"] = round(loss / math.log(2) / size, 5)
    return result


def language_sums(
    losses: torch.Tensor, correct: torch.Tensor, language: torch.Tensor, text_bytes: torch.Tensor
) -> torch.Tensor:
    """Return (languages, 4) float64 sums of loss, correct tokens, tokens and bytes.

    Args:
        losses: (M,) losses of the trained tokens.
        correct: (M,) whether the most probable token is the label.
        language: (M,) index of each token's language.
        text_bytes: (languages,) bytes of the trained text.
    """
    one = torch.ones_like(losses, dtype=torch.float64)
    values = torch.stack([losses.detach().double(), correct.double(), one], dim=1)
    sums = torch.zeros(len(text_bytes), 4, dtype=torch.float64, device=losses.device)
    sums[:, :3].index_add_(0, language, values)
    sums[:, 3] = text_bytes
    return sums


class OnSave(TrainerCallback):
    """Call a function with the number of finished steps after every save, on rank 0."""

    def __init__(self, call: Callable[[int], None]):
        self.call = call

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.call(int(state.global_step))


class RestoreFp32Buffers(TrainerCallback):
    """Restore the float32 buffers of a model, which DeepSpeed casts to the dtype of the weights.

    With rotary frequencies in bfloat16, angles are wrong by radians after a thousand tokens.
    """

    def __init__(self, model: torch.nn.Module):
        self.buffers = {
            name: buffer.detach().clone()
            for name, buffer in model.named_buffers()
            if buffer.dtype == torch.float32
        }

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        for name, buffer in getattr(model, "module", model).named_buffers():
            exact = self.buffers.get(name)
            if exact is not None and buffer.dtype != exact.dtype:
                buffer.data = exact.to(buffer.device)


class LineCallback(TrainerCallback):
    """Print progress as plain lines: step, loss, accuracy, speed, share of padding, FLOP utilisation and
    time left; then the loss and accuracy per language."""

    def __init__(self, stage: str):
        self.stage = stage
        self.start = 0.0
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        at = f"{self.stage} {state.global_step}/{state.max_steps}"
        if "eval_loss" in logs:
            print(
                f"{at}  eval: loss {logs['eval_loss']:.4f}  accuracy {logs['eval_accuracy']:.3f}  "
                f"bits/byte {logs.get('eval_bits_per_byte', 0):.3f}",
                flush=True,
            )
            _print_languages({k.removeprefix("eval_"): v for k, v in logs.items()})
        if "loss" not in logs:
            return
        done = state.global_step - self.first
        spent = time.monotonic() - self.start
        left = spent / max(done, 1) * (state.max_steps - state.global_step)
        share = logs.get("model_flop_utilisation")  # unknown for some architectures
        utilisation = "" if share is None else f"{share:.1%} of peak  "
        images = logs["images_per_second"]
        print(
            f"{at}  loss {logs.get('mean_loss', math.nan):.4f}  "
            f"accuracy {logs.get('mean_accuracy', math.nan):.3f}  bits/byte {logs.get('mean_bits_per_byte', 0):.3f}  "
            f"{logs['tokens_per_second']:,.0f} tokens/s  {images:,.{0 if images >= 10 else 1}f} images/s  "
            f"padding {logs['padding_share']:.1%}  {utilisation}"
            f"{_clock(spent)} so far, {_clock(left)} left",
            flush=True,
        )
        _print_languages(logs)


def _print_languages(logs: Mapping[str, float]) -> None:
    each = [
        f"{key.split('/')[0]} {value:.3f} ({logs.get(key.replace('loss', 'accuracy'), 0):.2f})"
        for key, value in logs.items()
        if key.endswith("/loss")
    ]
    if len(each) > 1:
        print(f"  loss (accuracy): {'  '.join(each)}", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def quiet_callbacks(trainer: MayaTrainer, stage: str) -> None:
    """Replace Trainer's progress bar and printed dictionaries by plain lines."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LineCallback(stage))
