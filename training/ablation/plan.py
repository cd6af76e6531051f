"""The runs of a study: one for every cell and seed, named by the content that decides its result.

Two cells with the same content, of one study or of several, are one run. Runs whose first stages have the
same content train them once.
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

    key: hash of the recipe without neutral values, and of the content of its inputs.
    stages: the same hash after each stage, so runs that share a beginning have the first keys in common.
    folder: of the model.
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
    """Return the runs of a study, seeds outermost, so that every cell has its first seed early.

    Args:
        study: as `read_study` gives it.
        where: its file, for errors.
        work: the folder of all studies, which holds the runs.

    Raises:
        ValueError: a cell's recipe is bad, or two cells are the same run; the error names the cells.
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
    """Return the content hash of a run after each of its stages; `known` as for `make_manifest`."""
    parts = (
        replace(recipe, stages=recipe.stages[:count]) for count in range(1, len(recipe.stages) + 1)
    )
    return tuple(digest(_by_content(make_manifest(part, known))) for part in parts)


def _by_content(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe of a manifest with the hash of every input in the place of its path."""
    values, content = manifest["recipe"], manifest["content"]

    def put(owner: dict[str, Any], name: str, revision: str | None = None) -> None:
        path = owner.get(name)
        if isinstance(path, str):
            found = content.get(path) or content.get(input_name(path, revision))
            # The content of a repository that cannot be reached is not known.
            owner[name] = path if found in (None, REPOSITORY) else found

    model = values["model"]
    for name in ("vision_tower", "language_model", "checkpoint", "chat_template"):
        put(model, name)
    for stage in values["stages"]:
        for source in (*stage["data"], *stage["eval_data"]):
            put(source, "path", source.get("revision"))
            put(source, "image_folder")
            put(source, "chat_template")
    return values


def shared(runs: Sequence[Run]) -> int:
    """Return how many stages of the runs another run of the study trains for them."""
    keys = [key for run in runs for key in run.stages]
    return len(keys) - len(set(keys))
