"""State and measured values of a run, read from the run's files."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from ..common.files import write_json
from ..common.languages import is_language
from ..common.provenance import Provenance, provenance
from ..common.reading import read_json_mapping
from ..common.schema import digest, to_dict
from ..evaluation.results import Results, read_results
from .plan import Run
from .study import ALL, Evaluation, Measure, Study

OUTCOME = "outcome.json"
LOG = "training_log.json"
State = Literal["done", "failed", "diverged"]
# Part of `maya train`'s error for a loss or weights that are not finite.
DIVERGED = re.compile(r"expected (a finite loss|finite weights)")


class Outcome(TypedDict):
    """How the training of a run ended. reason: the error in one line, if it failed or diverged."""

    state: State
    seconds: float
    provenance: Provenance
    reason: NotRequired[str]


def write_outcome(folder: Path, seconds: float, reason: str | None = None) -> Outcome:
    """Write how a run's training ended.

    The file is next to the run's folder, because a failed run may have no folder.

    Args:
        folder: the run's folder.
        seconds: duration of the training.
        reason: the last line of the error, or None if the training finished.
    """
    outcome: Outcome = {
        "state": "done",
        "seconds": round(seconds, 1),
        "provenance": provenance(),
    }
    if reason is not None:
        outcome["state"] = "diverged" if DIVERGED.search(reason) else "failed"
        outcome["reason"] = reason
    write_json(_file(folder), outcome)
    return outcome


def read_outcome(run: Run) -> Outcome | None:
    """Return how the training of a run ended, or None if it has not ended."""
    path = _file(run.folder)
    if not path.is_file():
        return None
    found: Any = read_json_mapping(path)
    return found


def _file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{OUTCOME}")


def evaluation_folder(run: Run, evaluation: Evaluation) -> Path:
    """Return the folder of a run's scores. Each different evaluation of a run has its own folder."""
    return run.folder / "evaluations" / digest(to_dict(evaluation))


def is_scored(run: Run, study: Study) -> bool:
    """Return whether the evaluation of a run is complete."""
    folder = evaluation_folder(run, study.evaluate)
    return not study.evaluate.tasks or (folder / OUTCOME).is_file()


class Values(TypedDict):
    """A measure of one run: the overall value, and the value per language."""

    value: float
    languages: dict[str, float]
    higher_is_better: bool | None


def measured(run: Run, study: Study, measure: Measure) -> Values:
    """Return a measure of a finished run.

    Raises:
        ValueError: the run's files do not contain the value; the message lists the values they contain.
        FileNotFoundError: a file of the run is missing.
    """
    if measure.log is not None:
        return _logged(run, measure)
    results = read_results(evaluation_folder(run, study.evaluate) / "results.json")
    return _scored(results, measure)


def _scored(results: Results, measure: Measure) -> Values:
    tasks = results["tasks"]
    key = str(measure.task)
    if key not in tasks:
        raise ValueError(f"measure {measure.name}: task: expected one of {', '.join(tasks)}")
    info = tasks[key]
    metric = measure.metric or info["metric"]
    rows = [
        row
        for row in results["rows"]
        if (row["task"], row["metric"], row["run"]) == (key, metric, measure.run)
    ]
    subsets = list(dict.fromkeys(row["subset"] for row in rows))
    subset = measure.subset if measure.subset is not None else (subsets[0] if subsets else "")
    if subset not in subsets or (measure.subset is None and len(subsets) > 1):
        found = ", ".join(map(repr, subsets)) or "none"
        raise ValueError(
            f"measure {measure.name}: subset: expected one of {found}, found {measure.subset!r}"
        )
    values = {row["language"]: row["value"] for row in rows if row["subset"] == subset}
    # A task with one language has no row for the mean of all languages.
    only = (
        next(iter(values)) if len(values) == 1 and measure.languages == ALL else measure.languages
    )
    if only not in values:
        raise ValueError(
            f"measure {measure.name}: languages: expected one of {', '.join(values)}, found {only!r}"
        )
    higher = measure.higher_is_better
    return {
        "value": values[only],
        "languages": {k: v for k, v in values.items() if k not in info["groups"]},
        "higher_is_better": info["metrics"][metric]["higher_is_better"]
        if higher is None
        else higher,
    }


def training_seconds(run: Run) -> float | None:
    """Return the seconds of a run's training, summed over stages and processes; None if a log lacks them.

    A stage that the run takes from another run counts as if the run had trained it.
    """
    total = 0.0
    for stage in run.recipe.stages:
        path = run.folder / stage.name / LOG
        log = read_json_mapping(path) if path.is_file() else {}
        if "seconds" not in log:
            return None
        total += log["seconds"] * log["processes"]
    return round(total, 1)


def _logged(run: Run, measure: Measure) -> Values:
    stage = measure.stage or run.recipe.stages[-1].name
    path = run.folder / stage / LOG
    entries = read_json_mapping(path)["log"]
    last: dict[str, float] = {}
    for entry in entries:
        last.update({k: v for k, v in entry.items() if isinstance(v, int | float)})
    key = str(measure.log)
    if key not in last or not math.isfinite(last[key]):
        raise ValueError(
            f"{path}: {key}: expected a finite number in the log, which has {', '.join(sorted(last))}"
        )
    higher = measure.higher_is_better
    return {
        "value": last[key],
        "languages": dict(_by_language(last, key)),
        "higher_is_better": key.endswith("accuracy") if higher is None else higher,
    }


def _by_language(log: dict[str, float], key: str) -> Iterator[tuple[str, float]]:
    """Yield (language, value) for a log key: mean_loss -> hi/loss, eval_loss -> eval_hi/loss."""
    held_out = key.startswith("eval_")
    metric = key.removeprefix("eval_").removeprefix("mean_")
    for name, value in log.items():
        language, slash, found = name.removeprefix("eval_").partition("/")
        of_kind = found == metric and name.startswith("eval_") == held_out
        if slash and of_kind and is_language(language):
            yield language, value
