"""A recipe of kind `dpo` logs what TRL's own DPOTrainer, built without it, logs on the same rows."""

import json
import math
import warnings

import pytest
import yaml

from maya_vlm.training.run.preference import train_preferences
from modeling_maya import MayaForConditionalGeneration
from processing_maya import MayaProcessor
from tests.compatibility.test_preference_trainers import rows
from tests.helpers.tiny_maya import save_tiny_maya

STEPS = 3
CHOSEN = ["a cat", "a small house", "the sun and the sea", "yes"]
REJECTED = ["a dog", "no", "the old house by the sea", "a cat"]
# TRL's defaults for beta, seed and schedule are others: a key that is lost shows.
OPTIONS = {
    "beta": 0.3,
    "seed": 7,
    "lr_scheduler_type": "constant",
    "learning_rate": 1e-2,
    "max_length": None,
    "per_device_train_batch_size": 2,
    "max_steps": STEPS,
    "logging_steps": 1,
    "save_steps": STEPS,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
TARGETS = [r".*language_model.*\.(q|v)_proj"]
TIMES = ("runtime", "per_second", "step_time")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


def logged(folder):
    """What a trainer wrote in its last checkpoint, step by step, without times."""
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    return [
        {name: value for name, value in entry.items() if not name.endswith(TIMES)}
        for entry in state["log_history"]
        if "loss" in entry
    ]


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "LoRA"])
def test_a_recipe_logs_what_the_trainer_alone_logs(folder, tmp_path, adapter):
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    data = rows(chosen=CHOSEN, rejected=REJECTED)
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "train.parquet")
    recipe = {
        "kind": "dpo",
        "output_dir": str(tmp_path / "recipe"),
        "model_name_or_path": str(folder),
        "dataset_name": str(tmp_path / "data"),
        "dtype": "float32",
        **OPTIONS,
    }
    if adapter:
        recipe |= {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": TARGETS}
    (tmp_path / "preferences.yaml").write_text(yaml.safe_dump(recipe))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train_preferences(str(tmp_path / "preferences.yaml"))
        reference = None if adapter else MayaForConditionalGeneration.from_pretrained(folder)
        lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=TARGETS[0])
        trainer = DPOTrainer(
            MayaForConditionalGeneration.from_pretrained(folder),
            ref_model=reference,
            args=DPOConfig(output_dir=str(tmp_path / "alone"), **OPTIONS),
            train_dataset=data,
            processing_class=MayaProcessor.from_pretrained(folder),
            peft_config=lora if adapter else None,
        )
        trainer.train()

    found, wanted = logged(tmp_path / "recipe"), logged(tmp_path / "alone")
    assert len(found) == len(wanted) == STEPS
    # Policy and reference are equal before the first step.
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(found[-1]["loss"] - math.log(2)) > 1e-3
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins"} <= set(found[-1])
    for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True), 1):
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6), f"step {step}"
