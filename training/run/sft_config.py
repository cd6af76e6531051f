"""The SFTConfig of a stage, from its recipe."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import LOGGING_STEPS
from ..common.telling import one_line
from ..recipe import CHECKPOINTING, EPOCHS, Recipe, StageRecipe, checkpointing_fields
from .manifest import WORK


def stage_arguments(recipe: Recipe, stage: StageRecipe, folder: Path, state: Any) -> Any:
    """Return the SFTConfig of a stage: defaults, then the recipe's args, then the fixed values.

    Args:
        recipe: the run's recipe.
        stage: one of its stages.
        folder: the stage's folder; checkpoints go to the work folder next to it.
        state: accelerate's PartialState.

    Raises:
        ValueError: SFTConfig rejects a value; one line with its reason.
    """
    import torch
    from trl import SFTConfig

    from ..model.compiling import ARGUMENTS as COMPILE

    cuda = torch.cuda.is_available()
    rates = [rule.rate for rule in stage.train if rule.rate != "frozen"]
    rates += [stage.adapter.rate] if stage.adapter else []
    values: dict[str, Any] = {
        "learning_rate": max((float(r) for r in rates), default=0.0),
        "num_train_epochs": EPOCHS,
        "lr_scheduler_type": "cosine",
        "bf16": cuda,
        "max_length": None,
        "logging_steps": LOGGING_STEPS,
        "save_steps": 500,
        "save_total_limit": 2,
        "report_to": "none",
        # A NaN loss must reach the log, because it ends the run.
        "logging_nan_inf_filter": False,
        "log_level_replica": "error",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": cuda,
        "use_cpu": not cuda,
    }
    values.update(
        (k, v)
        for k, v in stage.args.items()
        # pushing.py pushes instead of Trainer, which would push pickles.
        if k not in COMPILE and k not in CHECKPOINTING and k != "push_to_hub"
    )
    values.update(checkpointing_fields(stage.args))
    if os.environ.get("HF_TOKEN"):
        values.pop("hub_token", None)
    if stage.eval_data:
        values.setdefault("eval_strategy", "steps")
        if stage.early_stopping_patience is not None or values.get("save_strategy") == "best":
            values.setdefault("metric_for_best_model", "loss")
        if values.get("greater_is_better") is None:
            metric = str(values.get("metric_for_best_model") or "loss")
            values["greater_is_better"] = metric.endswith("accuracy")
    if state.num_processes == 1:  # Trainer rejects FSDP with one process
        values.pop("fsdp", None)
        values.pop("fsdp_config", None)
    values.update(
        output_dir=str(folder.parent / WORK / stage.name),
        seed=recipe.seed,
        data_seed=recipe.seed,
        per_device_train_batch_size=1,  # one item is a rank's share of a step, with any number of rows
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
    )
    if values.get("report_to") not in ("none", [], None):
        values.setdefault("run_name", f"{folder.parent.name}-{stage.name}")
    try:
        args = SFTConfig(**values)
        if args.n_gpu > 1:
            # Disable nn.DataParallel, which Trainer enables when it sees several GPUs.
            args._n_gpu = 1
        return args
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise ValueError(f"stage {stage.name}: args: {one_line(str(error), 300)}") from None


def metric_name(args: Any) -> str | None:
    """Return the log key of the metric that decides which checkpoint is the best."""
    name = args.metric_for_best_model
    return name if name is None or name.startswith("eval_") else f"eval_{name}"


def check_metric(stage: StageRecipe, languages: Sequence[str]) -> None:
    """Raise ValueError if the metric is of a language without held-out rows."""
    name = str(stage.args.get("metric_for_best_model") or "loss").removeprefix("eval_")
    language = name.rpartition("/")[0]
    if language and language not in languages:
        raise ValueError(
            f"stage {stage.name}: args.metric_for_best_model: expected a language of eval_data "
            f"({', '.join(languages)}), found {language!r}"
        )
