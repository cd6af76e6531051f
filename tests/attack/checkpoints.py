"""Checkpoints of an unfinished run: files gone, cut, flipped or exchanged, then the run continues."""

from __future__ import annotations

import json
import math
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .case import Case, Expect, Fault, Outcome, Place
from .weights import _Program
from .world import damaged

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "config.json",
    "manifest.json",
)


def cases(chance: random.Random) -> Iterator[Case]:
    """Runs that were killed, whose checkpoint is damaged before they go on."""
    yield _case("nothing", "gone", chance, "accepted")
    while True:
        name = chance.choice(FILES)
        yield _case(name, chance.choice(["gone", "damaged", "damaged", "pickle"]), chance)


def _case(name: str, way: str, chance: random.Random, expect: Expect = "either") -> Case:
    seed = chance.randrange(2**32)

    def prepare(place: Place) -> list[str]:
        # Paths are a part of what a run compares: its folder moves, its inputs stay.
        source = place.world.unfinished_run
        shutil.copytree(source / "run", place.output)
        recipe = yaml.safe_load((source / "recipe.yaml").read_text(encoding="utf-8"))
        recipe["output_dir"] = str(place.output)
        found = sorted(place.output.rglob(f".work/**/{name}"))
        for path in found:
            if way == "gone":
                path.unlink()
            elif way == "pickle":
                path.write_bytes(pickle.dumps(_Program()))
            else:
                path.write_bytes(damaged(random.Random(seed), path.read_bytes())[1])
        return ["train", str(place.write("recipe.yaml", yaml.safe_dump(recipe)))]

    names = (name, "checkpoint", ".work")
    return Case(f"{name} {way} ({seed})", prepare, expect, names, check=_same_result)


def _same_result(place: Place, outcome: Outcome) -> list[Fault]:
    """A run that continues ends as the undisturbed one does."""
    if outcome.code != 0:
        return []
    whole = _log(place.world.whole_run / "run")
    found = _log(place.output)
    for key in whole.keys() & found.keys():
        if not math.isclose(whole[key], found[key], rel_tol=1e-4):
            shown = f"step {key}: {found[key]} instead of {whole[key]}"
            return [Fault("accepted in silence", shown)]
    if whole.keys() - found.keys():
        return [
            Fault("accepted in silence", f"steps {sorted(whole.keys() - found.keys())} are gone")
        ]
    return []


def _log(folder: Path) -> dict[Any, float]:
    found = json.loads((folder / "pretrain" / "training_log.json").read_text(encoding="utf-8"))
    return {line["step"]: line["mean_loss"] for line in found["log"] if "mean_loss" in line}
