"""Read a study: one YAML file that names a base recipe, the values to vary, the seeds and the measures."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.names import check_component
from ..common.schema import Bounds, build, join_key, read_mapping, resolve_path
from ..common.telling import one_line
from ..recipe import PACKAGE, find_recipe

STUDIES = PACKAGE / "studies"
# Languages of a row that stands for a whole measure.
ALL = "all"


@dataclass
class Measure:
    """A number of every run: a score of an evaluation, or a value of a stage's training log."""

    task: str | None = None
    """A task of `evaluate.tasks`, such as mini."""
    subset: str | None = None
    """The subset of the task, such as seen/name. Default: the task's only one."""
    metric: str | None = None
    """Default: the metric that the task's tables show."""
    run: str = "model"
    """`model`, or a baseline: blind, shuffled."""
    log: str | None = None
    """A key of the log, such as mean_loss, eval_loss or eval_hi/loss. The last value counts."""
    stage: str | None = None
    """The stage of the log. Default: the last one."""
    languages: str = ALL
    """The row of all languages that stands for the measure: a group of the task's, or one language."""
    higher_is_better: bool | None = None
    """Default: as the task says; of a log, whether the key ends in accuracy."""
    main: bool = False
    """Whether the question is answered by this measure. One measure is; default: the first."""

    @property
    def name(self) -> str:
        """What tables call the measure."""
        if self.log is not None:
            return f"{self.stage + ' ' if self.stage else ''}{self.log}"
        run = "" if self.run == "model" else f", {self.run}"
        metric = f" {self.metric}" if self.metric else ""
        subset = f" {self.subset}" if self.subset else ""
        languages = "" if self.languages == ALL else f" ({self.languages})"
        return f"{self.task}{subset}{metric}{run}{languages}"


@dataclass
class Evaluation:
    """How every run is scored, as by `maya evaluate`."""

    tasks: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    """BCP-47 codes; all of the task's if empty."""
    limit: int | None = None
    """Pictures a task."""
    split: str | None = None
    data: str | None = None
    """A folder or repository with the task's files."""
    baselines: list[str] = field(default_factory=list)
    """blind, shuffled."""


@dataclass
class Study:
    """A question, and the runs that answer it.

    A cell is a set of changes to the base recipe. It is trained once with every seed.
    """

    title: str
    question: str
    base: str
    """A recipe: a file, or the name of a shipped one."""
    seeds: list[int]
    measures: list[Measure]
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Key of the recipe -> its values. There is a cell for every combination of values."""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a cell -> its changes, key -> value, where `vary` cannot say them."""
    baseline: str | None = None
    """The cell that the others are compared with. Default: the first."""
    set: dict[str, Any] = field(default_factory=dict)
    """Changes for all cells."""
    evaluate: Evaluation = field(default_factory=Evaluation)
    paper: str = ""
    """What the papers say about the question, and where."""
    scope: str = ""
    """The bases of the study, and what they can and cannot show."""
    full_size: dict[str, Any] = field(default_factory=dict)
    """The same study at full size: keys of this file that replace the values above."""


