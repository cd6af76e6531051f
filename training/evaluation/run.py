"""`maya evaluate`: score a model on pictures, and two baselines without the right picture.

The blind run asks the same questions without a picture, the shuffled run with another picture. A model can score
in these runs only by what it learned from text.
"""

import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.endpoint import EndpointPlan
from ..common.files import files_sha256
from ..common.models import Model, check_weights, find_model, opening
from ..inference.generation import is_maya
from ..inference.load import load
from .asking import Asked, Asking, Progress
from .journal import local_identity
from .judges.plan import JudgePlan
from .processes import this_process
from .protocol import (
    BASELINES,
    BLIND,
    MODEL,
    SHUFFLED,
    Loaded,
    Request,
    Selection,
    Task,
    blind,
    in_order,
    sample,
    shuffled,
)
from .records import Records
from .report.page import write_report
from .results import (
    ModelInfo,
    Results,
)
from .scoring.fidelity import detectable
from .scoring.toxicity import Toxicity
from .served import Served
from .sheet.draw import draw_sheet
from .sheet.lettering import missing_packages
from .tasks import task as find_task
from .tasks.judged import give_judge
from .work import open_works


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
    endpoint: EndpointPlan | None = None,
    judge: JudgePlan | None = None,
    toxicity: Toxicity | None = None,
) -> Results:
    """Score a model on tasks, print tables, and write `results.json`, the answers and an answer sheet.

    Every answer is stored at once: the same command continues, and no answer is generated twice. A resumed
    evaluation has the same answers up to the rounding of other batch shapes. If asking fails, the existing
    answers are scored, and the task's title and settings mark it as partial. Processes that accelerate has
    started share the work; the first one writes.

    Args:
        model: a folder or Hub repository (`user/name@revision` too) of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        tasks: names of tasks, see `maya evaluate --list`.
        data: a folder or Hub repository in the layout of the task's dataset; None: the task's dataset.
        output: the output folder; None: the model's folder, or a folder named after the
            repository. `results.json` keeps results of other tasks for the same weights.
        split: None: the task's default.
        languages: BCP-47 codes; None: all. With several tasks, each is asked in those that it has.
        limit: number of pictures for each task, drawn from the seed; None: all.
        baselines: the baselines to run, of "blind" and "shuffled".
        batch_size: number of questions in a batch.
        trust_remote_code: passed on to transformers, for models other than Maya.
        seed: seed of the selection, the shuffling and the bootstrap.
        baseline_items: number of pictures for the baselines; None: all.
        sheet: whether to draw `sheet.png`.
        revision: branch, tag or commit of the model's repository; for a served model, its commit, since the
            server does not report it.
        endpoint: a server to ask for the model `endpoint.model`; `model` is then the name in the results.
        judge: the judge model, for tasks that need one; only the first process asks it.
        toxicity: a classifier of toxic answers.

    Raises:
        ValueError, OSError, MemoryError: in one line: before anything is asked or written; or if asking
            fails, after the existing answers were scored and written; or if the judge fails, whose
            judgements stay in its journal.
    """
    began = time.perf_counter()
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(
            f"baselines: expected some of {', '.join(BASELINES)}, found {unknown[0]!r}"
        )
    for name, number in (("batch_size", batch_size), ("baseline_items", baseline_items)):
        if number is not None and number < 1:
            raise ValueError(f"{name}: expected at least 1, found {number}")
    # Several names may mean the same task.
    chosen = list({task.key: task for task in map(find_task, tasks)}.values())
    if data is not None and len(chosen) > 1:
        raise ValueError(f"data: expected a single task, found {len(chosen)}: {', '.join(tasks)}")
    detectable(())  # raises if the language detector is not installed
    # ---- Read the datasets and check the folders, so that errors come before the model is loaded.
    undrawn = sheet and missing_packages()
    process = this_process()
    found = None if endpoint is not None else find_model(model, revision)
    if found is not None and found.revision is None and not found.is_adapter:
        check_weights(found)
    local = found is not None and found.revision is None
    folder = output or (found.folder if found and local else Path(Path(model).name.split("@")[0]))
    check_writable(folder)
    loaded = {
        task.key: task.load(Selection(data, split, own, limit, seed))
        for task, own in _languages_of(chosen, languages)
    }
    plans = {
        task.key: planned(loaded[task.key], baselines, baseline_items, seed) for task in chosen
    }
    if process.rank == 0:
        give_judge(chosen, loaded, judge, folder)
    # ---- Load the model.
    asked: Asked
    if found is None:
        assert endpoint is not None
        asked = served = Served(endpoint)
        info, identity = served.info, served.identity
    else:
        network, processor = load(model, trust_remote_code, revision)
        asked = asking = Asking(network, processor, batch_size, process.count)
        if not is_maya(network):
            with opening(found, "maya evaluate asks models that answer questions about pictures"):
                asking.try_out(loaded.values(), BLIND in baselines)
        info = _model_info(found, network)
        identity = local_identity(found, info["dtype"] or "")
    place = str(found.folder) if found else ""
    records = Records(folder, info, [task.key for task in chosen], place, seed, toxicity)
    seconds = {"load": time.perf_counter() - began}
    with contextlib.ExitStack() as stack:
        # ---- Read the existing answers.
        works = stack.enter_context(open_works(chosen, loaded, plans, identity, folder, process))
        before, total = sum(work.answered for work in works), sum(work.total for work in works)
        if before and process.rank == 0:
            print(f"{before:,} of {total:,} answers exist already", flush=True)
        progress = Progress((total - before) // process.count, shown=process.rank == 0)
        stack.callback(progress.close)
        # ---- Ask, score and write, task by task.
        for work in works:
            task, part, failed = work.task, work.part, None
            try:
                work.ask(asked, process, progress, seconds)
            except Exception as error:
                failed = error
            if process.rank or (failed and not work.answered):
                if failed:
                    raise failed
                continue
            runs = work.scored()
            if sheet and task.sheet and not undrawn and not failed:
                draw_sheet(task, part, runs[MODEL], folder / "sheet.png", seed=seed)
            settings = {
                "baselines": list(baselines),
                "baseline_items": baseline_items,
                **asked.settings,
                "processes": process.count,
                "max_new_tokens": sorted({request.max_new_tokens for request in part.requests}),
                "decoding": "greedy",
                "limit": limit,
                **({"toxicity": toxicity.describe()} if toxicity else {}),
            }
            missing = (work.answered, work.total) if failed else None
            records.add(task, part, runs, settings, seconds, began, missing)
            if failed:
                print(f"\npartial results are in {folder}; the same command continues", flush=True)
                raise failed
            seconds = {}
            began = time.perf_counter()
    if process.rank == 0:
        write_report([folder])
        if undrawn:
            print(f"\nno sheet.png: {undrawn}")
        print(f"\nwritten to {folder}: results.json, report.html and the answers")
    return records.results


def _languages_of(
    tasks: Sequence[Task], languages: Sequence[str] | None
) -> list[tuple[Task, Sequence[str] | None]]:
    """Return each task with its languages; for a single task, its `load` checks them.

    Raises:
        ValueError: no task has a language, or a task has none of the languages.
    """
    if languages is None or len(tasks) == 1:
        return [(task, languages) for task in tasks]
    known = {lang for task in tasks for lang in task.languages}
    unknown = [lang for lang in languages if lang not in known]
    if unknown or not languages:
        raise ValueError(
            f"languages: expected some of {' '.join(in_order(known))}, found "
            f"{' '.join(unknown) or 'none'}"
        )
    found: list[tuple[Task, Sequence[str] | None]] = []
    for task in tasks:
        own = [lang for lang in languages if lang in task.languages]
        if not own:
            raise ValueError(
                f"{task.key}: expected one of its languages, {' '.join(task.languages)}, found "
                f"{' '.join(languages)}: leave the task out"
            )
        if len(own) < len(languages):
            print(
                f"{task.key}: asked only in {' '.join(own)}, since it has none of the other languages"
            )
        found.append((task, own))
    return found


def planned(
    part: Loaded, baselines: Sequence[str], baseline_items: int | None, seed: int
) -> dict[str, list[Request]]:
    """Return run -> requests.

    Raises:
        ValueError: there are too few pictures for a baseline.
    """
    pictures = {key for request in part.requests for key in request.pictures}
    few = set(sample(pictures, baseline_items, seed))
    fewer = [request for request in part.requests if few.issuperset(request.pictures)]
    plans = {MODEL: list(part.requests)}
    if BLIND in baselines:
        plans[BLIND] = [blind(request) for request in fewer]
    if SHUFFLED in baselines:
        plans[SHUFFLED] = shuffled(fewer, seed)
    return plans


def check_writable(folder: Path) -> None:
    """Raise OSError if results cannot be written to the folder. Leave no file behind."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"--output {folder}: expected a folder, found the file {place}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OSError(
            f"--output {folder}: cannot be written ({error.strerror}): name another folder"
        ) from error


def _model_info(model: Model, network: Any) -> ModelInfo:
    config = network.config
    parts = {
        name: getattr(getattr(config, f"{name}_config", None), "model_type", "unknown")
        for name in ("text", "vision")
    }
    local = model.revision is None
    return {
        "name": model.title,
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
