"""Runs that end early: a NaN loss, Ctrl-C, a killed process, a second run in the same folder."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from maya_vlm.training import cli
from maya_vlm.training.recipe import load_recipe
from maya_vlm.training.run import processes as processes_module
from maya_vlm.training.run import stage as stage_module
from maya_vlm.training.run import train as run_module
from maya_vlm.training.run.checkpoints import checkpoints
from maya_vlm.training.run.manifest import MANIFEST, WORK, make_manifest, write_manifest
from maya_vlm.training.run.processes import check_processes
from maya_vlm.training.run.schedule import Schedule
from maya_vlm.training.run.train import train

from .test_train import ended_at, losses
from .tiny_run import make_recipe, write

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow


def one_stage(folder: Path, **args) -> Path:
    recipe = make_recipe(folder)
    recipe["stages"] = recipe["stages"][1:]
    recipe["stages"][0]["args"] |= args
    return write(recipe, folder / "r.yaml")


# ------------------------------------------------------------------------------ NaN


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(tmp_path, capsys):
    path = one_stage(tmp_path, save_steps=1, weight_decay=0.0, max_grad_norm=0.0)
    change = "stages.0.train.2.rate=1.0e+30"
    assert cli.main(["train", str(path), "--set", change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    work = tmp_path / "run" / WORK / "finetune"
    (last,) = checkpoints(work)
    assert last.name == "checkpoint-1"
    assert "stage finetune: step 2: expected a finite loss, found nan at a rate of " in error
    assert f"the last whole checkpoint is {last}" in error
    for value in load_file(last / "model.safetensors").values():
        assert torch.isfinite(value).all()
    assert not (tmp_path / "run" / "finetune").exists()


@pytest.mark.parametrize("step", [2, 4])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path, step, monkeypatch):
    path = one_stage(tmp_path)
    original = Schedule.on_step_end

    def poison(self, args, state, control, model=None, **kwargs):
        if state.global_step == step:
            with torch.no_grad():
                model.lm_head.weight[0, 0] = float("nan")
        original(self, args, state, control, **kwargs)

    monkeypatch.setattr(Schedule, "on_step_end", poison)
    with pytest.raises(ValueError, match=rf"after step {step}: expected finite weights"):
        train(str(path))
    assert len(checkpoints(tmp_path / "run" / WORK / "finetune")) == (step == 4)
    monkeypatch.undo()
    assert len(losses(train(str(path)))) == 4


# ------------------------------------------------------------------------------ signals


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    path = write(make_recipe(folder), folder / "r.yaml")
    return path, train(str(path))


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 1), pytest.param(2, 0, marks=SLOW), pytest.param(2, 1, marks=SLOW)],
)
def test_ctrl_c_saves_and_the_same_command_continues(straight, tmp_path, processes, workers):
    """Send SIGINT to the whole process group, like a terminal."""
    path, folder = straight
    output = tmp_path / "interrupted"
    done = ended_at("finetune 1", "SIGINT", path, output, processes, workers)
    assert done.returncode == 128 + signal.SIGINT, done.stderr[-2000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("maya")]
    assert line.startswith("maya train: stage finetune: asked to stop, saved after step")
    assert "Traceback" not in done.stderr
    assert checkpoints(output / WORK / "finetune")
    train(str(path), [f"processes={processes}"], output_dir=str(output))
    for stage in ("pretrain", "finetune"):
        for one, two in zip(losses(folder / stage), losses(output / stage), strict=True):
            assert one == pytest.approx(two, abs=1e-9 if processes == 1 else 2e-4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_too(tmp_path, number, monkeypatch, capsys):
    path = one_stage(tmp_path)
    monkeypatch.setattr(stage_module, "load_model", lambda *args: os.kill(os.getpid(), number))
    assert cli.main(["train", str(path)]) == 128 + number
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == f"maya train: stopped by {number.name}; the same command continues"
    monkeypatch.undo()
    train(str(path))


@pytest.mark.parametrize("command", [["evaluate", "m"], ["chat", "a.png"], ["data", "status", "x"]])
def test_every_command_ends_in_one_line(command, monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    module = cli.data.status if command[0] == "data" else cli.COMMANDS[command[0]]
    monkeypatch.setattr(module, "run", interrupted)
    assert cli.main(command) == 130
    said = capsys.readouterr()
    assert said.err.startswith(f"maya {command[0]}: stopped by SIGINT")
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_reader_that_is_gone_is_no_error():
    code = "import sys; from maya_vlm.training.cli import main; sys.exit(main(['train', '--help']))"
    code = code.replace("['train', '--help']", "['env']")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(60) == 128 + signal.SIGPIPE
    assert b"Traceback" not in error
    assert b"BrokenPipe" not in error


# ------------------------------------------------------------------------------ processes


def test_no_more_processes_than_cores(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(processes_module, "available_cores", lambda: 3)
    check_processes(3)
    with pytest.raises(
        ValueError, match="processes: expected at most 3, one for each core of this"
    ):
        check_processes(999)
    monkeypatch.setattr(processes_module, "available_cores", lambda: 1)
    check_processes(2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="processes: expected at most 4, one for each GPU of this"):
        check_processes(5)


RANK_KILLED = """
import os, signal, sys
from maya_vlm.training.run import trainer
from maya_vlm.training.cli import main
original = trainer.MayaTrainer.training_step
def step(self, *args, **kwargs):
    if self.state.global_step == 3 and os.environ.get("RANK") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args, **kwargs)
