"""Which fields of TRL's SFTConfig a stage's `args` may set, and the checks of their values.

Each field is either honoured, some within bounds, or refused with a replacement to use. A field is
refused if this trainer would ignore it or would compute something other than the field says. A test
compares the tables below with the installed TRL, so every field of a new release needs a decision.
"""

import importlib.util
import math
import re
from collections.abc import Mapping
from typing import Any

from .common.schema import Bounds, join_key

# Largest number of steps that one stage may have.
MAX_STEPS = 10_000_000
# Default of logging_steps.
LOGGING_STEPS = 20

NOT_NEGATIVE, POSITIVE, ONE_OR_MORE = Bounds(least=0), Bounds(above=0), Bounds(least=1)

# Honoured numeric fields, with their bounds.
NUMBERS: dict[str, Bounds] = {
    "num_train_epochs": POSITIVE,
    "max_steps": Bounds(least=-1, most=MAX_STEPS),
    "warmup_steps": Bounds(least=0, most=MAX_STEPS),
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": Bounds(least=0, below=1),
    "adam_beta2": Bounds(least=0, below=1),
    "adam_epsilon": NOT_NEGATIVE,
    "max_grad_norm": NOT_NEGATIVE,
    "max_length": ONE_OR_MORE,
    "torch_empty_cache_steps": ONE_OR_MORE,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "save_steps": POSITIVE,
    "save_total_limit": ONE_OR_MORE,
    "dataloader_num_workers": Bounds(least=0, most=256),
    "dataloader_prefetch_factor": ONE_OR_MORE,
    "ddp_bucket_cap_mb": ONE_OR_MORE,
    "ddp_timeout": Bounds(least=1, most=10**9),
}
# Honoured fields of other types. schedule.py translates per-epoch strategies into steps. The fields of
# activation checkpointing and torch.compile are passed on under the installed release's names.
OTHERS = {
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args"),
    *("bf16", "fp16", "tf32", "full_determinism", "activation_offloading"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("logging_strategy", "logging_first_step", "logging_nan_inf_filter", "log_on_each_node"),
    *("log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("eval_strategy", "eval_on_start", "load_best_model_at_end", "metric_for_best_model"),
    *("greater_is_better", "save_strategy"),
    *("dataloader_pin_memory", "dataloader_persistent_workers"),
    *("ddp_find_unused_parameters", "ddp_broadcast_buffers", "fsdp", "fsdp_config"),
    *("debug", "skip_memory_metrics"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy"),
    *("hub_always_push", "hub_revision"),
}
_LOSS = "nothing: the loss is the mean over supervised tokens"
_ROWS = "nothing: our collator prepares the rows"
_EVALUATION = "eval_data: held-out rows are packed and scored like training rows"
# Refused fields -> what to use instead.
REFUSED: dict[str, str] = {
    "output_dir": "the recipe's output_dir",
    "seed": "the recipe's seed",
    "data_seed": "the recipe's seed",
    "learning_rate": "the rates of the stage's train rules",
    "per_device_train_batch_size": "the stage's batch_size",
    "per_gpu_train_batch_size": "the stage's batch_size",
    "auto_find_batch_size": "max_length: it limits the tokens of each packed row of a step",
    "gradient_accumulation_steps": "max_length: each step is divided into as many rows as it needs",
    "remove_unused_columns": "nothing: our collator needs every column",
    "label_names": _ROWS,
    "length_column_name": _ROWS,
    "dataset_kwargs": "nothing: our collator prepares the data",
    "dataset_text_field": "the columns that docs/train.md names",
    "dataset_num_proc": "dataloader_num_workers",
    "packing": "nothing: rows are packed to max_length",
    "packing_strategy": "nothing: rows are packed to max_length",
    "eval_packing": _EVALUATION,
    "padding_free": "nothing: rows have no padding",
    "pad_to_multiple_of": "nothing: rows have no padding",
    "truncation_mode": "the stage's on_long_row",
    "shuffle_dataset": "the stage's order",
    "group_by_length": "nothing: a step is divided into rows of nearly equal length",
    "assistant_only_loss": "nothing: only assistant turns are trained",
    "completion_only_loss": "nothing: only assistant turns are trained",
    "resume_from_checkpoint": "nothing: the same command continues",
    "train_sampling_strategy": "nothing: the order follows from the seed",
    "loss_type": _LOSS,
    "label_smoothing_factor": _LOSS,
    "router_aux_loss_coef": _LOSS,
    "average_tokens_across_devices": "nothing: the loss is the mean over the tokens of all processes",
    "use_liger_kernel": "nothing: the head computes loss and gradient tile by tile already",
    "liger_kernel_config": "nothing: the head computes loss and gradient tile by tile already",
    "neftune_noise_alpha": "nothing: NEFTune scales noise by the length of one text, and a row packs several",
    "optim_target_modules": "the stage's train rules",
    "use_cache": "nothing: training has no key-value cache",
    "include_num_input_tokens_seen": "nothing: the log has tokens_per_second",
    "ignore_data_skip": "nothing: a resumed run continues with the next rows",
    "save_only_model": "nothing: every checkpoint has the state for an exact resume",
    "save_on_each_node": "nothing: all processes share output_dir",
    "enable_jit_checkpoint": "nothing: SIGTERM and Ctrl-C save a checkpoint",
    "restore_callback_states_from_checkpoint": "nothing: a resumed run restores early stopping",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_organization": "hub_model_id: ORGANIZATION/NAME",
    "push_to_hub_token": "the environment variable HF_TOKEN, or hub_token",
    "per_device_eval_batch_size": _EVALUATION,
    "per_gpu_eval_batch_size": _EVALUATION,
    "prediction_loss_only": _EVALUATION,
    "eval_accumulation_steps": _EVALUATION,
    "eval_do_concat_batches": _EVALUATION,
    "eval_use_gather_object": _EVALUATION,
    "include_for_metrics": _EVALUATION,
    "batch_eval_metrics": _EVALUATION,
    "bf16_full_eval": _EVALUATION,
    "fp16_full_eval": _EVALUATION,
    "do_train": "nothing: the stages are trained",
    "do_eval": "eval_strategy, with the stage's eval_data",
    "do_predict": "`maya evaluate`",
    "use_cpu": "the environment variable CUDA_VISIBLE_DEVICES, set to an empty text",
    "no_cuda": "the environment variable CUDA_VISIBLE_DEVICES, set to an empty text",
    "local_rank": "the recipe's processes",
    "ddp_backend": "nothing: GPUs use nccl, CPUs gloo",
    "ddp_static_graph": "nothing: the rows differ from step to step",
    "accelerator_config": "nothing: the seed decides which process gets which rows",
    "parallelism_config": "fsdp, or `maya train --accelerate CONFIG`",
    "deepspeed": "`maya train --accelerate zero2`, zero3, or an accelerate config file",
    "dataloader_drop_last": "max_steps: the last step of an epoch has the remaining rows",
    "dataloader_in_order": "nothing: batches come in a fixed order, so that a run can be repeated",
    "dataloader_multiprocessing_context": "nothing: workers use torch's default start method",
    "model_init_kwargs": "the recipe's model",
    "trust_remote_code": "the option --trust-remote-code",
    "chat_template_path": "model.chat_template",
    "eos_token": "model.chat_template",
    "pad_token": "nothing: rows have no padding",
}
# Optimizers that use the recipe's parameter groups and resume exactly from their saved state.
OPTIMIZERS = {
    *("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"),
    *("adamw_torch_4bit", "adamw_torch_8bit", "stable_adamw", "adamw_torch_npu_fused"),
    *("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
    *("ademamix", "ademamix_8bit", "paged_ademamix_32bit", "paged_ademamix_8bit"),
    *("lion_8bit", "lion_32bit", "paged_lion_32bit", "paged_lion_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit"),
}
_GROUPS = "makes its own parameter groups and ignores the rates of the train rules"
# Refused optimizers, by the start of their name -> why.
REFUSED_OPTIMIZERS: dict[str, str] = {
    "galore": _GROUPS,
    "apollo": _GROUPS,
    "lomo": "updates weights inside the backward pass, before a step's gradients are summed over its rows",
    "adalomo": "updates weights inside the backward pass, before a step's gradients are summed over its rows",
    "schedule_free": "trains weights that differ from the weights to save",
    "grokadamw": "needs a loss that only its own training loop reports",
    "adamw_anyprecision": "needs torchdistx, which is not maintained",
    "adamw_torch_xla": "is for TPUs",
}
# Fields that need held-out rows -> the values that switch the field off.
NEED_EVAL_DATA: dict[str, tuple[Any, ...]] = {
    "eval_strategy": ("no",),
    "eval_steps": (None,),
    "eval_delay": (None, 0),
    "eval_on_start": (None, False),
    "load_best_model_at_end": (None, False),
    "metric_for_best_model": (None,),
    "greater_is_better": (None,),
}
# Values of hub_strategy that push whole checkpoints, with their pickles.
WITH_PICKLES = ("checkpoint", "all_checkpoints")
# Schedulers that depend on a metric of the held-out rows.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")
METRIC = re.compile(r"(eval_)?([A-Za-z0-9-]+/)?(loss|accuracy|bits_per_byte)")


def refusal(name: str, value: Any, default: Any) -> str | None:
    """Return what to use instead of a refused field, or None if the field is allowed.

    A refused field that is off by default may be set to off.
    """
    if name not in REFUSED or (default in (None, False) and value is default):
        return None
    return REFUSED[name]


def is_honoured(name: str) -> bool:
    """Return whether a field is known: honoured, or refused unless it is set to off."""
    return name in NUMBERS or name in OTHERS or name in REFUSED


def check_values(args: Mapping[str, Any], held_out: bool, where: str, key: str) -> None:
    """Check the values of a stage's `args`, each alone and together.

    Args:
        args: a stage's `args`, already converted to their types.
        held_out: whether the stage has eval_data.
        where: the file that messages name.
        key: the dotted key of `args` in the file.

    Raises:
        ValueError: a value is out of bounds, or does not fit another value.
    """
    for name, bounds in NUMBERS.items():
        bounds.check(args.get(name), where, join_key(key, name))
    for name, value in args.items():
        _check_finite(value, where, join_key(key, name))
    optimizer = str(args.get("optim", "adamw_torch"))
    if optimizer not in OPTIMIZERS:
        reasons = REFUSED_OPTIMIZERS.items()
        why = next((why for start, why in reasons if optimizer.startswith(start)), None)
        known = ", ".join(sorted(OPTIMIZERS))
        raise ValueError(
            f"{where}: {key}.optim: {optimizer!r} {why}: use adamw_torch_fused"
            if why
            else f"{where}: {key}.optim: expected one of {known}, found {optimizer!r}"
        )
    if args.get("dataloader_prefetch_factor") and not args.get("dataloader_num_workers"):
        raise ValueError(
            f"{where}: {key}.dataloader_prefetch_factor: expected dataloader_num_workers of 1 or more, "
            "found none: add dataloader_num_workers, or leave dataloader_prefetch_factor out"
        )
    if args.get("push_to_hub") and args.get("hub_strategy") in WITH_PICKLES:
        raise ValueError(
            f"{where}: {key}.hub_strategy: expected every_save or end, found {args['hub_strategy']}, which pushes "
            "the optimizer's state, a pickle: use every_save; a run resumes from its local output_dir"
        )
    if held_out:
        _check_evaluation(args, where, key)
        return
    wanted = [name for name, off in NEED_EVAL_DATA.items() if args.get(name, off[0]) not in off]
    wanted += [
        name
        for name, values in (("save_strategy", ("best",)), ("lr_scheduler_type", BY_METRIC))
        if args.get(name) in values
    ]
    if wanted:
        raise ValueError(
            f"{where}: {key}.{wanted[0]}: expected the stage's eval_data (held-out rows), found none: "
            f"add eval_data, or leave {wanted[0]} out"
        )


def _check_evaluation(args: Mapping[str, Any], where: str, key: str) -> None:
    if args.get("eval_strategy", "steps") == "no":
        raise ValueError(
            f"{where}: {key}.eval_strategy: expected steps or epoch, because the stage has eval_data, found no: "
            "leave eval_strategy or eval_data out"
        )
    metric = args.get("metric_for_best_model")
    if metric is not None and not METRIC.fullmatch(metric):
        raise ValueError(
            f"{where}: {key}.metric_for_best_model: expected loss, accuracy or bits_per_byte, of all rows or of "
            f"one language (hi/loss), found {metric!r}"
        )


def _check_finite(value: Any, where: str, key: str) -> None:
    if isinstance(value, Mapping):
        for name, each in value.items():
            _check_finite(each, where, join_key(key, name))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            _check_finite(each, where, f"{key}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: {key}: expected a finite number, found {value}")


# ------------------------------------------------------------------------------ packages


def check_packages(args: Any, place: str) -> None:
    """Check that the package of every tracker in `report_to` is installed.

    Args:
        args: an SFTConfig.
        place: the start of the message.

    Raises:
        ValueError: a tracker is unknown or its package is missing; one line with the pip command.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    for tracker in args.report_to:
        try:
            (callback,) = get_reporting_integration_callbacks([tracker])
        except ValueError as error:
            raise ValueError(f"{place}: report_to: {_reason(error)}") from None
        modules, package = TRACKERS.get(tracker, ((tracker,), tracker))
        if not any(importlib.util.find_spec(module) for module in modules):
            raise ValueError(
                f"{place}: report_to: {tracker} needs a missing package: pip install {package}, "
                f"or leave {tracker} out"
            )
        try:
            callback()
        except Exception as error:  # a tracker may raise anything; then it cannot report
            raise ValueError(f"{place}: report_to: {tracker}: {_reason(error)}") from None


def check_optimizer(args: Any, place: str) -> None:
    """Check that the optimizer and the scheduler of `args` can be created.

    Args:
        args: an SFTConfig.
        place: the start of the message.

    Raises:
        ValueError: creating one of them fails; one line with the reason.
    """
    import torch
    from transformers import Trainer, get_scheduler

    weight = torch.nn.Parameter(torch.zeros(1))
    name = str(args.optim.value)
    try:
        cls, options = Trainer.get_optimizer_cls_and_kwargs(args)
        # Other optimizers may need a GPU to create their state.
        if name in ("sgd", "adagrad", "rmsprop", "adafactor", "adamw_torch", "adamw_torch_fused"):
            cls([weight], **options)
    except Exception as error:  # an installed but broken package may raise anything
        package = next((p for start, p in OPTIMIZER_PACKAGES if name.startswith(start)), None)
        todo = f": pip install {package}" if package and isinstance(error, ImportError) else ""
        raise ValueError(f"{place}: optim: {name}: {_reason(error)}{todo}") from None
    try:
        steps = args.max_steps if args.max_steps > 0 else 100
        get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([weight], lr=1.0),
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        kind = args.lr_scheduler_type.value
        raise ValueError(f"{place}: lr_scheduler_type: {kind}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Tracker -> (modules, one of which it needs; pip's package name), where these differ from its own name.
TRACKERS = {
    "azure_ml": (("azureml",), "azureml-mlflow"),
    "comet_ml": (("comet_ml",), "comet-ml"),
    "flyte": (("flytekit",), "flytekit"),
    "kubeflow": (("transformers",), "kubeflow"),  # needs no other package
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
}
# (start of an optimizer's name, pip's name of its package); the first match counts.
OPTIMIZER_PACKAGES = (
    ("stable_adamw", "torch-optimi"),
    ("adamw_torch_4bit", "torchao"),
    ("adamw_torch_8bit", "torchao"),
    ("adamw_torch_npu_fused", "torch-npu"),
    ("", "'bitsandbytes>=0.50'"),
)
