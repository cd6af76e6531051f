"""Whole runs on tiny parts: two stages, killed and continued runs, refused recipes, loaded models."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.common.files import only_one
from maya_vlm.training.common.signals import Stopped
from maya_vlm.training.recipe import find_recipe, load_recipe
from maya_vlm.training.run import manifest as manifest_module
from maya_vlm.training.run import stage as stage_module
from maya_vlm.training.run import train as run_module
from maya_vlm.training.run.checkpoints import checkpoints
from maya_vlm.training.run.manifest import check_manifest, make_manifest
from maya_vlm.training.run.stage import merge_bad_rows
from maya_vlm.training.run.train import train
from maya_vlm.training.run.trainer import MayaTrainer, language_metrics
from tests.helpers.tiny import DECODERS
from tests.helpers.tiny_processing import tiny_processor

from ..batches.tiny_stream import make_rows
from .tiny_run import logged, make_recipe, training_log, write

ROOT = Path(__file__).parents[2]
SLOW = pytest.mark.slow


def losses(folder: Path) -> list[list]:
    """Return (step, loss, a language's loss) of every log line of a stage."""
    return [[line["step"], line["mean_loss"], line.get("en/loss")] for line in logged(folder)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the recipe file and the folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = make_recipe(folder)
    path = write(recipe, folder / "recipe.yaml")
    return path, train(str(path))


def test_both_stages_end_in_a_whole_folder(finished, capsys):
    path, folder = finished
    assert folder.name == "run"
    for stage in ("pretrain", "finetune"):
        assert len(losses(folder / stage)) == 4
    files = {p.name for p in folder.iterdir() if p.is_file()}
    assert {
        "config.json",
        "model.safetensors",
        "modeling_maya.py",
        "processing_maya.py",
        "chat_template.jinja",
        "recipe.yaml",
        "training_log.json",
    } <= files
    assert not list(folder.rglob("*.bin"))
    assert not list((folder / ".work").glob("finetune*"))
    # The resolved recipe, read from another working directory, is the same run.
    resolved = load_recipe(folder / "recipe.yaml")
    assert make_manifest(resolved) == make_manifest(load_recipe(path))


def test_only_what_the_rules_say_has_changed(finished):
    from safetensors.torch import load_file

    _, folder = finished
    before = load_file(folder / "pretrain" / "model.safetensors")
    after = load_file(folder / "finetune" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(value, after[name]) == ("vision_tower" in name), name
    base = load_file(folder.parent / "bases" / "language" / "model.safetensors")
    for name, value in base.items():
        ours = "model.language_model." + name.removeprefix("model.")
        assert torch.equal(value, before[ours]), name


def test_a_finished_run_is_not_redone(finished, capsys):
    path, folder = finished
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert train(str(path)) == folder
    assert capsys.readouterr().out.count("finished before") == 2
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp


def test_a_changed_recipe_never_mixes_with_old_work(finished):
    path, _ = finished
    with pytest.raises(
        ValueError, match=r"work of another recipe \(stages\[1\].train\[2\].rate: 0.001 -> 0.5\)"
    ):
        train(str(path), ["stages.finetune.train.2.rate=0.5"])  # fmt: skip
    with pytest.raises(ValueError, match="seed: 3 -> 4"):
        train(str(path), ["seed=4"])


def test_changed_inputs_are_seen(finished, tmp_path):
    path, folder = finished
    recipe = load_recipe(path)
    manifest = make_manifest(recipe)
    check_manifest(folder, manifest)
    data = recipe.stages[0].data[0].path
    changed = {**manifest, "content": {**manifest["content"], data: "0"}}
    with pytest.raises(ValueError, match=r"the files of .*rows.jsonl have changed"):
        check_manifest(folder, changed)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a run of maya train, found other files"):
        check_manifest(other, manifest)
    # Values that only change the output are not a change.
    quiet = load_recipe(path, ["stages.0.args.logging_steps=7", "stages.0.args.report_to=none"])
    assert make_manifest(quiet) == manifest


FRESH = """
import sys
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
folder = sys.argv[1]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model, report = AutoModelForImageTextToText.from_pretrained(
    folder, trust_remote_code=True, output_loading_info=True)
assert not any(report.values()), report
assert type(model).__module__.startswith("transformers_modules"), type(model)
image = Image.new("RGB", (12, 12), (200, 30, 30))
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is shown?"}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(images=[image], text=prompt, return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=4, do_sample=False)
print("TOKENS", out[0, inputs["input_ids"].shape[1]:].tolist())
"""


def test_the_folder_loads_in_a_fresh_process(finished, tmp_path):
    _, folder = finished
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "TOKENS" in done.stdout


KILLED = """
import os, signal, sys
from maya_vlm.training.run import trainer
from maya_vlm.training.run.train import train
stage, step = sys.argv[2], int(sys.argv[3])
original = trainer.LineCallback.on_log
def on_log(self, args, state, control, **kwargs):
    original(self, args, state, control, **kwargs)
    if self.stage == stage and state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)
trainer.LineCallback.on_log = on_log
train(sys.argv[1], output_dir=sys.argv[4])
"""


def test_killed_and_continued_is_the_same_run(finished, tmp_path, capsys):
    path, straight = finished
    output = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), "finetune", "3", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert [p.name for p in checkpoints(output / ".work" / "finetune")] == ["checkpoint-2"]
    assert not (output / "config.json").exists()
    capsys.readouterr()
    assert train(str(path), output_dir=str(output)) == output
    printed = capsys.readouterr().out
    assert "stage pretrain: finished before" in printed
    assert "continuing from" in printed
    for stage in ("pretrain", "finetune"):
        assert losses(output / stage) == losses(straight / stage)
    assert (output / "model.safetensors").read_bytes() == (
        straight / "model.safetensors"
    ).read_bytes()


ENDED = """
import os, signal, subprocess, sys, time
from maya_vlm.training.run import trainer
from maya_vlm.training.cli import main
original = trainer.LineCallback.on_log
def on_log(self, args, state, control, **kwargs):
    original(self, args, state, control, **kwargs)
    at = f"{self.stage} {state.global_step}"
    if at == sys.argv[4] and int(os.environ.get("RANK", 0)) == 0:
        how = "os.killpg" if sys.argv[6:] else "os.kill"
        number = int(signal.Signals[sys.argv[5]])
        send = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        send += f"{how}({os.environ['MAYA_PID']}, {number})"
        subprocess.run([sys.executable, "-c", send])  # from none of the run's own processes
        if sys.argv[5] == "SIGKILL":
            time.sleep(20)
trainer.LineCallback.on_log = on_log
os.environ["MAYA_PID"] = str(os.getpid())
if sys.argv[5] == "SIGKILL":  # as in a script's background
    signal.signal(signal.SIGINT, signal.SIG_IGN)
changes = ["processes=" + sys.argv[3], *sys.argv[6:]]
sys.exit(main(["train", sys.argv[1], "--output-dir", sys.argv[2], "--set", *changes]))
"""


def ended_at(
    place: str, by: str, path: Path, output: Path, processes: int, workers: int = 0
) -> subprocess.CompletedProcess:
    """Run `maya train`, and send the signal `by` to its process after a step ("finetune 1"); with
    workers, send it to the whole process group."""
    given = [str(path), str(output), str(processes), place, by]
    if workers:
        given.append(f"stages.finetune.args.dataloader_num_workers={workers}")
    return subprocess.run(
        [sys.executable, "-c", ENDED, *given],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("processes", "workers"),
    [(1, 0), (1, 1), pytest.param(2, 0, marks=SLOW), pytest.param(2, 1, marks=SLOW)],
)
def test_sigterm_saves_and_the_same_command_continues(finished, tmp_path, processes, workers):
    path, straight = finished
    output = tmp_path / "terminated"
    done = ended_at("finetune 1", "SIGTERM", path, output, processes, workers)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    found = checkpoints(output / ".work" / "finetune")
    step = found[-1].name.removeprefix("checkpoint-")
    assert step in ("1", "2", "3")
    # The signal may arrive after step 2, which always has a checkpoint.
    assert len(found) == (2 if step == "3" else 1)
    assert f"saved after step {step} of 4; the same command continues" in done.stderr
    assert not (output / "config.json").exists()
    train(str(path), [f"processes={processes}"], output_dir=str(output))
    for stage in ("pretrain", "finetune"):
        for one, two in zip(losses(straight / stage), losses(output / stage), strict=True):
            assert one == pytest.approx(two, abs=1e-9 if processes == 1 else 2e-4)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sigterm_in_the_last_step_ends_behind_the_stage(finished, tmp_path, processes):
    path, straight = finished
    output = tmp_path / "terminated"
    done = ended_at("pretrain 4", "SIGTERM", path, output, processes)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert "stage pretrain: asked to stop, the stage is finished" in done.stderr
    assert (output / "pretrain" / "config.json").is_file()
    assert not (output / ".work" / "finetune").exists()
    train(str(path), [f"processes={processes}"], output_dir=str(output))
    for one, two in zip(losses(straight / "finetune"), losses(output / "finetune"), strict=True):
        assert one == pytest.approx(two, abs=1e-9 if processes == 1 else 2e-4)


@pytest.mark.slow
def test_processes_end_with_the_command_that_started_them(finished, tmp_path):
    """Check every way to end, even though background processes ignore SIGINT, which torch sends."""
    path, straight = finished
    output = tmp_path / "killed"
    # A process that still runs keeps the output open, so this waits for it.
    done = ended_at("finetune 3", "SIGKILL", path, output, 2)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert not (output / "finetune").exists()
    assert [p.name for p in checkpoints(output / ".work" / "finetune")] == ["checkpoint-2"]
    train(str(path), ["processes=2"], output_dir=str(output))
    for one, two in zip(losses(straight / "finetune"), losses(output / "finetune"), strict=True):
        assert one == pytest.approx(two, abs=2e-4)


def test_the_list_of_bad_rows_outlives_a_kill_at_the_end(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["on_bad_row"] = "skip"
    picture = tmp_path / "data" / "pictures" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    path = str(write(recipe, tmp_path / "r.yaml"))

    write_json = stage_module.write_json

    def killed(file, value):
        if file.name == stage_module.LOG:
            raise KeyboardInterrupt
        write_json(file, value)

    monkeypatch.setattr(stage_module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        train(path)
    monkeypatch.undo()
    folder = train(path)
    rows = [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"2-en", "2-fr", "2-hi"}


def test_a_large_file_that_changes_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "SAMPLES", 4)
    monkeypatch.setattr(manifest_module, "SAMPLE", 10)
    file = tmp_path / "rows.json"
    text = bytearray(b"x" * 101)
    hashes = set()
    for place in (None, 0, 35, 100):
        if place is not None:
            text[place] += 1
        file.write_bytes(text)
        hashes.add(manifest_module._content(file))
    assert len(hashes) == 4


def test_bad_rows_are_listed_beside_the_model(tmp_path, capsys):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0] |= {"on_bad_row": "skip", "batch_size": 6}
    recipe["stages"][0]["args"]["max_steps"] = 2
    picture = tmp_path / "data" / "pictures" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    rows = [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == {"2-en", "2-fr", "2-hi"}
    assert len(rows) == 3, "a row met in two epochs is listed once"
    assert "3 rows skipped, listed in bad_rows.jsonl" in capsys.readouterr().out
    recipe["stages"][0]["on_bad_row"] = "stop"
    recipe["output_dir"] = str(tmp_path / "stopped")
    for workers in (0, 1):  # a loader's worker must report the same message
        recipe["stages"][0]["args"]["dataloader_num_workers"] = workers
        with pytest.raises(ValueError, match=r"^row '2-.*' of .*: its image cannot be read"):
            train(str(write(recipe, tmp_path / "r.yaml")))


def test_a_log_line_that_a_stop_divides_is_whole(tmp_path, monkeypatch):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["args"] |= {"max_steps": 4, "logging_steps": 4, "save_steps": 9}
    path = str(write(recipe, tmp_path / "r.yaml"))
    (straight,) = logged(train(path, output_dir=str(tmp_path / "straight")))
    step = MayaTrainer.training_step

    def stopped_in_the_third(self, *args, **kwargs):
        if self.state.global_step == 2:
            self.ask_to_stop()
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MayaTrainer, "training_step", stopped_in_the_third)
        with pytest.raises(Stopped):
            train(path, output_dir=str(tmp_path / "stopped"))
    (continued,) = logged(train(path, output_dir=str(tmp_path / "stopped")))
    ours = [key for key in straight if key.startswith("mean_") or "/" in key]
    assert len(ours) > 8
    for key in ours:
        assert continued[key] == pytest.approx(straight[key], rel=1e-12), key


def test_bad_rows_with_one_id_are_told_apart(tmp_path, capsys):
    """Train on one picture with files in three languages, whose rows share an id, in a step without other rows."""
    recipe = make_recipe(tmp_path)
    data = tmp_path / "data"
    broken = data / "pictures" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    sources = []
    for language in ("en", "fr", "hi"):
        rows = [
            {
                "id": f"{i}\u2028",
                "image": f"{i}.png",
                "lang": language,
                "caption": "a\u2028b\u0085c",
            }
            for i in (1, 2)
        ]
        rows[1]["lang"] = {"hi": "?"}.get(language, language)
        file = data / f"{language}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        sources.append({"path": str(file), "image_folder": str(data / "pictures")})
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0] |= {"data": sources, "on_bad_row": "skip", "batch_size": 1}
    recipe["stages"][0]["args"]["max_steps"] = 4
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    printed = capsys.readouterr().out
    assert "loss nan" in printed, "a step without labels has no loss, and stops nothing"
    for language in ("en", "fr", "hi"):
        assert f"{data / language}.jsonl: 1 rows skipped" in printed
    text = (folder / "bad_rows.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    assert {(row["id"], row["language"], Path(row["path"]).stem) for row in rows} == {
        ("2\u2028", "en", "en"),
        ("2\u2028", "fr", "fr"),
        ("2\u2028", "'?'", "hi"),
    }


def test_every_bad_row_is_listed_once_whatever_its_id(tmp_path):
    """Check LLaVA's repeated ids, and a run that an older version began."""
    files = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    common = {"language": "en", "path": "rows.json", "reason": "r", "action": "skipped"}
    for file, numbers in zip(files, (range(8), range(4, 10)), strict=True):
        rows = [{"id": "same", "row": number, "data": 0, **common} for number in numbers]
        rows += [{"id": "same", "row": 0, "data": 1, **common}, {"id": "old", **common}]
        file.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"id": "cut')
    told = merge_bad_rows(files, tmp_path / "bad_rows.jsonl")
    listed = [json.loads(line) for line in (tmp_path / "bad_rows.jsonl").open()]
    assert told == ["rows.json: 12 rows skipped, listed in bad_rows.jsonl"]
    places = sorted((row.get("data", -1), row.get("row", -1)) for row in listed)
    assert places == [(-1, -1), *((0, number) for number in range(10)), (1, 0)]


def test_bad_rows_of_a_stream_follow_the_policy(tmp_path, capsys):
    recipe = make_recipe(tmp_path)
    path = make_rows(tmp_path / "data" / "rows.parquet")
    rows = pq.read_table(path).to_pylist()
    rows[0]["messages"] = None
    rows[3]["messages"][1]["content"] = None
    rows[4]["images"][0]["bytes"] = rows[4]["images"][0]["bytes"][:40]
    rows[5]["images"] = [None]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    recipe["stages"] = recipe["stages"][:1]
    stage = recipe["stages"][0]
    stage |= {"data": [{"path": str(path), "streaming": True}], "batch_size": 6}
    stage["args"]["max_steps"] = 4  # two passes
    recipe["output_dir"] = str(tmp_path / "stopped")
    with pytest.raises(
        ValueError, match=rf"row '(0-0' \(\w+\)|1-1' \(\w+\)|2-0'|2-1' \(\w+\)) of {path}"
    ) as error:
        train(str(write(recipe, tmp_path / "r.yaml")))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "stopped" / "pretrain").exists()
    recipe["output_dir"] = str(tmp_path / "skipped")
    stage["on_bad_row"] = "skip"
    capsys.readouterr()
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    found = [json.loads(line) for line in (folder / "bad_rows.jsonl").read_text().splitlines()]
    reasons = {row["id"]: row["reason"] for row in found}
    assert sorted(row["id"] for row in found) == ["0-0", "1-1", "2-0", "2-1"]
    assert "messages: expected a list of turns, found nothing" in reasons["0-0"]
    assert "messages[1].content: expected text" in reasons["1-1"]
    assert "its image cannot be read" in reasons["2-0"]
    assert "images[0]: expected a picture's path, address or bytes, found nothing" in reasons["2-1"]
    assert {(row["path"], row["action"]) for row in found} == {(str(path), "skipped")}
    assert f"{path}: 4 rows skipped, listed in bad_rows.jsonl" in capsys.readouterr().out
    assert training_log(folder)["bad_rows"] == [f"{path}: 4 rows skipped, listed in bad_rows.jsonl"]