trainer.MayaTrainer.training_step = step
sys.exit(main())
"""


@SLOW
@pytest.mark.parametrize("how", [[], ["--accelerate", "ddp"]], ids=["own", "accelerate"])
def test_a_rank_that_is_killed_is_one_line(straight, tmp_path, how):
    path, folder = straight
    output = tmp_path / "killed"
    script = tmp_path / "maya.py"
    script.write_text(RANK_KILLED)
    command = [sys.executable, str(script), "train", str(path), "--output-dir", str(output), *how]
    done = subprocess.run(
        [*command, "--set", "processes=2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("maya train: error: the process of rank 1 was killed by SIGKILL"), last
    assert "Traceback" not in done.stderr
    train(str(path), ["processes=2"], output_dir=str(output))
    for stage in ("pretrain", "finetune"):
        for one, two in zip(losses(folder / stage), losses(output / stage), strict=True):
            assert one == pytest.approx(two, abs=2e-4)


PARENT_KILLED = """
import os, sys, time
from pathlib import Path
from maya_vlm.training.run import trainer
from maya_vlm.training.cli import main
original = trainer.MayaTrainer.training_step
def step(self, *args, **kwargs):
    if self.state.global_step == 2:
        Path(os.environ["READY"], os.environ.get("RANK", "0")).touch()
        time.sleep(100)
    return original(self, *args, **kwargs)
trainer.MayaTrainer.training_step = step
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes some seconds")
@pytest.mark.parametrize(
    ("processes", "how"),
    [
        (1, []),
        pytest.param(2, [], marks=SLOW),
        pytest.param(2, ["--accelerate", "ddp"], marks=SLOW),
    ],
)
def test_nothing_outlives_the_command(straight, tmp_path, processes, how):
    """Check that killing the command also ends its ranks and their loaders' workers at once."""
    path, _ = straight
    script, ready = tmp_path / "maya.py", tmp_path / "ready"
    script.write_text(PARENT_KILLED)
    ready.mkdir()
    command = [
        sys.executable,
        str(script),
        "train",
        str(path),
        "--output-dir",
        str(tmp_path / "out"),
        *how,
    ]
    command += ["--set", f"processes={processes}", "stages.0.args.dataloader_num_workers=1"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "READY": str(ready)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while len(list(ready.iterdir())) < processes and time.monotonic() < until:
        time.sleep(0.2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= (1 if processes == 1 else 2 * processes)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=3)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert not alive


# ------------------------------------------------------------------------------ two runs


def test_a_run_that_ends_before_the_lock_is_seen(tmp_path, monkeypatch):
    """Start two recipes in one folder: the other run begins and ends between this run's check and its lock."""
    path = one_stage(tmp_path)
    output = tmp_path / "run"
    other = make_manifest(load_recipe(path, ["seed=9"]))
    original = run_module.only_one

    def lock(file, folder):
        write_manifest(output, other)
        (output / "finetune").mkdir()
        (output / "finetune" / "config.json").touch()
        return original(file, folder)

    monkeypatch.setattr(run_module, "only_one", lock)
    with pytest.raises(ValueError, match=r"holds the work of another recipe \(seed: 9 -> 3\)"):
        train(str(path))
    assert (output / WORK / MANIFEST).is_file()


TWO = """
import sys, time
from pathlib import Path
from maya_vlm.training.cli import main
Path(sys.argv[3], sys.argv[4]).touch()
while len(list(Path(sys.argv[3]).iterdir())) < 2:
    time.sleep(0.01)
sys.exit(main(["train", sys.argv[1], "--output-dir", sys.argv[2]]))
"""


@SLOW
def test_of_two_runs_at_once_one_works(straight, tmp_path):
    path, folder = straight
    ready, output = tmp_path / "ready", tmp_path / "both"
    ready.mkdir()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, str(path), str(output), str(ready), name],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    said = [process.communicate(timeout=240) for process in both]
    trained = [out.count("done in") for out, _ in said]
    # One run may start after the other has finished.
    for process, (out, error), count in zip(both, said, trained, strict=True):
        if count == 0 and process.returncode:
            assert process.returncode == 2
            assert "another run is writing to" in error.strip().splitlines()[-1]
        elif count == 0:
            assert out.count("finished before") == 2
    assert sorted(trained) == [0, 2]
    for stage in ("pretrain", "finetune"):
        assert losses(output / stage) == losses(folder / stage)
