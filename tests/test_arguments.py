"""Every field of the installed SFTConfig has a decision, and what cannot be honoured is told at once."""

import dataclasses
import importlib.util

import pytest
from transformers.training_args import OptimizerNames
from trl import SFTConfig

from maya_vlm.training.arguments import (
    NUMBERS,
    OPTIMIZERS,
    OTHERS,
    REFUSED,
    REFUSED_OPTIMIZERS,
    check_optimizer,
    check_packages,
    refusal,
)
from maya_vlm.training.recipe import checkpointing_fields, load_recipe

from .test_recipe import changed

FIELDS = {f.name: f for f in dataclasses.fields(SFTConfig) if f.init}


def test_every_field_has_a_decision():
    """A field that a new release brings fails here: honour it, or refuse it with a sentence."""
    decided = {*NUMBERS, *OTHERS, *REFUSED}
    assert set(FIELDS) - decided == set()
    assert not set(NUMBERS) & OTHERS
    assert not {*NUMBERS, *OTHERS} & set(REFUSED)


def test_every_optimizer_has_a_decision():
    for optimizer in OptimizerNames:
        refused = [start for start in REFUSED_OPTIMIZERS if optimizer.value.startswith(start)]
        assert (optimizer.value in OPTIMIZERS) != bool(refused), optimizer.value


def wrong_value(name: str):
    """A value of the field's type that asks for something."""
    default = FIELDS[name].default if name in FIELDS else None
    return "x" if default is None else True if isinstance(default, bool) else default


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name(name, tmp_path):
    value = wrong_value(name)
    if value is dataclasses.MISSING:
        value = ["x"]
    with pytest.raises(ValueError, match=rf"args\.{name}: set by maya; use \S+") as error:
        load_recipe(changed("stages.0.args", {name: value}, tmp_path))
    assert "\n" not in str(error.value)


def test_what_is_off_by_default_may_be_named_as_off(tmp_path):
    args = {"push_to_hub": False, "packing": False, "use_liger_kernel": False, "deepspeed": None}
    loaded = load_recipe(changed("stages.0.args", args, tmp_path)).stages[0].args
    assert loaded == args
    assert refusal("average_tokens_across_devices", False, True) is not None


