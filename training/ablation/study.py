"""Study files: one YAML file with a base recipe, the values to vary, the seeds and the measures."""

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
# The `languages` value for the mean over all languages.
ALL = "all"


@dataclass
class Measure:
    """A number to compare: a score from the evaluation, or a value from a stage's training log."""

    task: str | None = None
    """A task of `evaluate.tasks`, such as mini."""
    subset: str | None = None
    """A subset of the task, such as seen/name. Default: the only subset, if the task has one."""
    metric: str | None = None
    """A metric of the task. Default: the task's main metric."""
    run: str = "model"
    """`model`, or one of the baselines: `blind`, `shuffled`."""
    log: str | None = None
    """A key of the log, such as mean_loss, eval_loss or eval_hi/loss. Its last value is used."""
    stage: str | None = None
    """The stage whose log is read. Default: the last stage."""
    languages: str = ALL
    """The languages of the overall value: `all`, a language group of the task, or one language."""
    higher_is_better: bool | None = None
    """Default: the task's value; for a log, true if the key ends in accuracy."""
    main: bool = False
    """Whether this measure answers the question. Only one may; default: the first measure."""

    @property
    def name(self) -> str:
        """Return the measure's name in tables."""
        if self.log is not None:
            return f"{self.stage + ' ' if self.stage else ''}{self.log}"
        run = "" if self.run == "model" else f", {self.run}"
        metric = f" {self.metric}" if self.metric else ""
        subset = f" {self.subset}" if self.subset else ""
        languages = "" if self.languages == ALL else f" ({self.languages})"
        return f"{self.task}{subset}{metric}{run}{languages}"


@dataclass
class Evaluation:
    """How `maya evaluate` evaluates every run."""

    tasks: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    """BCP-47 codes; empty means all languages of the task."""
    limit: int | None = None
    """Largest number of pictures per task."""
    split: str | None = None
    data: str | None = None
    """A folder or Hub repository with the task's files."""
    baselines: list[str] = field(default_factory=list)
    """Baselines to run: `blind`, `shuffled`."""


@dataclass
class Claim:
    """A claim of published papers: the study's baseline is best."""

    measure: str
    """Name of a measure, as in tables."""
    over: list[str] = field(default_factory=list)
    """The cells that the papers compared; default: all others."""


@dataclass
class Study:
    """A question, and the runs that answer it.

    A cell is a set of changes to the base recipe. Every cell is trained once per seed.
    """

    title: str
    question: str
    base: str
    """The base recipe: a file, or the name of a shipped recipe."""
    seeds: list[int]
    measures: list[Measure]
    vary: dict[str, list[Any]] = field(default_factory=dict)
    """Key of the recipe -> list of values. Every combination of values is a cell."""
    cells: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a cell -> its changes (key -> value). Use it instead of `vary` for other combinations."""
    baseline: str | None = None
    """The cell to compare the other cells with. Default: the first cell."""
    set: dict[str, Any] = field(default_factory=dict)
    """Changes to the base recipe for all cells."""
    evaluate: Evaluation = field(default_factory=Evaluation)
    paper: str = ""
    """The answer of published papers, with sources."""
    claim: Claim | None = None
    """The papers' claim that the baseline is best. The report says whether the runs confirm or contradict it."""
    scope: str = ""
    """The base models of the study, and what the study can and cannot show with them."""
    full_size: dict[str, Any] = field(default_factory=dict)
    """The variant for the full-size model: keys of this file with values that replace the values above."""


@dataclass(frozen=True)
class Cell:
    """One variant of the base recipe. changes: key of the recipe -> value, in the file's order."""

    name: str
    changes: dict[str, Any]

    def overrides(self, common: dict[str, Any]) -> list[str]:
        """Return the changes in the form of `--set`, with the changes of all cells first."""
        changes = {**common, **self.changes}
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in changes.items()]


