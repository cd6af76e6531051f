"""`maya evaluate`: ask a model about pictures it never saw, beside two runs that cannot know.

The blind run asks the same questions without a picture, the shuffled run with another picture: what
remains there was learned from the texts alone.
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..common.files import files_sha256, write_parquet
from ..common.models import Model, check_weights, find_model, opening
from ..common.provenance import provenance
from ..common.reading import read_yaml
from ..inference.generation import is_maya
from ..inference.load import load
from .asking import Asking, Progress
from .measures import MEASURES, languages_found, measures, toxicities
from .protocol import (
    BASELINES,
    BLIND,
    CHANCE,
    MODEL,
    SHUFFLED,
    Loaded,
    Place,
    Request,
    Scored,
    Selection,
    Task,
    blind,
    sample,
    shuffled,
)
from .report.evaluations import keep_pictures, pictures_file
from .report.page import write_report
from .results import (
    FORMAT,
    ModelInfo,
    Results,
    Row,
    TaskInfo,
    read_results,
    write_results,
)
from .scoring.fidelity import detectable
from .scoring.toxicity import Toxicity
from .sheet.draw import draw_sheet
from .sheet.lettering import missing_packages
from .table import text_table
from .tasks import task as find_task


def evaluate(
    model: str,
    tasks: Sequence[str] = ("mini",),
    data: str | None = None,
    output: Path | None = None,
    split: str | None = None,
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    baselines: Sequence[str] = BASELINES,
    batch_size: int = 256,
    trust_remote_code: bool = False,
    seed: int = 0,
    baseline_items: int | None = 300,
    sheet: bool = True,
    revision: str | None = None,
    toxicity: Toxicity | None = None,
) -> Results:
    """Score a model on tasks, print tables, write `results.json`, the answers and a sheet of some.

    Args:
        model: a folder or Hub repository (`user/name@revision` too) of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        tasks: names of tasks, see `maya evaluate --list`.
        data: a folder or Hub repository in the layout of the task's dataset; default: the task's own.
        output: where the files go; default: the model's folder, or a folder named after the
            repository. Results of other tasks for the same weights stay in `results.json`.
        split: default: the task's own.
        languages: BCP-47 codes; default: all.
        limit: how many pictures a task, drawn from the seed; default: all.
        baselines: which of "blind" and "shuffled" to run.
        batch_size: questions answered together.
        trust_remote_code: passed on to transformers, for models other than Maya.
        seed: of the drawing, the shuffling and the bootstrap.
        baseline_items: on how many pictures the baselines are asked; None: on all.
        sheet: whether to draw `sheet.png`.
        revision: branch, tag or commit of the model's repository.
        toxicity: a classifier that tells toxic answers.

    Raises:
        ValueError, OSError, MemoryError: in one line, before anything is asked or written.
    """
    began = time.perf_counter()
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    for name, number in (("batch_size", batch_size), ("baseline_items", baseline_items)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, found {number}")
    chosen = [find_task(name) for name in dict.fromkeys(tasks)]
    if data is not None and len(chosen) > 1:
        raise ValueError(
            f"data: expected one task with it, found {len(chosen)}: {', '.join(tasks)}"
        )
    detectable(())  # that the detector of languages is installed
    # ---- Read the datasets and check the folders: what can fail fails before the model is loaded.
    undrawn = sheet and missing_packages()
    found = find_model(model, revision)
    if found.revision is None and not found.is_adapter:
        check_weights(found)
    folder = output or (found.folder if found.revision is None else Path(Path(found.name).name))
    check_writable(folder)
    selection = Selection(data, split, languages, limit, seed)
    loaded = {task.key: task.load(selection) for task in chosen}
    plans = {
        task.key: planned(loaded[task.key], baselines, baseline_items, seed) for task in chosen
    }
    # ---- Load the model.
    network, processor = load(model, trust_remote_code, revision)
    asking = Asking(network, processor, batch_size)
    if not is_maya(network):
        with opening(found, "maya evaluate asks models that answer a question about one picture"):
            asking.try_out(loaded.values(), BLIND in baselines)
    results = _results_before(folder, _model_info(found, network), [task.key for task in chosen])
    seconds = {"load": time.perf_counter() - began}
    # ---- Ask, score and write, task by task.
    for task in chosen:
        part = loaded[task.key]
        runs = _runs(task, part, plans[task.key], asking, seconds)
        groups = language_groups(str(found.folder), part.languages)
        results["tasks"][task.key] = _task_info(
            task,
            part,
            groups,
            {
                "baselines": list(baselines),
                "baseline_items": baseline_items,
                "batch_size": batch_size,
                "workers": asking.workers,
                "max_new_tokens": sorted({request.max_new_tokens for request in part.requests}),
                "decoding": "greedy",
                "limit": limit,
                "seed": seed,
                **({"toxicity": toxicity.describe()} if toxicity else {}),
            },
            seconds,
        )
        for run, scored in runs.items():
            results["rows"] += task.aggregate(scored, run, groups, seed)
            results["rows"] += measures(task, scored, run, groups, seed, toxicity)
        results["rows"] += chance_rows(task, part.requests)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "answers").mkdir(exist_ok=True)
        _write_answers(folder / "answers" / f"{task.key}.parquet", runs, toxicity)
        keep_pictures(part, runs[MODEL], pictures_file(folder, task.key), seed)
        task.export(runs[MODEL], folder / "answers")
        if sheet and task.sheet and not undrawn:
            draw_sheet(task, part, runs[MODEL], folder / "sheet.png", seed=seed)
        seconds["total"] = time.perf_counter() - began
        # Last, so that where results.json stands, the rest stands too.
        write_results(results, folder / "results.json")
        print(text_table(results, task.key))
        seconds = {}
        began = time.perf_counter()
    write_report([folder])
    if undrawn:
        print(f"\nno sheet.png: {undrawn}")
    print(f"\nwritten to {folder}: results.json, report.html and the answers")
    return results


def planned(
    part: Loaded, baselines: Sequence[str], baseline_items: int | None, seed: int
) -> dict[str, list[Request]]:
    """Run -> its requests. Raises ValueError for a baseline that so few pictures do not allow."""
    pictures = {key for request in part.requests for key in request.pictures}
    few = set(sample(pictures, baseline_items, seed))
    fewer = [request for request in part.requests if few.issuperset(request.pictures)]
    plans = {MODEL: list(part.requests)}
    if BLIND in baselines:
        plans[BLIND] = [blind(request) for request in fewer]
    if SHUFFLED in baselines:
        plans[SHUFFLED] = shuffled(fewer, seed)
    return plans


def _runs(
    task: Task,
    part: Loaded,
    plans: Mapping[str, Sequence[Request]],
    asking: Asking,
    seconds: dict[str, float],
) -> dict[str, list[Scored]]:
    """Run -> every request of it, answered and scored."""
    runs = {}
    for run, requests in plans.items():
        start = time.perf_counter()
        answers = asking(requests, part.pictures, Progress(f"{task.key}, {run}", len(requests)))
        scores = task.scores(requests, answers)
        runs[run] = [Scored(*one) for one in zip(requests, answers, scores, strict=True)]
        seconds[run] = time.perf_counter() - start
    return runs


def chance_rows(task: Task, requests: Sequence[Request]) -> list[Row]:
    """What answers at random reach on average, for each subset and language."""
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
    """What `folder` has of the same weights and other tasks."""
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


def check_writable(folder: Path) -> None:
    """Raise OSError where results could not be written, without leaving anything behind."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(
            f"--output {folder}: expected a folder, found that {place} is a file"
        )
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"--output {folder}: cannot be written ({error.strerror}): name another folder"
        ) from error