HUGE = 10**30


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("stages.0.args.max_grad_norm", float("nan"), r"max_grad_norm: expected a number, found nan, which is not finite"),
        ("stages.0.args.weight_decay", ".inf", "weight_decay: expected a number"),
        ("stages.0.args.weight_decay", -0.1, "weight_decay: expected 0 or more, found -0.1"),
        ("stages.0.args.num_train_epochs", float("inf"), "num_train_epochs: expected a number, found inf"),
        ("stages.0.args.num_train_epochs", 0, "num_train_epochs: expected more than 0, found 0"),
        ("stages.0.args.max_steps", 2**63, "max_steps: expected a whole number, found a number of 64 bits"),
        ("stages.0.args.max_steps", 2**40, "max_steps: expected -1 or more and at most 10,000,000, found 1099511627776"),
        ("stages.0.args.adam_beta2", 1.0, "adam_beta2: expected 0 or more and less than 1, found 1"),
        ("stages.0.args.logging_steps", 0, "logging_steps: expected more than 0, found 0"),
        ("stages.0.args.save_steps", -5, "save_steps: expected more than 0, found -5"),
        ("stages.0.args.save_total_limit", 0, "save_total_limit: expected 1 or more, found 0"),
        ("stages.0.args.max_length", 0, "max_length: expected 1 or more, found 0"),
        ("stages.0.args.warmup_steps", -1, "warmup_steps: expected 0 or more"),
        ("stages.0.args.dataloader_num_workers", 10**6, "dataloader_num_workers: expected 0 or more and at most 256"),
        ("stages.0.args.dataloader_prefetch_factor", 2, "prefetch_factor: expected dataloader_num_workers of 1"),
        ("stages.0.args.lr_scheduler_kwargs", {"min_lr": float("nan")}, r"lr_scheduler_kwargs.min_lr: expected a finite number, found nan"),
        ("stages.0.args.lr_scheduler_type", "cosinus", "lr_scheduler_type: expected one of linear, cosine, .*, found 'cosinus'"),
        ("stages.0.args.save_strategy", "epochs", "save_strategy: expected one of no, steps, epoch, best, found 'epochs'"),
        ("stages.0.args.optim", "adamw", r"optim: expected one of .*, found 'adamw'"),
        ("stages.0.args.optim", "galore_adamw", "optim: 'galore_adamw' makes its own parameter groups"),
        ("stages.0.args.optim", "schedule_free_adamw", "optim: 'schedule_free_adamw' trains weights that differ"),
        ("stages.0.args.optim", "lomo", "optim: 'lomo' updates weights inside"),
        ("stages.0.args.eval_strategy", "steps", r"args.eval_strategy: expected the stage's eval_data.*: add eval_data, or leave eval_strategy out"),
        ("stages.0.args.load_best_model_at_end", True, "load_best_model_at_end: expected the stage's eval_data"),
        ("stages.0.args.save_strategy", "best", "save_strategy: expected the stage's eval_data"),
        ("stages.0.args.lr_scheduler_type", "reduce_lr_on_plateau", "lr_scheduler_type: expected the stage's eval_data"),
        ("stages.0.early_stopping_patience", 2, "early_stopping_patience: expected the stage's eval_data"),
        ("stages.0.early_stopping_patience", 0, "early_stopping_patience: expected 1 or more, found 0"),
        ("stages.0.train.0.rate", float("inf"), r"rate: expected a number \| 'frozen', found inf, which is not finite"),
        ("stages.0.train.0.rate", -1, r"train\[0\].rate: expected more than 0, found -1"),
        ("stages.0.train.0.rate", HUGE * 10**300, r"rate: expected a number \| 'frozen', found a number of 1,097 bits"),
        ("stages.0.batch_size", HUGE, "batch_size: expected a whole number, found a number of 100 bits"),
        ("stages.0.batch_size", 2**30, "batch_size: expected 1 or more and at most 1,048,576, found 1073741824"),
        ("stages.0.data.0.limit", -1, r"data\[0\].limit: expected 1 or more, found -1"),
        ("stages.0.data.0.limit", 0, r"data\[0\].limit: expected 1 or more, found 0"),
        ("stages.0.data.0.tasks", {"name": float("nan")}, r"tasks.name: expected a number, found nan"),
        ("stages.0.data.0.tasks", {"name": -1.0}, r"tasks.name: expected 0 or more, found -1"),
        ("stages.0.data.0.tasks", {"name": 1e12}, r"tasks.name: expected 0 or more and at most 1,000, found 1e\+12"),
        ("stages.0.name", "a" * 65, r"stages\[0\].name: expected letters, digits, - and _, at most 64"),
        ("stages.0.name", "..", r"stages\[0\].name: expected letters, digits"),
        ("stages.0.name", "", r"stages\[0\].name: expected letters, digits"),
        ("seed", -1, "seed: expected 0 or more and less than 4,294,967,296, found -1"),
        ("seed", 2**32, "seed: expected 0 or more and less than"),
        ("output_dir", " ", "output_dir: expected a folder, found an empty text"),
        ("model.dtype", "half", "model.dtype: expected 'float32' | 'bfloat16', found"),
    ],
)  # fmt: skip
def test_values_that_make_no_sense(path, value, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        load_recipe(changed(path, value, tmp_path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


def test_stages_of_one_name(tmp_path):
    """Also where a disk does not tell small letters from large ones."""
    file = changed("seed", 1, tmp_path)
    stage = load_recipe(file).stages[0]
    second = {"name": "PRETRAIN", "data": [{"path": "d"}], "train": [{"pattern": ".*", "rate": 1}]}
    first = {**second, "name": stage.name}
    with pytest.raises(
        ValueError,
        match=r"stages\[1\].name: expected a unique name, found 'PRETRAIN' in two stages",
    ):
        load_recipe(changed("stages", [first, second], tmp_path))


def test_held_out_rows_are_looked_at(tmp_path):
    file = changed("stages.0.eval_data", [{"path": "d"}], tmp_path)
    assert load_recipe(file).stages[0].eval_data[0].path == "d"
    with pytest.raises(
        ValueError, match="eval_strategy: expected steps or epoch, because the stage has"
    ):
        load_recipe(file, ["stages.0.args.eval_strategy=no"])
    with pytest.raises(ValueError, match="metric_for_best_model: expected loss, accuracy or bits"):
        load_recipe(file, ["stages.0.args.metric_for_best_model=bleu"])
    for metric in ("loss", "eval_loss", "hi/accuracy", "eval_pt-BR/bits_per_byte"):
        load_recipe(file, [f"stages.0.args.metric_for_best_model={metric}"])


# ------------------------------------------------------------------------------ packages


def config(tmp_path, **values):
    fields = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    return SFTConfig(**fields, **checkpointing_fields({}), **values)


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "mlflow", "trackio", "comet_ml"])
def test_a_tracker_that_is_not_installed_is_told_with_the_command(tracker, tmp_path):
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    package = tracker.replace("_", "-")
    message = f"^stage s: args: report_to: {tracker} needs .*: pip install {package}, or leave {tracker} out"
    with pytest.raises(ValueError, match=message) as error:
        check_packages(config(tmp_path, report_to=[tracker]), "stage s: args")
    assert "\n" not in str(error.value)


def test_no_tracker_of_that_name(tmp_path):
    with pytest.raises(ValueError, match="report_to: wandbb is not supported") as error:
        check_packages(config(tmp_path, report_to=["wandbb"]), "stage s: args")
    assert "pip install" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type: cosine_with_min_lr: "),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"nonsense": 1}}, "lr_scheduler_type: cosine: .*nonsense"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim: sgd: "),
        ({"optim": "sgd", "optim_args": "momentum=-3"}, "optim: sgd: Invalid momentum"),
    ],
)  # fmt: skip
def test_optimizers_and_schedules_that_cannot_be_made(values, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        check_optimizer(config(tmp_path, **values), "stage s: args")
    assert "\n" not in str(error.value)


def test_an_optimizer_that_is_not_installed(tmp_path):
    if importlib.util.find_spec("optimi") is not None:
        pytest.skip("optimi is installed")
    with pytest.raises(ValueError, match="pip install torch-optimi"):
        check_optimizer(config(tmp_path, optim="stable_adamw"), "stage s: args")
