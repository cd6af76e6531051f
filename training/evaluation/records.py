"""Write scored answers: rows, `results.json`, the answers, and files for servers."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.provenance import provenance
from ..common.reading import read_yaml
from .answers import write_answers
from .measures import MEASURES, measures
from .protocol import CHANCE, MODEL, Loaded, Place, Request, Scored, Task
from .report.evaluations import keep_pictures, pictures_file
from .results import FORMAT, ModelInfo, Results, Row, TaskInfo, read_results, write_results
from .scoring.toxicity import Toxicity
from .table import text_table
from .tasks.judged import Judged


class Records:
    """The results of one model in one folder; tasks are added one by one.

    Args:
        folder: the output folder; results of other tasks for the same weights stay.
        model: info of the evaluated model.
        tasks: keys of the tasks that will be added.
        place: the model's folder, whose recipe says in which languages the projector was aligned; "" if there
            is none.
        seed: seed of the bootstrap and of the selection of pictures for the report.
        toxicity: a classifier of toxic answers.
        counted: whether it is known which answers the model ended itself.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelInfo,
        tasks: Sequence[str],
        place: str,
        seed: int,
        toxicity: Toxicity | None = None,
        counted: bool = True,
    ):
        self.folder, self.place, self.seed = folder, place, seed
        self.toxicity, self.counted = toxicity, counted
        self.results = _results_before(folder, model, tasks)

    def add(
        self,
        task: Task,
        part: Loaded,
        runs: Mapping[str, Sequence[Scored]],
        settings: dict[str, Any],
        seconds: dict[str, float],
        began: float,
        partial: tuple[int, int] | None = None,
    ) -> None:
        """Add a task's rows, write its files, and print its table.

        Args:
            runs: run -> its scored answers.
            settings: settings that produced the answers.
            seconds: duration of each step; the total since `began` (of `time.perf_counter`) is added.
            partial: (number of existing answers, number of all); None if no answer is missing.
        """
        results, seed = self.results, self.seed
        groups = language_groups(self.place, part.languages)
        info = _task_info(task, part, groups, settings | {"seed": seed}, seconds)
        results["tasks"][task.key] = info
        if partial:
            info["settings"]["partial"] = dict(zip(("answered", "of"), partial, strict=True))
            # The title marks partial results in all tables.
            info["title"] += f" (partial: {partial[0]:,} of {partial[1]:,} answers)"
        for run, scored in runs.items():
            results["rows"] += task.aggregate(scored, run, groups, seed)
            results["rows"] += [
                row
                for row in measures(task, scored, run, groups, seed, self.toxicity)
                if self.counted or row["metric"] != "cut"
            ]
        if isinstance(task, Judged):
            info["judge"] = task.judge_info()
        results["rows"] += chance_rows(task, part.requests)
        answers = self.folder / "answers"
        answers.mkdir(parents=True, exist_ok=True)
        path = answers / f"{task.key}.parquet"
        write_answers(path, runs, results["model"], self.counted, self.toxicity)
        keep_pictures(part, runs[MODEL], pictures_file(self.folder, task.key), seed)
        if not partial:
            task.export(runs[MODEL], answers)
        seconds["total"] = time.perf_counter() - began
        # results.json is written last: if it exists, so do the other files.
        write_results(results, self.folder / "results.json")
        print(text_table(results, task.key))


def chance_rows(task: Task, requests: Sequence[Request]) -> list[Row]:
    """Return the mean score of random answers for each subset and language."""
    values: dict[tuple[str, str], list[float]] = {}
    for request in requests:
        if request.chance is not None:
            values.setdefault((request.subset, request.language), []).append(request.chance)
    higher = task.metrics[task.metric]["higher_is_better"]
    return [
        Place(task.key, subset, CHANCE, task.metric, higher).row(
            language, sum(found) / len(found), None, None, len(found), 0
        )
        for (subset, language), found in values.items()
    ]


def _results_before(folder: Path, model: ModelInfo, tasks: Sequence[str]) -> Results:
    """Return the results in `folder` of the same weights and other tasks."""
    empty: Results = {"format": FORMAT, "model": model, "tasks": {}, "rows": []}
    try:
        before = read_results(folder / "results.json")
    except (ValueError, FileNotFoundError):
        return empty
    if before["model"] != model:
        return empty
    for name in tasks:
        before["tasks"].pop(name, None)
    before["rows"] = [row for row in before["rows"] if row["task"] not in tasks]
    return before


def language_groups(model: str, languages: Sequence[str]) -> dict[str, list[str]]:
    """Return the groups of languages to average over: "all", "pretrained" and "transfer".

    The saved recipe says in which languages the projector was aligned: those are "pretrained", the others "transfer".
    Without a recipe there is only "all".
    """
    groups = {"all": list(languages)}
    aligned = _aligned_languages(Path(model) / "recipe.yaml")
    if aligned:
        groups["pretrained"] = [lang for lang in languages if lang in aligned]
        groups["transfer"] = [lang for lang in languages if lang not in aligned]
    return {name: group for name, group in groups.items() if group}


def _aligned_languages(recipe: Path) -> set[str]:
    """Return the languages of a recipe's stage `pretrain`; none if the file is not a recipe of this package.

    Other tools may write files of this name into a model's folder.
    """
    try:
        stages = read_yaml(recipe)["stages"]
        (data,) = [stage["data"] for stage in stages if stage["name"] == "pretrain"]
        return {lang for source in data for lang in source["languages"]}
    except (OSError, ValueError, LookupError, TypeError):
        return set()


def _task_info(
    task: Task,
    part: Loaded,
    groups: dict[str, list[str]],
    settings: dict[str, Any],
    seconds: dict[str, float],
) -> TaskInfo:
    return {
        "title": task.title,
        "version": task.version,
        "protocol": task.protocol,
        "source": task.protocols[task.protocol],
        "asked": task.describe(),
        "contamination": task.contamination,
        "subsets": dict(task.subsets),
        "parts": dict(task.parts),
        "metrics": {**task.metrics, **MEASURES},
        "metric": task.metric,
        "languages": list(part.languages),
        "groups": groups,
        "data": part.data,
        "settings": settings,
        **provenance(),
        "seconds": seconds,
    }
