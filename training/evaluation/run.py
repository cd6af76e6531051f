"""`maya evaluate`: ask a model about pictures it never saw, beside two runs that cannot know.

The blind run asks the same questions without a picture, the shuffled run with the picture of
another concept: what remains there was learned from the texts alone.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..common.models import Model, check_weights, find_model, opening
from ..common.reading import read_yaml
from . import mini
from .generation import Answer, Question, answer, is_maya
from .lettering import check_packages
from .model import load
from .results import (
    FORMAT,
    ModelInfo,
    Results,
    TaskScores,
    files_sha256,
    machine,
    package,
    versions,
    write_json,
)
from .sheet import draw_sheet

MINI = Path(__file__).resolve().parents[1] / "data" / "mini"
BASELINES = ("blind", "shuffled")
RESAMPLES = 2000


def evaluate(
    model: str,
    data: str | None = None,
    output: Path | None = None,
    split: str = "test",
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    baselines: Sequence[str] = BASELINES,
    batch_size: int = 256,
    trust_remote_code: bool = False,
    seed: int = 0,
    baseline_images: int | None = 300,
    sheet: bool = True,
    revision: str | None = None,
) -> Results:
    """Score a model on the mini benchmark, print the table, write `results.json` and `sheet.png`.

    Args:
        model: a folder or Hub repository (`user/name@revision` too) of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        data: a folder or Hub repository in the layout of the mini dataset; default: the mini
            dataset itself.
        output: where `results.json`, `answers.parquet` and `sheet.png` go; default: the model's
            folder, or a folder named after the repository.
        split: its split; `test` is the art style kept for last.
        languages: BCP-47 codes; default: all of the split.
        limit: how many pictures, drawn from the seed; default: all.
        baselines: which of "blind" and "shuffled" to run.
        batch_size: questions answered together.
        trust_remote_code: passed on to transformers, for models other than Maya.
        seed: of the drawing, the shuffling and the bootstrap.
        baseline_images: on how many pictures the baselines are asked; None: on all.
        sheet: whether to draw `sheet.png`.
        revision: branch, tag or commit of the model's repository.

    Raises:
        ValueError, OSError, MemoryError: in one line, before anything is asked or written.
    """
    began = time.perf_counter()
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    for name, number in (("batch_size", batch_size), ("baseline_images", baseline_images)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    # What can fail fails before the model is loaded and asked.
    if sheet:
        check_packages()
    found = find_model(model, revision)
    if found.revision is None and not found.is_adapter:
        check_weights(found)
    folder = output or (found.folder if found.revision is None else Path(Path(found.name).name))
    check_writable(folder)
    if data is None:
        data = str(MINI)
    benchmark = mini.load(data, split, languages, limit, seed)
    images = benchmark.images
    few = mini.sample(images, baseline_images, seed)
    shuffled = mini.derangement(benchmark, few, seed) if "shuffled" in baselines else {}
    groups = language_groups(str(found.folder), benchmark.languages)
    network, processor = load(model, trust_remote_code, revision)
    loaded = time.perf_counter()
    seconds = {"load": loaded - began}

    pictures = [benchmark.picture(image) for image in images]
    if not is_maya(network):
        with opening(found, "maya evaluate asks models that answer a question about one picture"):
            trial = [Question(0, "What is this?", 1)]
            answer(network, processor, pictures[:1], trial)
            if "blind" in baselines:
                answer(network, processor, [], [Question(None, "What is this?", 1)])
    # A small model on CPU answers faster as one thread a core than with all cores on one batch.
    small = sum(p.numel() for p in network.parameters()) < 200_000_000
    workers = min(os.cpu_count() or 1, 8) if small and network.device.type == "cpu" else 1
    if workers > 1:
        torch.set_num_threads(1)
    answers: dict[str, list[Answer]] = {}
    asked: dict[str, list[mini.Row]] = {}

    def run(name: str, rows: list[mini.Row], questions: list[Question]) -> None:
        start = time.perf_counter()
        asked[name] = rows
        answers[name] = answer(
            network,
            processor,
            pictures,
            questions,
            batch_size=batch_size,
            workers=workers,
            progress=Progress(name, len(rows)),
        )
        seconds[name] = time.perf_counter() - start

    run("model", benchmark.rows, mini.questions(benchmark.rows, images))
    fewer = [row for row in benchmark.rows if row.image in set(few)]
    if "blind" in baselines:
        run("blind", fewer, mini.blind_questions(fewer))
    if "shuffled" in baselines:
        run("shuffled", fewer, mini.questions(fewer, images, shuffled))

    own, given = asked["model"], answers["model"]
    results: Results = {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "package": package(),
        "settings": {
            "benchmark": "mini",
            "languages": benchmark.languages,
            "tasks": list(mini.TASKS),
            "limit": limit,
            "baseline_images": len(few) if baselines else None,
            "baselines": list(baselines),
            "batch_size": batch_size,
            "workers": workers,
            "max_new_tokens": mini.MAX_NEW_TOKENS,
            "decoding": "greedy",
            "seed": seed,
            "bootstrap_resamples": RESAMPLES,
        },
        "model": _model_info(found, network),
        "data": {
            "name": Path(data).name if Path(data).is_dir() else data,
            "revision": _data_revision(data),
            "files_sha256": files_sha256(mini.files(data)),
            "split": split,
            "styles": sorted({row.style for row in own}),
            "images": len(images),
            "concepts": {
                "seen": len({row.concept for row in own if row.seen}),
                "held_out": len({row.concept for row in own if not row.seen}),
            },
            "questions": len(own),
        },
        "machine": machine(),
        "versions": versions(),
        "seconds": seconds,
        "runs": {
            name: mini.scores(asked[name], answers[name], groups, resamples=RESAMPLES, seed=seed)
            for name in answers
        },
        "chance": mini.chance(benchmark),
        "yes_rate": {
            name: mini.yes_rate(benchmark, asked[name], answers[name]) for name in answers
        },
        "fidelity": mini.fidelity(own, given),
        "failures": mini.failures(benchmark, own, given),
    }
    folder.mkdir(parents=True, exist_ok=True)
    if sheet:
        draw_sheet(benchmark, own, given, folder / "sheet.png", seed=seed)
    _write_answers(folder / "answers.parquet", asked, answers)
    seconds["total"] = time.perf_counter() - began
    # Last, so that where results.json stands, the rest stands too.
    write_json(results, folder / "results.json")
    print(table(results))
    names = ["results.json", "answers.parquet", *(["sheet.png"] if sheet else [])]
    print(f"\nwritten to {folder}: {', '.join(names)}")
    return results


class Progress:
    """Prints how far a run is, at most every five seconds."""

    def __init__(self, name: str, total: int):
        self.name, self.total = name, total
        self.began = self.printed = time.perf_counter()

    def __call__(self, done: int) -> None:
        now = time.perf_counter()
        if now - self.printed > 5:
            self.printed = now
            rate = done / (now - self.began)
            print(f"{self.name}: {done:,} answers, {rate:,.0f} a second", flush=True)


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


def _data_revision(data: str) -> str | None:
    if Path(data).is_dir():
        return None
    from huggingface_hub import HfApi

    return HfApi().dataset_info(data).sha


def _write_answers(
    path: Path, asked: dict[str, list[mini.Row]], answers: dict[str, list[Answer]]
) -> None:
    """Every question and answer, one row each: what the numbers were counted from."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "run": name,
            "id": row.id,
            "image": row.image,
            "lang": row.lang,
            "task": row.task,
            "question": row.question,
            "expected": row.expected,
            "answer": given.text,
            "right": mini.right(row, given),
            "seen": row.seen,
            "tokens": given.tokens,
            "ended": given.ended,
        }
        for name in answers
        for row, given in zip(asked[name], answers[name], strict=True)
    ]
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def table(results: Results) -> str:
    """The results as text: languages by tasks, the blind and shuffled runs beside the model."""
    data, settings = results["data"], results["settings"]
    runs = [name for name in ("model", *BASELINES) if name in results["runs"]]
    tasks = settings["tasks"]
    lines = [
        f"{results['model']['name']} on {data['split']} ({', '.join(data['styles'])}): "
        f"{data['images']:,} pictures, {data['questions']:,} questions, greedy",
        "percent right with 95 % intervals"
        + (
            f"; blind (no picture) and shuffled (another's picture) on "
            f"{settings['baseline_images']:,} pictures"
            if len(runs) > 1
            else ""
        ),
    ]
    for subset, title in (("seen", "concepts seen in training"), ("held_out", "concepts held out")):
        parts: dict[str, dict[str, TaskScores]] = {
            run: {
                task: results["runs"][run][task][subset]
                for task in tasks
                if subset in results["runs"][run].get(task, {})
            }
            for run in runs
        }
        shown = [task for task in tasks if task in parts["model"]]
        if not shown:
            continue
        widths = {"model": 19, "blind": 7, "shuffled": 10}
        header, under = f"{'':10}", f"{'':10}"
        for task in shown:
            chance = results["chance"][task]
            note = "" if chance is None else f" (chance {100 * chance:.2g})"
            header += f"| {task + note:{sum(widths[run] for run in runs)}}"
            under += "| " + "".join(f"{run:<{widths[run]}}" for run in runs)
        lines += ["", f"{title}:", header.rstrip(), under.rstrip()]
        rows = list(parts["model"][shown[0]]["languages"])
        means = list(parts["model"][shown[0]]["means"])
        for row in [*rows, *means]:
            line = f"{row if row in rows else 'mean ' + row[:5]:10}"
            for task in shown:
                line += "| "
                for run in runs:
                    scores = parts[run].get(task)
                    found = scores and (scores["languages"].get(row) or scores["means"].get(row))
                    if not found:
                        cell = "-"
                    elif run == "model":
                        low, high = 100 * found["low"], 100 * found["high"]
                        cell = f"{100 * found['value']:5.1f} [{low:.1f}, {high:.1f}]"
                    else:
                        cell = f"{100 * found['value']:5.1f}"
                    line += f"{cell:<{widths[run]}}"
            lines.append(line.rstrip())
    failures = results["failures"]
    counted = {
        kind: sum(count[kind] for task in failures.values() for count in task.values())
        for kind in ("empty", "unfinished", "off_format", "other_script")
    }
    lines += [
        "",
        f"counted as wrong: {counted['empty']:,} empty, {counted['unfinished']:,} unfinished, "
        f"{counted['off_format']:,} off format; {counted['other_script']:,} answers in another script",
        "yes rate: "
        + ", ".join(f"{k} {100 * v:.0f}" for k, v in results["yes_rate"]["model"].items()),
        "seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in results["seconds"].items()),
    ]
    return "\n".join(lines)
