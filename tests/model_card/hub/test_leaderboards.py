"""Scores for the leaderboards of benchmark datasets, by the task ids of a dataset on a local Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from maya_vlm.model_card.hub import leaderboards
from maya_vlm.training.common.files import files_sha256
from maya_vlm.training.evaluation.results import read_results, write_results
from tests.evaluation.answers import results_of
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_maya import save_tiny_maya

ROOT = Path(__file__).resolve().parents[3]
ANSWERS = {"model": ["A", "A", "B", "B", "x", "B"], "blind": ["B"] * 6}


@pytest.fixture
def folder(tmp_path):
    """A tiny Maya with results on the whole split of someone/letters."""
    folder = save_tiny_maya(tmp_path / "tiny")
    results = results_of(ANSWERS, files_sha256(folder.glob("*.safetensors")))
    info = results["tasks"]["letters"]
    info["data"]["name"], info["data"]["revision"] = "someone/letters", "5" * 40
    info["settings"]["limit"] = None
    info["subsets"] = {"all": "all", "new/choice": "choice"}
    for row in results["rows"]:
        row["subset"] = row["subset"].replace("old/choice", "all")
    write_results(results, folder / "results.json")
    return folder


def entries(folder, monkeypatch, tmp_path, tasks):
    """Return the entries of the files for an `eval.yaml` with these tasks."""
    monkeypatch.setattr(leaderboards, "_benchmark_tasks", lambda dataset, token: tasks)
    files = leaderboards.leaderboard_files(folder, "user/tiny", tmp_path)
    return {
        name: parse_eval_result_entries(yaml.safe_load(file.read_text()))
        for name, file in files.items()
    }


def row_of(folder, subset, language):
    rows = read_results(folder / "results.json")["rows"]
    (row,) = [
        row
        for row in rows
        if (row["subset"], row["run"], row["language"], row["metric"])
        == (subset, "model", language, "accuracy")
    ]
    return row


@pytest.mark.parametrize(
    ("task", "of"),
    [
        ({"id": "letters"}, ("all", "all")),
        ({"id": "letters", "config": "default", "split": "test"}, ("all", "all")),
        ({"id": "letters_hi", "config": "hi"}, ("all", "hi")),
        ({"id": "letters_new", "config": "new/choice"}, ("new/choice", "all")),
    ],
)
def test_an_entry_has_the_score_that_the_task_means(folder, monkeypatch, tmp_path, task, of):
    found = entries(folder, monkeypatch, tmp_path, [task])
    ((name, (entry,)),) = found.items()
    row = row_of(folder, *of)
    assert name == f".eval_results/maya_someone_letters_{task['id']}.yaml"
    assert (entry.dataset_id, entry.task_id) == ("someone/letters", task["id"])
    assert entry.dataset_revision == "5" * 40
    assert entry.value == round(100 * row["value"], 2)
    assert entry.source_url.endswith("/user/tiny/blob/main/results.json")
    assert f"95 % interval {100 * row['low']:.1f} to {100 * row['high']:.1f}" in entry.notes
    assert f"{row['n']} answers" in entry.notes


@pytest.mark.parametrize(
    "task", [{"id": "a", "split": "validation"}, {"id": "a", "config": "other"}]
)
def test_a_score_that_fits_no_task_is_told(folder, monkeypatch, tmp_path, capsys, task):
    assert entries(folder, monkeypatch, tmp_path, [task]) == {}
    told = "results of letters on the split test fit none of its tasks (a)"
    assert f"note: not on the leaderboard of someone/letters: {told}" in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"limit": 8}, {"partial": [3, 6]}, None])
def test_a_score_on_a_part_of_the_split_is_told(folder, monkeypatch, tmp_path, capsys, change):
    path = folder / "results.json"
    results = json.loads(path.read_text())
    settings = results["tasks"]["letters"]["settings"]
    if change is None:
        # Answers from a file: the results do not say which share of the split they are.
        del settings["limit"]
    else:
        settings.update(change)
    path.write_text(json.dumps(results))
    assert entries(folder, monkeypatch, tmp_path, [{"id": "letters"}]) == {}
    assert "do not cover the whole split" in capsys.readouterr().out


PUBLISH = """
from maya_vlm.model_card.hub.publish import publish
publish(FOLDER, "user/tiny", licence="mit", verify=False, dry_run=DRY)
"""


def test_publish_sends_the_scores_and_removes_old_ones(folder, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "eval.yaml").write_text("what: another tool's file\n")
    benchmark = tmp_path / "letters" / "eval.yaml"
    with HubServer() as hub:

        def run(name, dry=False):
            results = json.loads((folder / "results.json").read_text())
            results["tasks"]["letters"]["data"]["name"] = name
            (folder / "results.json").write_text(json.dumps(results))
            done = subprocess.run(
                [sys.executable, "-c", f"FOLDER, DRY = {str(folder)!r}, {dry}\n{PUBLISH}"],
                cwd=tmp_path,
                env={
                    **os.environ,
                    **hub.environment(tmp_path / "home"),
                    "PYTHONPATH": str(ROOT),
                },
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        benchmark.write_text(yaml.safe_dump({"tasks": [{"id": "letters", "split": "test"}]}))
        hub.put("dataset", "someone/letters", tmp_path / "letters")
        hub.put("dataset", "someone/other", tmp_path / "other")
        file = ".eval_results/maya_someone_letters_letters.yaml"
        assert file in run("someone/letters", dry=True)
        run("someone/letters")
        sent = hub.files("model", "user/tiny")
        (entry,) = parse_eval_result_entries(yaml.safe_load(sent[file]))
        assert entry.value == round(100 * row_of(folder, "all", "all")["value"], 2)
        # Another dataset: its eval.yaml is not one of a benchmark, and the old score is removed.
        assert "eval.yaml of dataset someone/other names no tasks" in run("someone/other")
        assert file not in hub.files("model", "user/tiny")
        # A dataset without the file, or that is not on the Hub, has no leaderboard.
        assert "leaderboard" not in run("someone/nowhere")