def test_a_half_written_checkpoint_is_not_picked_up(finished, tmp_path, monkeypatch, capsys):
    path, straight = finished
    output = tmp_path / "half"

    def cut(self, output_dir):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MayaTrainer, "_save_optimizer_and_scheduler", cut)
        with pytest.raises(KeyboardInterrupt):
            train(str(path), output_dir=str(output))
    work = output / ".work" / "pretrain"
    assert list(work.rglob("model.safetensors")), "nothing was half-written: the test tests nothing"
    assert checkpoints(work) == []
    train(str(path), output_dir=str(output))
    assert losses(output / "finetune") == losses(straight / "finetune")


def test_half_a_model_folder_does_not_load(finished, tmp_path, monkeypatch):
    path, _ = finished
    output = tmp_path / "half"

    def cut(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "write_recipe", lambda recipe, path, folder=None: cut(None, path) if path.parent.name.endswith(".model") else None)  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            train(str(path), output_dir=str(output))
    assert not (output / "pretrain").exists()
    assert not (output / "config.json").exists()


def test_restart_takes_nothing_from_a_run_in_progress(tmp_path, monkeypatch):
    path = write(make_recipe(tmp_path), tmp_path / "r.yaml")
    begun = []

    def run_stage(recipe, stage, previous, folder, *rest):
        begun.append((recipe.seed, stage.name))
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(stage.name)

    monkeypatch.setattr(run_module, "run_stage", run_stage)
    output = train(str(path))
    (output / "notes.txt").write_text("not of a run")
    (output / ".work" / "finetune" / "checkpoint-2").mkdir(parents=True)
    before = sorted(output.rglob("*"))
    with only_one(output / ".work" / "lock", "held"):
        with pytest.raises(OSError, match="another run is writing to"):
            train(str(path), ["seed=4"], restart=True)
        assert sorted(output.rglob("*")) == before

    def killed(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            train(str(path), ["seed=4"], restart=True)
    assert not list(output.rglob("config.json")), "half a folder must not pass for a finished stage"
    begun.clear()
    train(str(path), ["seed=4"], restart=True)
    assert begun == [(4, "pretrain"), (4, "finetune")]
    assert not (output / ".work" / "finetune").exists()
    assert (output / "notes.txt").read_text() == "not of a run"
    assert (output / "config.json").is_file()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StrictDataclassError("hidden_size: expected\nint"), "hidden_size: expected int"),
        (ModuleNotFoundError("No module named 'b'", name="b"), r"'b' is not .*\[train\]"),
    ],
)
def test_bad_input_of_a_process_is_one_line(error, message, tmp_path, monkeypatch):
    def run(*args):
        raise error

    monkeypatch.setattr(run_module, "run_recipe", run)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = write(make_recipe(tmp_path), tmp_path / "r.yaml")
    with pytest.raises(ValueError, match=message) as found:
        train(str(path), ["processes=2"])
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_two_processes_equal_one(finished, tmp_path):
    path, straight = finished
    output = tmp_path / "two"
    code = "import sys; from maya_vlm.training.run.train import train; train(sys.argv[1], ['processes=2'], output_dir=sys.argv[2])"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(output)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "OMP_NUM_THREADS" not in done.stderr, "accelerate was left to choose"
    for stage in ("pretrain", "finetune"):
        for one, two in zip(losses(straight / stage), losses(output / stage), strict=True):
            assert one == pytest.approx(two, abs=2e-4)