@dataclass(frozen=True)
class Cell:
    """One variant of the base recipe. changes: key of the recipe -> value, in order."""

    name: str
    changes: dict[str, Any]

    def overrides(self, common: dict[str, Any]) -> list[str]:
        """The changes as `--set` takes them, those of all cells first."""
        changes = {**common, **self.changes}
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def find_study(name: str) -> Path:
    """Return the file of a study: a path, or the name of a shipped one.

    Raises FileNotFoundError naming the shipped studies.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = STUDIES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(each.stem for each in STUDIES.glob("*.yaml")))
    raise FileNotFoundError(
        f"{name}: expected a study's file or the name of a shipped one ({names or 'none'}), found neither"
    )


def read_study(path: Path, full_size: bool = False) -> Study:
    """Read and check a study.

    Args:
        path: of the YAML file.
        full_size: read the form for the full-size model, which `full_size` describes.

    Raises:
        ValueError, FileNotFoundError: one line naming the file, the key, what was expected and found.
    """
    values = read_mapping(path)
    if full_size:
        replaced = values.get("full_size")
        if not isinstance(replaced, dict) or not replaced:
            raise ValueError(
                f"{path}: full_size: expected the keys of the full-size study, found none"
            )
        # `vary` and `cells` exclude each other, so the full-size form replaces both.
        kept = {"vary", "cells"} if {"vary", "cells"} & set(replaced) else set()
        values = {k: v for k, v in values.items() if k not in {*kept, "full_size"}} | replaced
    study = build(Study, values, str(path))
    _check(study, path)
    if not (PACKAGE / "recipes" / f"{study.base}.yaml").is_file():
        study.base = resolve_path(study.base, path.resolve().parent)
    find_recipe(study.base)
    return study


def cells_of(study: Study) -> list[Cell]:
    """Return the cells of a study in the order of its file; the baseline stays where it is."""
    if study.cells:
        return [Cell(name, changes) for name, changes in study.cells.items()]
    found = []
    for values in itertools.product(*study.vary.values()):
        changes = dict(zip(study.vary, values, strict=True))
        found.append(Cell(", ".join(_short(k, v) for k, v in changes.items()), changes))
    return found


def baseline_of(study: Study) -> str:
    """Return the name of the cell that the others are compared with."""
    return study.baseline or cells_of(study)[0].name


def main_measure(study: Study) -> Measure:
    """Return the measure that answers the question."""
    return next((each for each in study.measures if each.main), study.measures[0])


def _short(key: str, value: Any) -> str:
    """Return KEY=VALUE with the last part of the key, for the name of a cell."""
    return f"{key.rsplit('.', 1)[-1]}={value if isinstance(value, str) else json.dumps(value)}"


def _check(study: Study, path: Path) -> None:
    """Raise ValueError for a study that cannot be run."""
    where = str(path)
    for number, seed in enumerate(study.seeds):
        Bounds(least=0, below=2**32).check(seed, where, f"seeds[{number}]")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(f"{where}: seeds: expected different seeds, found {study.seeds}")
    if bool(study.vary) == bool(study.cells):
        found = "both" if study.vary else "neither"
        raise ValueError(f"{where}: vary, cells: expected one of them, found {found}")
    for key, values in study.vary.items():
        if len(values) < 2 or len({json.dumps(each) for each in values}) < len(values):
            raise ValueError(
                f"{where}: {join_key('vary', key)}: expected two or more different values, found {one_line(repr(values))}"
            )
    for key in (*study.vary, *study.set, *itertools.chain.from_iterable(study.cells.values())):
        if key in ("seed", "output_dir", "processes", "kind"):
            raise ValueError(f"{where}: {key}: a study sets this key itself: leave it out")
    cells = cells_of(study)
    names = [cell.name for cell in cells]
    if study.baseline is not None and study.baseline not in names:
        raise ValueError(
            f"{where}: baseline: expected a cell ({', '.join(names)}), found {study.baseline!r}"
        )
    if len(cells) < 2:
        raise ValueError(f"{where}: cells: expected two or more, found {len(cells)}")
    _check_measures(study, where)


def _check_measures(study: Study, where: str) -> None:
    if not study.measures:
        raise ValueError(f"{where}: measures: expected at least one, found none")
    if sum(each.main for each in study.measures) > 1:
        raise ValueError(f"{where}: measures: expected one main measure, found several")
    # A protocol is a part of the name: pope:strict.
    tasks = {task.split(":")[0] for task in study.evaluate.tasks}
    for number, measure in enumerate(study.measures):
        key = f"measures[{number}]"
        if (measure.task is None) == (measure.log is None):
            raise ValueError(f"{where}: {key}: expected one of task and log")
        if measure.task is not None and measure.task.split(":")[0] not in tasks:
            raise ValueError(
                f"{where}: {key}.task: expected a task of evaluate.tasks ({', '.join(sorted(tasks)) or 'none'}), "
                f"found {measure.task!r}"
            )
        if measure.task is not None and measure.stage is not None:
            raise ValueError(f"{where}: {key}.stage: belongs to a log, found beside a task")


def folder_name(path: Path) -> str:
    """Return the name of a study's folder: that of its file."""
    check_component(path.stem, str(path))
    return path.stem


def slug(name: str) -> str:
    """Return a cell's name as a part of a file's name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


def overrides_of(study: Study, cell: Cell, seed: int) -> Sequence[str]:
    """Return the changes of a run to the base recipe, as `--set` takes them."""
    return [*cell.overrides(study.set), f"seed={seed}"]
