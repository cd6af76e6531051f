"""List of a study's runs: one per cell and seed, named by a hash of all inputs that affect the result.

Cells with equal inputs, in one study or in several studies, share one run. Runs whose first stages have
equal inputs share these stages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.schema import digest
from ..recipe import Recipe, find_recipe, load_recipe
from ..run.manifest import REPOSITORY, input_name, make_manifest
from .study import Cell, Study, cells_of, overrides_of

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """One training of a cell with one seed.

    key: hash of the recipe without values that do not affect the result, and of its inputs' content.
    stages: the same hash after each stage; runs with equal first stages have equal first hashes.
    folder: the model's folder.
    """

    cell: Cell
    seed: int
    recipe: Recipe
    stages: tuple[str, ...]
    folder: Path

    @property
    def key(self) -> str:
        return self.stages[-1]

    @property
    def name(self) -> str:
        return f"{self.cell.name}, seed {self.seed}"


def plan_runs(study: Study, where: str, work: Path) -> list[Run]:
    """Return the runs of a study. All cells of the first seed come before the second seed.

    Args:
        study: from `read_study`.
        where: the study's file, for errors.
        work: the folder of all studies, which contains the runs.

    Raises:
        ValueError: a cell's recipe is wrong, or two cells are the same run; the message names the cells.
    """
    path = find_recipe(study.base)
    known: dict[str, str] = {}
    runs: list[Run] = []
    for seed in study.seeds:
        seen: dict[str, str] = {}
        for cell in cells_of(study):
            try:
                recipe = load_recipe(path, overrides_of(study, cell, seed))
            except ValueError as error:
                raise ValueError(f"{where}: cell {cell.name!r}: {error}") from None
            keys = _stage_keys(recipe, known)
            if keys[-1] in seen:
                raise ValueError(
                    f"{where}: cells {seen[keys[-1]]!r} and {cell.name!r}: expected different runs, found the "
                    "same recipe: vary a key that changes the result"
                )
            seen[keys[-1]] = cell.name
            folder = work / RUNS / keys[-1]
            recipe.output_dir = str(folder)
            runs.append(Run(cell, seed, recipe, keys, folder))
    return runs


def _stage_keys(recipe: Recipe, known: dict[str, str]) -> tuple[str, ...]:
    """Return the content hash of a run after each stage. `known` as in `make_manifest`."""
    parts = (
        replace(recipe, stages=recipe.stages[:count]) for count in range(1, len(recipe.stages) + 1)
    )
    return tuple(digest(_by_content(make_manifest(part, known))) for part in parts)


def _by_content(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a manifest with the path of every input replaced by the input's hash."""
    values, content = manifest["recipe"], manifest["content"]

    def put(owner: dict[str, Any], name: str, revision: str | None = None) -> None:
        path = owner.get(name)
        if isinstance(path, str):
            found = content.get(path) or content.get(input_name(path, revision))
            # The content hash of an unreachable repository is unknown: keep its name.
            owner[name] = path if found in (None, REPOSITORY) else found

    model = values["model"]
    for name in ("vision_tower", "language_model", "checkpoint", "chat_template"):
        put(model, name)
    for stage in values["stages"]:
        for source in (*stage["data"], *stage["eval_data"]):
            put(source, "path", source.get("revision"))
            put(source, "image_folder")
            put(source, "chat_template")
    return _without_nulls(values)


def _without_nulls(value: Any) -> Any:
    """Leave out keys without a value, so that a key that a later version adds changes no hash."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def shard_of(runs: Sequence[Run], number: int, count: int) -> list[Run]:
    """Return one of `count` shares of the runs; runs that share their first stage are in one share.

    Args:
        number: of the share, from 1.
    """
    firsts = list(dict.fromkeys(run.stages[0] for run in runs))
    chosen = {first for place, first in enumerate(firsts) if place % count == number - 1}
    return [run for run in runs if run.stages[0] in chosen]


def shared(runs: Sequence[Run]) -> int:
    """Return the number of stages that runs take from another run of the study."""
    keys = [key for run in runs for key in run.stages]
    return len(keys) - len(set(keys))