@pytest.mark.slow
def test_a_rank_without_images_keeps_step(tmp_path):
    """Check steps in which one of two ranks has only texts: both stages equal those of one process."""
    recipe = make_recipe(tmp_path)
    text = {"id": "t", "lang": "en", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a small red boat"}]}  # fmt: skip
    rows = tmp_path / "data" / "text.jsonl"
    rows.write_text("\n".join(json.dumps({**text, "id": f"t{i}"}) for i in range(4)))
    for stage in recipe["stages"]:
        stage["data"] = [{"path": stage["data"][0]["path"]}, {"path": str(rows)}]
        stage["args"]["max_steps"] = 6
    path = write(recipe, tmp_path / "r.yaml")
    for stage in load_recipe(path).stages:
        data = GroupData(stage.data)
        plan = data.plan(6 * stage.batch_size, stage.group_size, seed=3)
        collator = GroupCollator(
            data, tiny_processor(), plan=plan, batch_size=stage.batch_size, ranks=2
        )
        seen = {
            tuple(
                any("pixel_values" in row for row in collator([{"step": s, "rank": r}])["rows"])
                for r in (0, 1)
            )
            for s in range(6)
        }
        assert seen & {(True, False), (False, True)}
    one = train(str(path), ["processes=1"], output_dir=str(tmp_path / "one"))
    two = train(str(path), ["processes=2"], output_dir=str(tmp_path / "two"))
    for name in ("pretrain", "finetune"):
        for first, second in zip(losses(one / name), losses(two / name), strict=True):
            assert first == pytest.approx(second, abs=2e-5)


def test_text_only_batches_train(tmp_path):
    recipe = make_recipe(tmp_path)
    rows = tmp_path / "data" / "text.jsonl"
    row = {"id": "t", "lang": "en", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}  # fmt: skip
    rows.write_text(json.dumps(row) + "\n" + json.dumps({**row, "id": "u"}))
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0] |= {"data": [{"path": str(rows)}]}
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    assert len(losses(folder / "pretrain")) == 4


