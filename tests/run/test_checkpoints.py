"""Damaged checkpoints: each is reported, and the run continues from the newest undamaged one with the same result."""

import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maya_vlm.training import cli
from maya_vlm.training.run import checkpoints as module
from maya_vlm.training.run.checkpoints import (
    CHECKSUMS,
    checkpoints,
    damage,
    drop_old,
    newest_whole,
    seal,
    writing,
)
from maya_vlm.training.run.train import train
from maya_vlm.training.run.trainer import MayaTrainer

from .tiny_run import logged, make_recipe, write

LORA = {"name": "lora", "adapter": {"rate": 0.01, "r": 4, "dropout": 0.1}}


def one_stage(folder: Path, kind: str) -> Path:
    """Write a recipe of one stage of six steps with checkpoints at 2, 4 and 6. It starts from a finished Maya and
    trains a low-rank adapter, or everything except the tower."""
    recipe = make_recipe(folder)
    base, stage = recipe["stages"]
    base["args"] = {"max_steps": 1}
    stage["args"] = {"max_steps": 6, "logging_steps": 3, "save_steps": 2, "save_total_limit": 9}
    if kind == "lora":
        stage |= {**LORA, "train": base["train"]}
    recipe["stages"] = [base, {**stage, "name": "last"}]
    return write(recipe, folder / "r.yaml")