def language_groups(model: str, languages: Sequence[str]) -> dict[str, list[str]]:
    """Groups of languages to average over: all, and where the saved recipe says in which languages
    the projector was aligned, those and the rest apart."""
    groups = {"all": list(languages)}
    aligned = _aligned_languages(Path(model) / "recipe.yaml")
    if aligned:
        groups["pretrained"] = [lang for lang in languages if lang in aligned]
        groups["transfer"] = [lang for lang in languages if lang not in aligned]
    return {name: group for name, group in groups.items() if group}


def _aligned_languages(recipe: Path) -> set[str]:
    """The languages of a recipe's stage `pretrain`; none for what is no recipe of ours.

    Other tools leave files of this name beside their models.
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


def _model_info(model: Model, network: Any) -> ModelInfo:
    config = network.config
    parts = {
        name: getattr(getattr(config, f"{name}_config", None), "model_type", "unknown")
        for name in ("text", "vision")
    }
    local = model.revision is None
    return {
        "name": model.folder.resolve().name if local else model.name,
        "revision": model.revision,
        "weights_sha256": files_sha256(model.folder.glob("*.safetensors")) if local else None,
        "model_type": config.model_type,
        "text_model": parts["text"],
        "vision_model": parts["vision"],
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "image_tokens": config.image_seq_length if is_maya(network) else None,
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": network.device.type,
    }


def _write_answers(
    path: Path, runs: Mapping[str, Sequence[Scored]], toxicity: Toxicity | None
) -> None:
    """Every question and answer, one row each: what the numbers were counted from."""
    rows = [
        {
            "run": run,
            "id": one.request.id,
            "subset": one.request.subset,
            "language": one.request.language,
            "item": one.request.item,
            "pictures": list(one.request.pictures),
            "prompt": one.request.text,
            "expected": json.dumps(one.request.expected, ensure_ascii=False),
            "answer": one.answer.text,
            "parsed": one.score.parsed,
            "unparsable": one.score.unparsable,
            **one.score.values,
            "tokens": one.answer.tokens,
            "ended": one.answer.ended,
            "answer_language": one.request.answer_language,
            "language_found": found,
            "toxicity": toxic,
        }
        for run, scored in runs.items()
        for one, found, toxic in zip(
            scored, languages_found(scored), toxicities(scored, toxicity), strict=True
        )
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    write_parquet(path, table)
