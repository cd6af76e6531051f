"""The output folder of a run: cleared for another run, and given the model of the last stage."""

import os
import shutil
from pathlib import Path

from ..recipe import Recipe
from .manifest import MANIFEST, WORK

LOCK = "lock"


def clear(output: Path, recipe: Recipe) -> None:
    """Remove what runs left in `output`, and nothing else; the lock stays, as it is held.

    Killed in the middle, it can be done again: the manifest goes last, and a stage's config.json,
    without which it is not finished, before the rest.
    """
    stages = [output / stage.name for stage in recipe.stages]
    for folder in (output, *stages):
        (folder / "config.json").unlink(missing_ok=True)
    for folder in stages:
        shutil.rmtree(folder, ignore_errors=True)
    clear_work(output)


def clear_work(output: Path) -> None:
    """Remove what a run keeps beside its models; the manifest goes last, the lock stays."""
    for path in sorted((output / WORK).iterdir(), key=lambda p: p.name == MANIFEST):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def copy_model(stage: Path, output: Path) -> None:
    """Give `output` the files of the last stage, config.json last: before it, nothing loads."""
    if (output / "config.json").is_file():
        return
    # Paths in recipe.yaml are relative to the folder it is in, and `output` has its own.
    names = sorted(p.name for p in stage.iterdir() if p.is_file() and p.name != "recipe.yaml")
    for name in [n for n in names if n != "config.json"] + ["config.json"]:
        temporary = output / WORK / name
        temporary.unlink(missing_ok=True)
        if name.endswith(".safetensors"):
            try:
                os.link(stage / name, temporary)
            except OSError:
                shutil.copy2(stage / name, temporary)
        else:
            shutil.copy2(stage / name, temporary)
        os.replace(temporary, output / name)
