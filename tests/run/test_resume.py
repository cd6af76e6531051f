"""Resume: a run killed twice in every stage equals the uninterrupted run, for full training and LoRA, data in
memory and streamed, one process and two."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessException

from maya_vlm.training.run import trainer
from maya_vlm.training.run.train import train

from ..batches.tiny_stream import make_rows, make_tables
from .tiny_run import logged, make_recipe, write

STAGES = ("pretrain", "finetune", "lora")


def write_recipe(folder: Path, streaming: bool) -> Path:
    """Write a recipe of three stages of four steps: projector, whole decoder on two datasets, low-rank adapter."""
    recipe = make_recipe(folder)
    tables, rows = make_tables(folder / "tables"), make_rows(folder / "rows.parquet")
    first = [{"path": str(tables), "image_folder": str(tables)}]
    second = [*first, {"path": str(rows)}]
    lora = {"name": "lora", "adapter": {"rate": 0.01, "r": 4, "dropout": 0.1}}
    recipe["stages"].append({**recipe["stages"][0], **lora})
    for stage, data in zip(recipe["stages"], (first, second, second), strict=True):
        stage["data"] = [{**source, "streaming": streaming} for source in data]
        # Windows of eight groups, steps of three groups: some steps cross the edge of a window, and
        # twelve groups cross the end of an epoch of eight.
        stage |= {"batch_size": 3, "group_size": 3, "shuffle_buffer": 8}
        stage["args"] = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "max_length": 100}
    recipe["stages"][0]["data"][0]["limit"] = 8
    return write(recipe, folder / "recipe.yaml")


def log(folder: Path) -> list[tuple]:
    """Return (step, loss, loss of a language, gradient norm, learning rate) of every step of a stage."""
    keys = ("step", "mean_loss", "hi/loss", "grad_norm", "learning_rate")
    return [tuple(line.get(k, 0.0) for k in keys) for line in logged(folder)]


def killed_run(rank: int, path: str, output: str, processes: int, stage: str, step: int) -> None:
    original = trainer.LineCallback.on_log

    def on_log(self, args, state, control, **kwargs):
        original(self, args, state, control, **kwargs)
        if self.stage == stage and state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.LineCallback.on_log = on_log
    train(path, [f"processes={processes}"], output_dir=output)


@pytest.fixture(scope="module", params=[False, True], ids=["memory", "streamed"])
def recipe(request, tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), request.param)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_twice_in_every_stage_is_the_same_run(recipe, tmp_path, processes):
    """Check that all numbers are equal bit for bit, including the adapter's dropout."""
    one, output = tmp_path / "straight", tmp_path / "killed"
    train(str(recipe), [f"processes={processes}"], output_dir=str(one))
    # Before and after the first checkpoint.
    for stage in STAGES:
        for step in (1, 3):
            with pytest.raises(ProcessException):
                torch.multiprocessing.start_processes(
                    killed_run,
                    args=(str(recipe), str(output), processes, stage, step),
                    nprocs=1,
                    start_method="fork",
                )
            left = trainer.checkpoints(output / ".work" / stage)
            assert [p.name for p in left] == ([] if step == 1 else ["checkpoint-2"])
            assert not (output / "config.json").exists()
    train(str(recipe), [f"processes={processes}"], output_dir=str(output))
    for stage in STAGES:
        assert log(one / stage) == log(output / stage)
        assert len(log(one / stage)) == 4
        found = load_file(output / stage / "model.safetensors")
        for name, value in load_file(one / stage / "model.safetensors").items():
            assert torch.equal(found[name], value), name
