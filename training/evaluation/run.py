"""`maya evaluate`: score a model on pictures, beside two baselines that cannot know the answer.

The blind run asks the same questions without a picture, the shuffled run with another picture. A score
there was learned from the texts alone.
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
    """Score a model on tasks, print tables, write `results.json`, the answers and a sheet of some.

    Every answer is kept as it comes: the same command continues, and no answer is generated twice. Answers
    are equal up to the rounding of another batch shape, whatever was answered before. Where asking fails,
    what is answered is scored, and the task is marked partial in its title and settings. Processes that
    accelerate has started share the work; the first of them writes.

    Args:
        model: a folder or Hub repository (`user/name@revision` too) of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        tasks: names of tasks, see `maya evaluate --list`.
        data: a folder or Hub repository in the layout of the task's dataset; default: the task's own.
        output: where the files go; default: the model's folder, or a folder named after the
            repository. Results of other tasks for the same weights stay in `results.json`.
        split: default: the task's own.
        languages: BCP-47 codes; default: all. Of several tasks, each is asked in those that it has.
        limit: how many pictures a task, drawn from the seed; default: all.
        baselines: which of "blind" and "shuffled" to run.
        batch_size: questions answered together.
        trust_remote_code: passed on to transformers, for models other than Maya.
        seed: of the drawing, the shuffling and the bootstrap.
        baseline_items: on how many pictures the baselines are asked; None: on all.
        sheet: whether to draw `sheet.png`.
        revision: branch, tag or commit of the model's repository; of a served model, the commit that the
            server does not tell.
        endpoint: ask the model that this server knows as `endpoint.model`; `model` names it in results.
        judge: which model grades the answers of tasks that need it; the first process asks it.
        toxicity: a classifier that tells toxic answers.

    Raises:
        ValueError, OSError, MemoryError: in one line, before anything is asked or written; or when asking
            fails, after what is answered was written; or when the judge fails, whose judgements are kept.
    """
    began = time.perf_counter()
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"unknown baseline {unknown[0]!r}; known: {', '.join(BASELINES)}")
    for name, number in (("batch_size", batch_size), ("baseline_items", baseline_items)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, found {number}")
    # A task may have several names.
    chosen = list({task.key: task for task in map(find_task, tasks)}.values())
    if data is not None and len(chosen) > 1:
        raise ValueError(
            f"data: expected one task with it, found {len(chosen)}: {', '.join(tasks)}"
        )
    detectable(())  # that the detector of languages is installed
    # ---- Read the datasets and check the folders: what can fail fails before the model is loaded.
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
        # ---- Read the answers that are there.
        works = stack.enter_context(open_works(chosen, loaded, plans, identity, folder, process))
        before, total = sum(work.answered for work in works), sum(work.total for work in works)
        if before and process.rank == 0:
            print(f"{before:,} of {total:,} answers are there already", flush=True)
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

    Raises ValueError for a language that no task has, and for a task that has none of them.
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
                f"{task.key}: asked in {' '.join(own)} only, as it has no other of these languages"
            )
        found.append((task, own))
    return found


def planned(
    part: Loaded, baselines: Sequence[str], baseline_items: int | None, seed: int
) -> dict[str, list[Request]]:
    """Return run -> requests. Raises ValueError if there are too few pictures for a baseline."""
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
    """Raise OSError if results cannot be written there. Leaves nothing behind."""
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