@pytest.fixture(scope="module", params=["plain", "lora"])
def begun(request, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Return the recipe, the folder of its uninterrupted run, and the folder of a run that ended after step 4."""
    folder = tmp_path_factory.mktemp(request.param)
    path = one_stage(folder, request.param)
    straight = train(str(path), output_dir=str(folder / "straight"))
    original = MayaTrainer._save_checkpoint

    def save(self, *args):
        original(self, *args)
        if self.state.global_step == 4:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MayaTrainer, "_save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            train(str(path), output_dir=str(folder / "begun"))
    return path, straight, folder / "begun"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran-from-a-pickle",)


DAMAGES = {
    "flipped": flip,
    "cut": cut,
    "emptied": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
    "pickle": lambda file: file.write_bytes(pickle.dumps(Evil())),
}


def same(one: Path, two: Path) -> None:
    keys = ("step", "loss", "mean_loss", "grad_norm", "learning_rate", "epoch")
    lines = [[[line.get(k) for k in keys] for line in logged(f / "last")] for f in (one, two)]
    assert lines[0] == lines[1]
    weights = [load_file(f / "model.safetensors") for f in (one, two)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_every_file_counts(begun, tmp_path, monkeypatch):
    """Check every file with one flipped bit and with other damage."""
    monkeypatch.chdir(tmp_path)
    newest = checkpoints(begun[2] / ".work" / "last")[-1]
    assert damage(newest) is None
    names = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    weights = "adapter_model.safetensors" if (newest / "adapter_model.safetensors").exists() else "model.safetensors"  # fmt: skip
    assert {weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
            "log_sums.json", CHECKSUMS} <= {str(name) for name in names}  # fmt: skip
    assert "training_args.bin" not in {str(name) for name in names}, "a pickle that holds secrets"
    for name in names:
        for how, hurt in DAMAGES.items():
            copy = tmp_path / "copy"
            shutil.copytree(newest, copy)
            hurt(copy / name)
            told = damage(copy)
            # A checkpoint without checksums counts as one of an earlier version: undamaged if it can be read.
            assert (told is None) == (str(name) == CHECKSUMS and how == "gone"), (name, how)
            shutil.rmtree(copy)
    assert not list(tmp_path.iterdir()), "a pickle was run"


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json"])
def test_the_older_one_is_taken_to_the_same_result(begun, tmp_path, name, capsys):
    path, straight, left = begun
    output = tmp_path / "run"
    shutil.copytree(left, output)
    flip(output / ".work" / "last" / "checkpoint-4" / name)
    assert cli.main(["train", str(path), "--output-dir", str(output)]) == 0
    said = capsys.readouterr()
    assert f"checkpoint-4: {name} is not as it was written; going on from checkpoint-2" in said.out
    assert "Traceback" not in said.err
    same(straight, output)


def test_without_damage_the_newest_is_taken(begun, tmp_path, capsys):
    path, straight, left = begun
    shutil.copytree(left, tmp_path / "run")
    train(str(path), output_dir=str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "continuing from" in said
    assert "checkpoint-4\n" in said
    same(straight, tmp_path / "run")


def test_none_whole_is_one_line(begun, tmp_path, capsys):
    path, _, left = begun
    output = tmp_path / "run"
    shutil.copytree(left, output)
    for checkpoint in checkpoints(output / ".work" / "last"):
        (checkpoint / "scheduler.pt").unlink()
    assert cli.main(["train", str(path), "--output-dir", str(output)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "checkpoint-4: scheduler.pt is missing; no checkpoint in" in error
    shutil.rmtree(output / ".work" / "last")  # as the message advises
    train(str(path), output_dir=str(output))


def make_old(checkpoint: Path) -> None:
    """Change a checkpoint to the form that the previous version wrote."""
    (checkpoint / CHECKSUMS).unlink()
    sums = module.read_sums(checkpoint)["languages"]
    (checkpoint / "log_sums.json").write_text(str(sums))


def test_checkpoints_of_an_earlier_version(begun, tmp_path):
    path, straight, left = begun
    output = tmp_path / "run"
    shutil.copytree(left, output)
    for checkpoint in checkpoints(output / ".work" / "last"):
        make_old(checkpoint)
        assert damage(checkpoint) is None
    newest = checkpoints(output / ".work" / "last")[-1]
    for name in (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "log_sums.json",
    ):
        for how in ("cut", "emptied", "gone", "pickle"):
            copy = tmp_path / "copy"
            shutil.copytree(newest, copy)
            DAMAGES[how](copy / name)
            assert damage(copy) is not None, (name, how)
            shutil.rmtree(copy)
    train(str(path), output_dir=str(output))
    weights = [load_file(f / "model.safetensors") for f in (straight, output)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# ------------------------------------------------------------------------------ choice


def make(folder: Path, step: int, best: int | None = None, whole: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    state = f'{{"global_step": {step}, "best_global_step": {best or "null"}, "loss": NaN}}'
    (checkpoint / "trainer_state.json").write_text(state)
    seal(checkpoint)
    if not whole:
        flip(checkpoint / "trainer_state.json")
    return checkpoint


def test_the_newest_whole_one(tmp_path):
    said: list[str] = []
    assert newest_whole(tmp_path / "none", False, said.append) is None
    make(tmp_path, 2)
    expected = make(tmp_path, 10)
    make(tmp_path, 20, whole=False)
    make(tmp_path, 30, whole=False)
    (tmp_path / ".partial" / "checkpoint-40").mkdir(parents=True)
    assert newest_whole(tmp_path, False, said.append) == expected
    assert [line.rpartition("; ")[2] for line in said] == ["going on from checkpoint-10"] * 2
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    assert (tmp_path / "checkpoint-30.damaged").is_dir()
    said.clear()
    assert newest_whole(tmp_path, False, said.append) == expected
    assert not said


def test_a_checkpoint_needs_its_best_one(tmp_path):
    make(tmp_path, 2, best=2)
    make(tmp_path, 4, best=4, whole=False)
    make(tmp_path, 6, best=4)
    assert newest_whole(tmp_path, False, print).name == "checkpoint-6"
    assert newest_whole(tmp_path, True, print).name == "checkpoint-2"
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2"]


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (None, None, [2, 4, 6, 8]),
        (2, None, [6, 8]),
        (1, None, [8]),
        (1, 4, [4, 8]),
        (2, 4, [4, 8]),
        (3, 4, [4, 6, 8]),
        (1, 8, [8]),
        (2, 99, [6, 8]),
    ],
)
def test_how_many_are_kept(keep, best, left, tmp_path):
    for step in (2, 4, 6, 8):
        make(tmp_path, step)
    drop_old(tmp_path, keep, best)
    assert [p.name for p in checkpoints(tmp_path)] == [f"checkpoint-{s}" for s in left]


def test_large_files_are_hashed_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 7)
    file = tmp_path / "a.bin"
    file.write_bytes(bytes(range(100)))
    seal(tmp_path)
    assert damage(tmp_path) is None
    for place in (0, 6, 7, 50, 99):
        content = bytearray(range(100))
        content[place] ^= 1
        file.write_bytes(content)
        assert damage(tmp_path) == "a.bin is not as it was written", place


# ------------------------------------------------------------------------------ full disk


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "torch could not"),
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), "torch could not"),
        (Exception("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (Exception("Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
    ],
)  # fmt: skip
def test_what_a_disk_does_not_take_is_one_line(error, words, tmp_path):
    with pytest.raises(
        OSError, match=rf"{tmp_path}: cannot be written: {words}.*command continues"
    ):
        with writing(tmp_path):
            raise error


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"), writing(tmp_path):
        raise RuntimeError("a bug")


@pytest.fixture
def small_disk(tmp_path):
    """Return a function that mounts a disk of a given size in KiB; skip if mounting is not permitted."""
    made: list[Path] = []

    def make_disk(size: int) -> Path:
        place = tmp_path / f"disk-{size}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no disk can be mounted here")
        made.append(place)
        return place

    yield make_disk
    for place in made:
        subprocess.run(["umount", str(place)], check=False)


@pytest.mark.parametrize(
    "size", [700, 1500, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 400, 1000))]
)
def test_a_full_disk_ends_in_one_line_and_goes_on(begun, size, small_disk, tmp_path, capsys):
    path, straight, _ = begun
    disk = small_disk(size)
    code = cli.main(["train", str(path), "--output-dir", str(disk / "run")])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if code == 0:
        pytest.skip("the run fits")
    assert code == 2
    assert "maya train: error: " in said.strip().splitlines()[-1]
    assert not list(disk.rglob("*.model")), "what is half-written takes the room"
    subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
    output = train(str(path), output_dir=str(disk / "run"))
    same(straight, output)
    shutil.copytree(output, tmp_path / "kept")
