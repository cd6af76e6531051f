"""Held-out rows: scores equal a plain forward's, training is unchanged, and the choice of the best checkpoint
and early stopping are the same after a kill."""

import itertools
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessException

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.recipe import load_recipe
from maya_vlm.training.run import checkpoints as checkpoints_module
from maya_vlm.training.run import trainer
from maya_vlm.training.run.estimate import estimate, format_estimate
from maya_vlm.training.run.schedule import Schedule, is_exhausted
from maya_vlm.training.run.train import train
from modeling_maya import MayaForConditionalGeneration
from processing_maya import MayaProcessor

from .tiny_run import logged, make_data, make_recipe, training_log, write

BEST = {"load_best_model_at_end": True, "save_total_limit": 1}


def held_out_recipe(folder: Path, **args) -> Path:
    """Write a recipe of one stage that learns fast, with five held-out pictures and one untrained language."""
    recipe = make_recipe(folder)
    held = make_data(folder / "held", images=5, languages=("en", "fr", "ja"))
    (stage, _) = recipe["stages"]
    recipe["stages"] = [stage]
    stage["eval_data"] = [{"path": str(held)}]
    stage["train"] = [
        {"pattern": "vision_tower", "rate": "frozen"},
        {"pattern": ".*", "rate": 0.05},
    ]
    stage["args"] = {"max_steps": 12, "logging_steps": 1, "eval_steps": 3, "save_steps": 3, **args}
    return write(recipe, folder / "r.yaml")