def find_study(name: str) -> Path:
    """Return the file of a study.

    Args:
        name: a path, or the name of a shipped study.

    Raises:
        FileNotFoundError: neither exists; the message lists the shipped studies.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = STUDIES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(each.stem for each in STUDIES.glob("*.yaml")))
    raise FileNotFoundError(
        f"{name}: expected a study's file or the name of a shipped study ({names or 'none'}), found neither: "
        "correct the name"
    )


def read_study(path: Path, full_size: bool = False) -> Study:
    """Read and check a study.

    Args:
        path: the YAML file.
        full_size: apply the replacements of the key `full_size`.

    Raises:
        ValueError: a value is wrong; one line with the file, the key, and what was expected and found.
        FileNotFoundError: the study or its base recipe does not exist.
    """
    values = read_mapping(path)
    if full_size:
        replaced = values.get("full_size")
        if not isinstance(replaced, dict) or not replaced:
            raise ValueError(
                f"{path}: full_size: expected the keys of the full-size study, found none: add the key"
            )
        # `vary` and `cells` exclude each other, so a full-size `vary` or `cells` replaces both.
        kept = {"vary", "cells"} if {"vary", "cells"} & set(replaced) else set()
        values = {k: v for k, v in values.items() if k not in {*kept, "full_size"}} | replaced
    study = build(Study, values, str(path))
    _check(study, path)
    if not (PACKAGE / "recipes" / f"{study.base}.yaml").is_file():
        study.base = resolve_path(study.base, path.resolve().parent)
    find_recipe(study.base)
    return study


def cells_of(study: Study) -> list[Cell]:
    """Return the cells of a study in the order of its file. The baseline is not moved."""
    if study.cells:
        return [Cell(name, changes) for name, changes in study.cells.items()]
    found = []
    for values in itertools.product(*study.vary.values()):
        changes = dict(zip(study.vary, values, strict=True))
        found.append(Cell(", ".join(_short(k, v) for k, v in changes.items()), changes))
    return found


def baseline_of(study: Study) -> str:
    """Return the name of the cell to compare the other cells with."""
    return study.baseline or cells_of(study)[0].name


def main_measure(study: Study) -> Measure:
    """Return the measure that answers the question."""
    return next((each for each in study.measures if each.main), study.measures[0])


def _short(key: str, value: Any) -> str:
    """Return KEY=VALUE, with only the last part of the key, for a cell's name."""
    return f"{key.rsplit('.', 1)[-1]}={value if isinstance(value, str) else json.dumps(value)}"


def _check(study: Study, path: Path) -> None:
    """Raise ValueError if the study cannot be run."""
    where = str(path)
    for number, seed in enumerate(study.seeds):
        Bounds(least=0, below=2**32).check(seed, where, f"seeds[{number}]")
    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        raise ValueError(
            f"{where}: seeds: expected different seeds, found {study.seeds}: correct the list"
        )
    if bool(study.vary) == bool(study.cells):
        found = "both" if study.vary else "neither"
        raise ValueError(
            f"{where}: vary, cells: expected one of the two keys, found {found}: keep or add one"
        )
    for key, values in study.vary.items():
        if len(values) < 2 or len({json.dumps(each) for each in values}) < len(values):
            raise ValueError(
                f"{where}: {join_key('vary', key)}: expected two or more different values, found {one_line(repr(values))}"
            )
    for key in (*study.vary, *study.set, *itertools.chain.from_iterable(study.cells.values())):
        if key in ("seed", "output_dir", "processes", "kind"):
            raise ValueError(
                f"{where}: {key}: expected another key, found one that the study sets for each run: leave it out"
            )
    cells = cells_of(study)
    names = [cell.name for cell in cells]
    if study.baseline is not None and study.baseline not in names:
        raise ValueError(
            f"{where}: baseline: expected a cell ({', '.join(names)}), found {study.baseline!r}"
        )
    if len(cells) < 2:
        raise ValueError(f"{where}: cells: expected two or more, found {len(cells)}: add a cell")
    _check_measures(study, where)


def _check_measures(study: Study, where: str) -> None:
    if not study.measures:
        raise ValueError(f"{where}: measures: expected at least one, found none: add a measure")
    if sum(each.main for each in study.measures) > 1:
        raise ValueError(
            f"{where}: measures: expected one main measure, found several: keep one `main`"
        )
    names = [each.name for each in study.measures]
    if study.claim is not None and study.claim.measure not in names:
        raise ValueError(
            f"{where}: claim.measure: expected the name of a measure ({', '.join(names)}), found "
            f"{study.claim.measure!r}"
        )
    others = [cell.name for cell in cells_of(study) if cell.name != baseline_of(study)]
    for cell in study.claim.over if study.claim else ():
        if cell not in others:
            raise ValueError(
                f"{where}: claim.over: expected cells other than the baseline ({', '.join(others)}), found {cell!r}"
            )
    # A task's name may end with a protocol: pope:strict.
    tasks = {task.split(":")[0] for task in study.evaluate.tasks}
    for number, measure in enumerate(study.measures):
        key = f"measures[{number}]"
        if (measure.task is None) == (measure.log is None):
            raise ValueError(
                f"{where}: {key}: expected either task or log, found both or neither: keep one"
            )
        if measure.task is not None and measure.task.split(":")[0] not in tasks:
            raise ValueError(
                f"{where}: {key}.task: expected a task of evaluate.tasks ({', '.join(sorted(tasks)) or 'none'}), "
                f"found {measure.task!r}"
            )
        if measure.task is not None and measure.stage is not None:
            raise ValueError(
                f"{where}: {key}.stage: expected a measure with log, found one with task: leave stage out"
            )


def folder_name(path: Path) -> str:
    """Return the name of a study's folder, which is its file's name without the suffix."""
    check_component(path.stem, str(path))
    return path.stem


def slug(name: str) -> str:
    """Return a name with only characters that are safe in a file name."""
    return re.sub(r"[^\w.=-]+", "_", name).strip("_")


def overrides_of(study: Study, cell: Cell, seed: int) -> Sequence[str]:
    """Return a run's changes to the base recipe in the form of `--set`."""
    return [*cell.overrides(study.set), f"seed={seed}"]