def test_language_metrics_by_hand():
    sums = torch.tensor([[3.0, 1, 2, 8], [0, 0, 0, 0], [2.0, 2, 2, 0]], dtype=torch.float64)
    found = language_metrics(sums, ["en", "fr", "hi"])
    assert found["en/loss"] == 1.5
    assert found["en/accuracy"] == 0.5
    assert found["en/bits_per_byte"] == pytest.approx(3 / 0.693147 / 8, abs=1e-5)
    assert not [k for k in found if k.startswith("fr")]
    assert found["hi/loss"] == 1.0
    assert "hi/bits_per_byte" not in found
    assert found["mean_loss"] == 1.25
    assert found["mean_accuracy"] == 0.75


def test_logged_numbers_equal_a_plain_forward(finished):
    """Recompute the first log line of finetune row by row with the model's own forward."""
    import math

    from maya_vlm.training.batches.collator import GroupCollator
    from maya_vlm.training.batches.groups import GroupData
    from modeling_maya import MayaForConditionalGeneration
    from processing_maya import MayaProcessor

    path, folder = finished
    recipe = load_recipe(path)
    stage = recipe.stages[1]
    model = MayaForConditionalGeneration.from_pretrained(folder / "pretrain").eval()
    processor = MayaProcessor.from_pretrained(folder / "pretrain")
    data = GroupData(stage.data, seed=recipe.seed)
    collator = GroupCollator(data, processor)
    sums = {}
    for _, part in data.plan(stage.batch_size, stage.group_size, recipe.seed):
        for index in part.tolist():
            conversation = data.conversation(index)
            image = data.load_image(0, conversation.images[0], conversation.id)
            encoded = collator.encode(index)
            ids = torch.from_numpy(encoded.ids.astype("int64"))[None]
            pixels = processor.image_processor([image], return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                logits = model(input_ids=ids, pixel_values=pixels).logits[0, :-1].double()
            keep = torch.from_numpy(encoded.trained)[1:]
            target = ids[0, 1:][keep]
            row = sums.setdefault(conversation.language, [0.0, 0, 0, 0])
            row[0] += torch.nn.functional.cross_entropy(
                logits[keep], target, reduction="sum"
            ).item()
            row[1] += int((logits[keep].argmax(-1) == target).sum())
            row[2] += len(target)
            row[3] += len(conversation.messages[1]["content"].encode())
    first = next(line for line in logged(folder / "finetune") if line["step"] == 1)
    assert sums
    for language, (loss, correct, count, size) in sums.items():
        assert first[f"{language}/loss"] == pytest.approx(loss / count, abs=1e-4)
        assert first[f"{language}/accuracy"] == pytest.approx(correct / count, abs=1e-4)
        assert first[f"{language}/bits_per_byte"] == pytest.approx(
            loss / math.log(2) / size, abs=1e-4
        )
    total = sum(r[0] for r in sums.values()) / sum(r[2] for r in sums.values())
    assert first["mean_loss"] == pytest.approx(total, abs=1e-4)
    assert first["loss"] == pytest.approx(total, abs=1e-4)


def test_memory(tmp_path, monkeypatch):
    import psutil

    class Little:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    path = write(make_recipe(tmp_path), tmp_path / "r.yaml")
    with pytest.raises(
        MemoryError, match=r"stage pretrain: too little memory: .* parameters"
    ) as error:
        train(str(path))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vision_tower": "{}/none"}, FileNotFoundError, r"model.vision_tower: no model at .*/none"),
        ({"language_model": "{}/data"}, FileNotFoundError, "model.language_model: .*/data is not a model folder"),
        ({"checkpoint": "{}/none"}, FileNotFoundError, r"model.checkpoint: no model at .*/none"),
        ({"checkpoint": "{}/bases/language"}, ValueError, "model_type: expected 'maya', found 'cohere'"),
    ],
)  # fmt: skip
def test_folders_that_are_no_models(change, error, message, tmp_path):
    recipe = make_recipe(tmp_path)
    change = {k: v.format(tmp_path) for k, v in change.items()}
    recipe["model"] = change if "checkpoint" in change else recipe["model"] | change
    with pytest.raises(error, match=message) as found:
        train(str(write(recipe, tmp_path / "r.yaml")))
    assert "\n" not in str(found.value)
    assert not (tmp_path / "run" / "config.json").exists()


