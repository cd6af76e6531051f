"""`maya train maya-8b/dpo`: the shipped recipe with TRL's DPO script, on a tiny Maya."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from maya_vlm.training.inference.load import load
from maya_vlm.training.run.preference import train_preferences
from tests.compatibility.test_preference_trainers import rows
from tests.helpers.tiny_maya import save_tiny_maya

ROOT = Path(__file__).resolve().parents[2]


def test_the_shipped_recipe_trains_an_adapter_and_continues(tmp_path):
    model = save_tiny_maya(tmp_path / "tiny")
    (tmp_path / "data").mkdir()
    rows(chosen="a cat", rejected="a dog").to_parquet(tmp_path / "data" / "train.parquet")
    output = tmp_path / "out"
    changes = [
        f"model_name_or_path={model}",
        f"dataset_name={tmp_path / 'data'}",
        "dtype=float32",
        "bf16=false",
        "use_cpu=true",
        "gradient_accumulation_steps=1",
        "learning_rate=0.01",
        "logging_steps=1",
        "save_steps=1",
        "disable_tqdm=true",
    ]

    def run(steps: int) -> str:
        command = [sys.executable, "-m", "maya_vlm.training.cli", "train", "maya-8b/dpo"]
        command += ["--output-dir", str(output), "--set", *changes, f"max_steps={steps}"]
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert f"saved to {output}" in run(1)
    assert (output / "adapter_model.safetensors").is_file()
    assert not (output / "training_args.bin").exists()
    run(2)
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    network, _ = load(str(output))
    plain, _ = load(str(model))
    moved = {
        name
        for name, value in network.state_dict().items()
        if not value.equal(plain.state_dict()[name])
    }
    assert moved
    assert all("language_model" in name for name in moved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["betta=0.1"], "unknown key 'betta'; did you mean 'beta'"),
        (
            ["trust_remote_code=true"],
            "trust_remote_code: expected another key, found one that `maya train` sets",
        ),
    ],
)
def test_a_wrong_option_is_named(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        train_preferences("maya-8b/dpo", changes)
    assert "dpo.yaml" in str(error.value)
    assert "\n" not in str(error.value)
