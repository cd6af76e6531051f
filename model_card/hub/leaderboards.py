"""Write `.eval_results/*.yaml`: the Hub shows these scores on the leaderboards of benchmark datasets.

The format is huggingface_hub's `EvalResultEntry`. A benchmark dataset has a file `eval.yaml` with the ids of its
tasks; the ids are read from there. Scores on all other datasets are in the card's `model-index` only.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from maya_vlm.training.common.reading import read_yaml
from maya_vlm.training.common.shapes import has_shape
from maya_vlm.training.common.telling import one_line
from maya_vlm.training.evaluation.protocol import MODEL
from maya_vlm.training.evaluation.results import Results, Row, TaskInfo, read_results
from maya_vlm.training.evaluation.table import group_title, rows_of

from ..cards.scores import ALL

# Marks the files that this package wrote. A new push removes those that it does not replace.
PREFIX = ".eval_results/maya_"


def leaderboard_files(
    folder: Path, repo_id: str, scratch: Path, token: str | None = None
) -> dict[str, Path]:
    """Return name -> file in `scratch` for the results of a folder that a leaderboard of the Hub takes.

    Prints a note for each result on a benchmark dataset that its leaderboard does not take. A dataset that
    cannot be read counts as one without a leaderboard.

    Args:
        folder: the folder of a model. Without results.json there is no file.
        repo_id: the repository of the model, the source of the scores.
        scratch: an existing folder for the files.
        token: default: the token that huggingface_hub finds.

    Raises:
        ValueError: results.json is malformed.
    """
    from huggingface_hub import EvalResultEntry, constants, eval_result_entries_to_yaml

    path = folder / "results.json"
    files: dict[str, Path] = {}
    if not path.is_file():
        return files
    results = read_results(path)
    for name, info in results["tasks"].items():
        dataset = info["data"]["name"]
        tasks = _benchmark_tasks(dataset, token)
        if not tasks:
            continue
        if info["settings"].get("limit", "unknown") is not None or "partial" in info["settings"]:
            print(
                f"note: not on the leaderboard of {dataset}: results of {name} do not cover the whole split, or "
                "results.json does not say so"
            )
            continue
        fitting = {task["id"]: row for task in tasks if (row := _row(results, name, task))}
        if not fitting:
            ids = one_line(", ".join(task["id"] for task in tasks), 100)
            print(
                f"note: not on the leaderboard of {dataset}: results of {name} on the split "
                f"{info['data']['split']} fit none of its tasks ({ids})"
            )
        for task, row in fitting.items():
            metric = info["metrics"][info["metric"]]
            entry = EvalResultEntry(
                dataset_id=dataset,
                task_id=task,
                value=round((100 if metric["percent"] else 1) * row["value"], 2),
                dataset_revision=info["data"]["revision"],
                date=info["created"],
                source_url=f"{constants.ENDPOINT}/{repo_id}/blob/main/results.json",
                source_name="results.json of maya evaluate",
                notes=_notes(info, row),
            )
            file = f"{PREFIX}{re.sub('[^A-Za-z0-9.-]+', '_', f'{dataset}_{task}')}.yaml"
            files[file] = scratch / f"{len(files)}.eval.yaml"
            text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
            files[file].write_text(text, encoding="utf-8")
    return files


def _benchmark_tasks(dataset: str, token: str | None) -> list[dict[str, Any]]:
    """Return the tasks in the `eval.yaml` of a dataset on the Hub; none if there is no such file."""
    from huggingface_hub import hf_hub_download

    if dataset.count("/") != 1 or Path(dataset).exists():
        return []
    try:
        path = hf_hub_download(
            dataset, "eval.yaml", repo_type="dataset", token=token, etag_timeout=10
        )
    except Exception:  # not on the Hub, no such file, offline or gated
        return []
    try:
        found = read_yaml(Path(path))
    except ValueError:
        found = None
    if not has_shape(found, {"tasks": [{"id": str}]}):
        print(
            f"note: eval.yaml of dataset {dataset} names no tasks: no score is sent to its leaderboard"
        )
        return []
    return found["tasks"]


def _row(results: Results, name: str, task: dict[str, Any]) -> Row | None:
    """Return the score that a task of a leaderboard means, or None.

    The task's split must be that of the results. Its config is a language or a subset of the results. Without a
    config, or with the config `default`, the task means the subset `all` or the only subset, and all languages.
    """
    info = results["tasks"][name]
    if task.get("split") not in (None, info["data"]["split"]):
        return None
    config = task.get("config")
    subset = next(iter(info["subsets"])) if len(info["subsets"]) == 1 else ALL
    language = ALL
    if config in info["languages"]:
        language = config
    elif config in info["subsets"]:
        subset = config
    elif config not in (None, "default"):
        return None
    for row in rows_of(results, name, info["metric"]):
        if (row["subset"], row["run"], row["language"]) == (subset, MODEL, language):
            return row
    return None


def _notes(info: TaskInfo, row: Row) -> str:
    """Describe how a score was measured."""
    metric = info["metrics"][info["metric"]]
    scale = 100 if metric["percent"] else 1
    who = row["language"] if row["language"] != ALL else group_title(info, ALL)
    interval = (
        f", 95 % interval {scale * row['low']:.1f} to {scale * row['high']:.1f}"
        if row["low"] is not None and row["high"] is not None
        else ""
    )
    judge = f", judge {info['judge']['id']}" if "judge" in info else ""
    return (
        f"{metric['title']}, {who}{interval}, {row['n']} answers, protocol {info['protocol']}, decoding "
        f"{info['settings']['decoding']}{judge}"
    )