def evaluations(folder: Path) -> list[dict]:
    """Return the evaluation lines of a stage's log, without their times."""
    lines = [line for line in training_log(folder)["log"] if "eval_loss" in line]
    return [{k: v for k, v in line.items() if k != "eval_runtime"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return recipe and folder of a run with held-out rows that ends with the best checkpoint."""
    path = held_out_recipe(tmp_path_factory.mktemp("held"), **BEST)
    return path, train(str(path))


def test_training_is_as_without_them(finished, tmp_path, capsys):
    path, folder = finished
    plain = ["stages.0.eval_data=[]", "stages.0.args.load_best_model_at_end=false"]
    plain.append("stages.0.args.eval_steps=null")
    other = train(str(path), plain, output_dir=str(tmp_path / "plain"))
    for one, two in zip(logged(folder), logged(other), strict=True):
        for name in ("loss", "mean_loss", "grad_norm", "en/loss"):
            assert one[name] == two[name]
    assert "eval" not in capsys.readouterr().out


def test_metrics_are_those_of_a_plain_forward(finished):
    path, folder = finished
    lines = evaluations(folder)
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    best = min(lines, key=lambda line: line["eval_loss"])
    assert training_log(folder)["best_step"] == best["step"]
    assert 3 < best["step"] < 12, "the best should lie in the middle: else other tests test nothing"
    # The stage ended with the best checkpoint, so the saved model must have its metrics.
    stage = load_recipe(path).stages[0]
    model = MayaForConditionalGeneration.from_pretrained(folder).eval()
    processor = MayaProcessor.from_pretrained(folder)
    data = GroupData(stage.eval_data)
    collator = GroupCollator(data, processor)
    sums: dict[str, list[float]] = {}
    for index in range(len(data)):
        conversation = data.conversation(index)
        image = data.load_image(0, conversation.images[0], conversation.id)
        pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
        encoded = collator.encode(index)
        ids = torch.from_numpy(encoded.ids.astype("int64"))[None]
        with torch.no_grad():
            logits = model(input_ids=ids, pixel_values=pixels).logits[0, :-1].double()
        keep = torch.from_numpy(encoded.trained)[1:]
        target = ids[0, 1:][keep]
        row = sums.setdefault(conversation.language, [0.0, 0, 0])
        row[0] += torch.nn.functional.cross_entropy(logits[keep], target, reduction="sum").item()
        row[1] += int((logits[keep].argmax(-1) == target).sum())
        row[2] += len(target)
    assert set(sums) == {"en", "fr", "ja"}
    for language, (loss, right, count) in sums.items():
        assert best[f"eval_{language}/loss"] == pytest.approx(loss / count, abs=1e-4)
        assert best[f"eval_{language}/accuracy"] == pytest.approx(right / count, abs=1e-4)
    total, right, count = (sum(row[i] for row in sums.values()) for i in range(3))
    assert best["eval_loss"] == pytest.approx(total / count, abs=1e-4)
    assert best["eval_accuracy"] == pytest.approx(right / count, abs=1e-4)
    assert best["eval_bits_per_byte"] > 0


def test_rows_are_packed_as_training_packs_them(finished, tmp_path):
    path, folder = finished
    short = train(str(path), ["stages.0.args.max_length=60"], output_dir=str(tmp_path / "short"))
    for one, two in zip(evaluations(folder), evaluations(short), strict=True):
        assert one == pytest.approx(two, abs=2e-3)


def killed(rank: int, path: str, output: str, step: int, processes: int) -> None:
    original = trainer.MayaTrainer._save_checkpoint

    def save(self, *args):
        original(self, *args)
        if self.state.global_step == step:
            os._exit(9)

    trainer.MayaTrainer._save_checkpoint = save
    train(path, [f"processes={processes}"], output_dir=output)


def kill(path: Path, output: Path, step: int, processes: int = 1) -> None:
    """Run a recipe, and kill it when the checkpoint of a step is written."""
    with pytest.raises(ProcessException):
        torch.multiprocessing.start_processes(
            killed, args=(str(path), str(output), step, processes), nprocs=1, start_method="fork"
        )


@pytest.mark.parametrize("step", [3, 9, 12])
def test_the_best_outlives_a_kill_and_the_limit(finished, tmp_path, step):
    """Kill a run after a checkpoint that is not the best one; the best one must be kept."""
    path, folder = finished
    output = tmp_path / "killed"
    kill(path, output, step)
    best = training_log(folder)["best_step"]
    left = [p.name for p in checkpoints_module.checkpoints(output / ".work" / "pretrain")]
    assert left == [f"checkpoint-{s}" for s in sorted({min(best, step), step})]
    train(str(path), output_dir=str(output))
    assert_same(folder, output)


def assert_same(one: Path, two: Path) -> None:
    assert evaluations(one) == evaluations(two)
    assert training_log(one)["best_step"] == training_log(two)["best_step"]
    weights = [load_file(folder / "model.safetensors") for folder in (one, two)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_best_checkpoint_that_is_damaged_is_found_again(finished, tmp_path, capsys):
    path, folder = finished
    best = training_log(folder)["best_step"]
    keep = "stages.0.args.save_total_limit"
    for number, kept in enumerate((1, 9)):
        output = tmp_path / f"killed-{number}"
        kill(
            write(
                load_yaml(
                    path, args={**load_yaml(path)["stages"][0]["args"], "save_total_limit": kept}
                ),
                tmp_path / f"{number}.yaml",
            ),
            output,
            12,
        )
        (output / ".work" / "pretrain" / f"checkpoint-{best}" / "optimizer.pt").unlink()
        if kept == 1:
            with pytest.raises(
                ValueError, match=rf"checkpoint-{best}: optimizer.pt is missing; no"
            ):
                train(str(path), output_dir=str(output))
            continue
        train(str(path), [f"{keep}={kept}"], output_dir=str(output))
        assert f"checkpoint-{best}: optimizer.pt is missing; going on from checkpoint-3" in capsys.readouterr().out  # fmt: skip
        assert_same(folder, output)


def stopping_recipe(folder: Path) -> Path:
    """Write a recipe in which the held-out Japanese rows soon get worse."""
    path = held_out_recipe(folder, **BEST, max_steps=40)
    return write(load_yaml(path, early_stopping_patience=2), path)


def load_yaml(path: Path, **changes):
    import yaml

    recipe = yaml.safe_load(path.read_text())
    recipe["stages"][0].update(changes)
    return recipe


def test_early_stopping_is_the_same_after_a_kill(tmp_path, capsys):
    path = stopping_recipe(tmp_path)
    straight = train(str(path), output_dir=str(tmp_path / "straight"))
    end = training_log(straight)["steps"]
    assert end < 40
    values = [line["eval_loss"] for line in evaluations(straight)]
    assert is_exhausted(values, False, 2, 0.0)
    assert not is_exhausted(values[:-1], False, 2, 0.0)
    for step in (end - 3, end):  # during the patience, and after its end
        output = tmp_path / f"killed-{step}"
        kill(path, output, step)
        train(str(path), output_dir=str(output))
        assert training_log(output)["steps"] == end
        assert_same(straight, output)


@pytest.mark.slow
def test_two_processes_score_as_one(finished, tmp_path):
    path, folder = finished
    output = tmp_path / "two"
    kill(path, output, 9, processes=2)
    train(str(path), ["processes=2"], output_dir=str(output))
    for one, two in zip(evaluations(folder), evaluations(output), strict=True):
        assert one == pytest.approx(two, abs=2e-3)
    assert training_log(output)["best_step"] == training_log(folder)["best_step"]


@pytest.mark.slow
def test_an_adapter_ends_with_its_best(tmp_path):
    recipe = load_yaml(held_out_recipe(tmp_path, **BEST))
    first = {**recipe["stages"][0], "name": "base", "eval_data": [], "args": {"max_steps": 1}}
    recipe["stages"][0] |= {
        "adapter": {"rate": 0.05, "r": 4},
        "train": make_recipe(tmp_path)["stages"][0]["train"],
    }
    recipe["stages"].insert(0, first)
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    lines = evaluations(folder)
    best = training_log(folder)["best_step"]
    assert best == min(lines, key=lambda line: line["eval_loss"])["step"]


def test_by_epochs_a_plateau_and_the_best_alone(tmp_path, capsys):
    path = held_out_recipe(tmp_path)
    changes = [
        "stages.0.args={num_train_epochs: 3, logging_strategy: epoch, eval_strategy: epoch, "
        "save_strategy: best, metric_for_best_model: fr/accuracy, lr_scheduler_type: reduce_lr_on_plateau, "
        "lr_scheduler_kwargs: {patience: 0}, eval_on_start: true}"
    ]
    saved: list[int] = []
    original = trainer.MayaTrainer._save_checkpoint
    with pytest.MonkeyPatch.context() as patch:

        def save(self, *args):
            saved.append(self.state.global_step)
            original(self, *args)

        patch.setattr(trainer.MayaTrainer, "_save_checkpoint", save)
        folder = train(str(path), changes)
    assert [(line["step"], line["epoch"]) for line in logged(folder)] == [(3, 1), (6, 2), (9, 3)]
    lines = evaluations(folder)
    assert [line["step"] for line in lines] == [0, 3, 6, 9]
    seen = [line["eval_fr/accuracy"] for line in lines[1:]]
    highest = list(itertools.accumulate(seen, max))
    expected = [3 * (i + 1) for i, v in enumerate(seen) if i == 0 or v > highest[i - 1]]
    assert saved == expected
    assert "eval: loss" in capsys.readouterr().out


def test_a_language_without_held_out_rows_has_no_metric(tmp_path):
    path = held_out_recipe(tmp_path, metric_for_best_model="hi/loss", load_best_model_at_end=True)
    with pytest.raises(ValueError, match=r"metric_for_best_model: expected a language of eval_data \(en, fr, ja\), found 'hi'"):  # fmt: skip
        train(str(path))


def test_bad_held_out_rows_follow_the_policy(tmp_path, capsys):
    path = held_out_recipe(tmp_path, max_steps=2)
    picture = tmp_path / "held" / "pictures" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"row '2-\w\w' of .*held/rows.jsonl: its image cannot"):
        train(str(path))
    shutil.rmtree(tmp_path / "run")
    folder = train(str(path), ["stages.0.on_bad_row=skip"])
    assert "held/rows.jsonl: 3 rows skipped" in capsys.readouterr().out
    assert (folder / "bad_rows.jsonl").read_text().count("\n") == 3


def test_the_estimate_counts_them(finished, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (found,) = estimate(str(finished[0]), gpu="a100")
    assert found.eval_seconds > 0
    assert "4 evaluations of 5 held-out groups" in format_estimate([found])
    changes = ["stages.0.args.eval_strategy=epoch", "stages.0.args.save_strategy=epoch"]
    (found,) = estimate(str(finished[0]), changes, gpu="a100")
    # Twelve steps of two groups, of six groups in total.
    assert "4 evaluations of 5 held-out groups" in format_estimate([found])


# ------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize(
    ("values", "patience", "threshold", "ended"),
    [
        ([3, 2, 1], 1, 0.0, False),
        ([3, 2, 2], 1, 0.0, True),
        ([3, 2, 4, 1, 4], 2, 0.0, False),
        ([3, 2, 4, 5], 2, 0.0, True),
        ([3, 2.9, 2.8], 2, 0.5, True),
        ([], 1, 0.0, False),
    ],
)
def test_patience_by_hand(values, patience, threshold, ended):
    assert is_exhausted(values, False, patience, threshold) == ended
    assert is_exhausted([-v for v in values], True, patience, threshold) == ended


def test_epochs_are_passes_over_the_data():
    schedule = Schedule(save="no", per_step=4, groups=10, per_epoch=5)
    assert [schedule.epochs(step) for step in (0, 1, 2, 3)] == [0, 0.8, 1.6, 2.0]
