"""Scheduler of studies, with a stand-in for `maya train`: shared stages, failures, stops, the report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from maya_vlm.training.ablation import plan
from maya_vlm.training.ablation import run as scheduler
from maya_vlm.training.ablation.estimate import CellEstimate, check_cells
from maya_vlm.training.ablation.outcome import measured, read_outcome
from maya_vlm.training.ablation.plan import plan_runs, shard_of, shared
from maya_vlm.training.ablation.report import changed_since, make_report, write_index, write_report
from maya_vlm.training.ablation.run import is_finished, run_study
from maya_vlm.training.ablation.study import Study, read_study
from maya_vlm.training.cli import main
from tests.run.tiny_run import make_recipe, write

PLAYED = str(Path(__file__).with_name("played.py"))
RATE = "stages.finetune.train.0.rate"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    recipe = make_recipe(folder)
    # The cells vary the rate of the finetune stage's first rule.
    recipe["stages"][1]["train"] = [{"pattern": ".*", "rate": 0.001}]
    return write(recipe, folder / "recipe.yaml")


@pytest.fixture
def played(monkeypatch):
    monkeypatch.setattr(scheduler, "COMMAND", (sys.executable, PLAYED))
    monkeypatch.setattr(scheduler, "POLL", 0.02)


def study_file(folder: Path, recipe: Path, **changes) -> Path:
    values = {
        "title": "Rates",
        "question": "Which rate is best?",
        "base": str(recipe),
        "seeds": [0, 1, 2],
        "vary": {RATE: [0.1, 0.2]},
        "measures": [{"log": "mean_loss"}],
        **changes,
    }
    path = folder / "rates.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False)
    )
    return path


def prepared(folder: Path, recipe: Path, **changes) -> tuple[Study, list]:
    path = study_file(folder, recipe, **changes)
    study = read_study(path)
    return study, plan_runs(study, str(path), folder / "work")


def trained(folder: Path) -> list[str]:
    return (folder / "work" / "runs" / "trained.txt").read_text().split("\n")[:-1]


def test_cells_share_their_first_stage_and_only_that(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe)
    assert shared(runs) == 3  # the pretrain stage, once per seed
    counts = run_study(study, runs, tmp_path / "work", jobs=3)
    assert (counts.before, counts.done, counts.failed, counts.diverged) == (0, 6, {}, {})
    stages = [line.split()[1] for line in trained(tmp_path)]
    assert stages.count("pretrain") == 3
    assert stages.count("finetune") == 6
    for run in runs:
        # A copied stage has the recipe of the run that copied it.
        kept = run.folder / "pretrain" / "recipe.yaml"
        if kept.is_file():
            rate = yaml.safe_load(kept.read_text())["stages"][1]["train"][0]["rate"]
            assert rate == run.cell.changes[RATE]


def test_a_key_that_a_later_version_adds_keeps_the_runs(tmp_path, recipe, monkeypatch):
    _, before = prepared(tmp_path, recipe, seeds=[0])
    given = plan.make_manifest

    def later(*arguments):
        manifest = given(*arguments)
        manifest["recipe"]["model"]["a_new_key"] = None
        manifest["recipe"]["stages"][0]["data"][0]["another"] = None
        return manifest

    monkeypatch.setattr(plan, "make_manifest", later)
    _, after = prepared(tmp_path, recipe, seeds=[0])
    assert [run.stages for run in after] == [run.stages for run in before]


def test_a_finished_run_is_not_repeated_by_this_or_another_study(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe)
    run_study(study, runs, tmp_path / "work", jobs=2)
    before = trained(tmp_path)
    assert run_study(study, runs, tmp_path / "work").before == 6
    # A study with other names and one cell in common.
    other = {"zero one": {RATE: 0.1}, "new": {RATE: 0.4}}
    study, runs = prepared(tmp_path, recipe, vary=None, cells=other, seeds=[1])
    counts = run_study(study, runs, tmp_path / "work")
    assert (counts.before, counts.done) == (1, 1)
    assert len(trained(tmp_path)) == len(before) + 1


@pytest.mark.parametrize(
    ("jobs", "asked", "each"), [(1, "auto", "auto"), (2, "auto", 2), (2, 3, 3)]
)
def test_parallel_runs_share_the_processes_of_a_cpu(
    tmp_path, recipe, played, monkeypatch, jobs, asked, each
):
    monkeypatch.setattr(scheduler, "count_processes", lambda recipe: 4)
    changed = yaml.safe_load(recipe.read_text()) | {"processes": asked}
    study, runs = prepared(tmp_path, write(changed, recipe.with_name("processes.yaml")), seeds=[0])
    run_study(study, runs, tmp_path / "work", jobs=jobs)
    for run in runs:
        written = run.folder.with_name(f"{run.folder.name}.yaml")
        assert yaml.safe_load(written.read_text())["processes"] == each


@pytest.mark.parametrize(
    ("rates", "baseline", "words"),
    [
        ([0.1, 0.2], "rate=0.1", "confirm the papers' claim that 'rate=0.1' is best in mean_loss: all others are worse"),
        ([0.1, 0.2], "rate=0.2", "contradict the papers' claim that 'rate=0.2' is best in mean_loss: better are 'rate=0.1' (by 0.1)"),
        ([0.1, 0.1000001, 0.2], "rate=0.1", "neither confirm nor contradict"),
    ],
)  # fmt: skip
def test_a_claim_of_the_papers_is_judged(
    tmp_path, recipe, played, monkeypatch, rates, baseline, words
):
    study, runs = prepared(
        tmp_path, recipe, vary={RATE: rates}, baseline=baseline, claim={"measure": "mean_loss"}
    )
    run_study(study, runs, tmp_path / "work", jobs=2)
    report = make_report("rates", study, runs)
    if len(rates) == 3:
        # As with seeds that scatter more than the cells differ.
        report["measures"][0]["differences"]["rate=0.1000001"]["corrected"] = 0.4
    page = write_report(report, tmp_path / "report").read_text()
    assert f"These runs {words}" in page.replace("\\", "")


def test_numbers_of_the_report(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe, baseline="rate=0.2")
    run_study(study, runs, tmp_path / "work", jobs=2)
    report = make_report("rates", study, runs)
    (measure,) = report["measures"]
    assert measure["cells"]["rate=0.1"][1] == pytest.approx(0.11)
    # 0.11 +- t(2) * 0.01 / sqrt(3)
    assert measure["cells"]["rate=0.1"][2] == pytest.approx(0.11 - 4.302653 * 0.01 / 3**0.5)
    (difference,) = measure["differences"].values()
    assert difference["difference"] == pytest.approx(-0.1)
    assert difference["n"] == 3
    # Both stages of 2.5 seconds, on two processes, whether trained or taken from another run.
    assert {record["seconds"] for record in report["runs"]} == {10.0}
    assert measure["higher_is_better"] is False
    assert report["answer"].startswith("mean_loss: rate=0.1 below rate=0.2 by 0.1 (p = < 0.001)")
    assert report["runs"][0]["languages"]["mean_loss"] == {
        "hi": pytest.approx(1.1),
        "en": pytest.approx(-0.9),
    }
    page = write_report(report, tmp_path / "work" / "rates").read_text()
    assert "6 runs, 3 seeds per cell: 6 done." in page
    assert (tmp_path / "work" / "rates" / "mean_loss.png").stat().st_size > 1000
    index = write_index(tmp_path / "work").read_text()
    assert "[Rates](rates/report.md)" in index
    assert "6 of 6" in index


def test_failed_and_diverged_runs_are_counted_and_the_others_go_on(tmp_path, recipe, played):
    cells = {
        "good": {RATE: 0.1},
        "diverges": {"model.dtype": "bfloat16"},
        "fails": {"model.image_aspect": "crop"},
    }
    study, runs = prepared(tmp_path, recipe, vary=None, cells=cells, seeds=[0, 1])
    counts = run_study(study, runs, tmp_path / "work", jobs=2)
    assert counts.done == 2
    assert sorted(counts.diverged) == ["diverges, seed 0", "diverges, seed 1"]
    assert counts.failed["fails, seed 1"] == "maya train: no room"
    # A diverged run is a result; a failed run is retried.
    assert [is_finished(run, study) for run in runs] == [True, True, False] * 2
    report = make_report("x", study, runs)
    page = write_report(report, tmp_path / "work" / "x").read_text()
    assert "6 runs, 2 seeds per cell: 2 done, 2 failed, 2 diverged." in page
    assert "- `diverges`, seed 0: diverged: maya train: stage pretrain" in page
    again = run_study(study, runs, tmp_path / "work")
    assert (again.before, again.done) == (4, 0)
    assert len(again.diverged) == len(again.failed) == 2


def test_missing_runs_are_said(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe)
    run_study(study, runs[:3], tmp_path / "work")
    report = make_report("x", study, runs)
    assert [run["state"] for run in report["runs"]] == ["done"] * 3 + ["missing"] * 3
    assert report["measures"][0]["cells"]["rate=0.1"][0] == 2
    assert report["measures"][0]["differences"]["rate=0.2"]["n"] == 1
    assert report["measures"][0]["differences"]["rate=0.2"]["p"] is None


def test_a_measure_that_is_not_there_is_named(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe, measures=[{"log": "eval_loss"}])
    run_study(study, runs[:1], tmp_path / "work")
    with pytest.raises(ValueError, match=r"training_log.json: eval_loss: .*has en/loss, hi/loss"):
        measured(runs[0], study, study.measures[0])
    words = r"^rate=0.1, seed 0: .*: correct the study's measures, and repeat with --report"
    with pytest.raises(ValueError, match=words):
        make_report("rates", study, runs)


def test_sigterm_stops_the_runs_and_the_same_command_continues(tmp_path, recipe):
    path = study_file(tmp_path, recipe)
    code = (
        "import sys\n"
        "from maya_vlm.training.ablation import run\n"
        f"run.COMMAND = (sys.executable, {PLAYED!r})\n"
        "from maya_vlm.training.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "ablate", str(path), "--output", str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    begun = tmp_path / "work" / "runs" / "trained.txt"
    while not begun.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "the same command continues" in output
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split()[1] for line in trained(tmp_path)]
    assert (lines.count("pretrain"), lines.count("finetune")) == (3, 6)
    assert "6 runs" in (tmp_path / "work" / "rates" / "report.md").read_text()


@pytest.mark.slow
def test_a_real_study_of_two_cells(tmp_path):
    """Run the real `maya train` and `maya evaluate` on mini."""
    steps = {f"stages.{stage}.args.max_steps": 2 for stage in ("pretrain", "finetune")}
    logs = {f"stages.{stage}.args.logging_steps": 1 for stage in ("pretrain", "finetune")}
    path = study_file(
        tmp_path,
        Path("mini"),
        base="mini",
        seeds=[0],
        vary={"stages.finetune.group_size": [1, 2]},
        set={**steps, **logs},
        evaluate={"tasks": ["mini"], "limit": 4},
        measures=[{"task": "mini", "subset": "seen/yesno"}, {"log": "mean_loss"}],
    )
    study = read_study(path)
    runs = plan_runs(study, str(path), tmp_path / "work")
    counts = run_study(study, runs, tmp_path / "work", jobs=2)
    assert counts.failed == {}
    values = [measured(run, study, study.measures[0])["value"] for run in runs]
    assert all(0 <= value <= 1 for value in values)
    first, second = (
        json.loads((r.folder / "pretrain/training_log.json").read_text()) for r in runs
    )
    assert first == second  # one run trained the stage, and the other copied it
    outcome = read_outcome(runs[0])
    assert outcome is not None
    assert outcome["provenance"]["versions"]["torch"]
    assert make_report("x", study, runs)["measures"][0]["cells"].keys() == {
        "group_size=1",
        "group_size=2",
    }


def test_shards_are_all_runs_and_share_no_stage(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe)
    shards = [shard_of(runs, number, 2) for number in (1, 2)]
    assert sorted(run.key for shard in shards for run in shard) == sorted(run.key for run in runs)
    assert [len(shard) for shard in shards] == [4, 2]
    firsts = [{run.stages[0] for run in shard} for shard in shards]
    assert not firsts[0] & firsts[1]
    assert shard_of(runs, 4, 4) == []
    # Two commands at once, of one shard each, do the work of one command.
    for number in (1, 2):
        run_study(study, shards[number - 1], tmp_path / "work", shard=(number, 2))
    assert all(is_finished(run, study) for run in runs)
    report = make_report("rates", study, runs)
    assert {record["state"] for record in report["runs"]} == {"done"}


def test_a_study_that_changed_says_which_runs_are_kept(tmp_path, recipe, played):
    study, runs = prepared(tmp_path, recipe)
    folder = tmp_path / "work" / "rates"
    assert changed_since(folder, study, runs) is None
    run_study(study, runs, tmp_path / "work")
    write_report(make_report("rates", study, runs), folder)
    assert changed_since(folder, study, runs) is None
    other, fewer = prepared(tmp_path, recipe, vary={RATE: [0.1, 0.3]})
    line = changed_since(folder, other, fewer)
    assert "3 of 6 runs of that report belong to it still" in line
    assert "\n" not in line


def test_cells_that_do_not_fit_are_refused_before_anything_runs(tmp_path, recipe, monkeypatch):
    study, _ = prepared(tmp_path, recipe)
    assert "6 runs (2 cells, 3 seeds)" in check_cells(study, "rates.yaml", None, False)

    def small(*args):
        return [CellEstimate(name, 3 * 2**30, 2 * 2**30, 1.0, True, "GPU") for name in "ab"]

    monkeypatch.setattr("maya_vlm.training.ablation.estimate.estimate_cells", small)
    with pytest.raises(
        MemoryError,
        match=r"rates.yaml: cell 'a': expected at most 2.0 GiB.*found an estimate of 3.0",
    ):
        check_cells(study, "rates.yaml", None, False)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/"])
def test_a_shard_that_is_none(text, capsys):
    with pytest.raises(SystemExit):
        main(["ablate", "projector_depth", "--shard", text])
    assert "expected NUMBER/COUNT, such as 1/8" in capsys.readouterr().err