def test_no_spare_row_for_the_image_token(tmp_path):
    from transformers import CohereForCausalLM

    from tests.helpers.tiny_processing import tiny_tokenizer

    recipe = make_recipe(tmp_path)
    config_class, fields = DECODERS["cohere"]
    language = tmp_path / "bases" / "language"
    size = len(tiny_tokenizer())
    CohereForCausalLM(config_class(**{**fields, "vocab_size": size})).save_pretrained(language)
    with pytest.raises(
        ValueError,
        match=r"no row is free for <image>: set model.image_token to .*<\|EXTRA_0_TOKEN\|>",
    ):
        train(str(write(recipe, tmp_path / "r.yaml")))


def test_short_rows_change_nothing_but_the_number_of_rows(finished, tmp_path):
    """Check that a step divided into more rows by max_length gives the same result."""
    path, straight = finished
    limits = ["stages.0.args.max_length=60", "stages.1.args.max_length=60"]
    folder = train(str(path), limits, output_dir=str(tmp_path / "short"))
    for stage in ("pretrain", "finetune"):
        for one, two in zip(losses(straight / stage), losses(folder / stage), strict=True):
            assert one == pytest.approx(two, abs=2e-4)


def test_an_epoch_ends_with_a_shorter_step(tmp_path, capsys):
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0] |= {"batch_size": 4, "args": {"num_train_epochs": 1, "logging_steps": 1}}
    folder = train(str(write(recipe, tmp_path / "r.yaml")))
    assert len(losses(folder)) == 2
    # Six groups: four and two, and no group of the next epoch.
    assert "2 steps of 4 groups of at most 3 conversations: 1.00 passes" in capsys.readouterr().out


def test_one_process_needs_no_fsdp(tmp_path, capsys):
    """Check the 8B recipe's setting on one GPU, which Trainer itself rejects."""
    recipe = make_recipe(tmp_path)
    recipe["stages"] = recipe["stages"][:1]
    sharded = load_recipe(find_recipe("maya-8b/finetune")).stages[0].args
    recipe["stages"][0]["args"] |= {
        "max_steps": 1,
        **{key: sharded[key] for key in ("fsdp", "fsdp_config")},
    }
    train(str(write(recipe, tmp_path / "r.yaml")))
    assert "fsdp: left out, one process holds the whole model" in capsys.readouterr().out


def test_accumulation_is_not_for_recipes_to_set(tmp_path):
    recipe = make_recipe(tmp_path)
    recipe["stages"][0]["args"]["gradient_accumulation_steps"] = 3
    with pytest.raises(
        ValueError, match="gradient_accumulation_steps: set by maya; use max_length"
    ):
        train(str(write(recipe, tmp_path / "r.yaml")))
