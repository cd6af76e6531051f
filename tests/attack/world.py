"""What good inputs are made of: a tiny model, bases, rows, a recipe, a dataset; each made when asked for.

Everything is made in forked children, so that the process that all attacks fork from stays as it was
after its imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml


def warm(home: Path) -> None:
    """Import what commands import, once for all forks. `home`: for the caches of libraries."""
    os.environ.update(
        HF_HOME=str(home),
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        CUDA_VISIBLE_DEVICES="",
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        TQDM_DISABLE="1",
    )
    import logging

    # What the command itself sets before it imports anything.
    logging.getLogger("bitsandbytes.backends.cpu").setLevel(logging.ERROR)
    import maya_vlm.model_card.hub.publish
    import maya_vlm.training.data.build
    import maya_vlm.training.data.dataset.export
    import maya_vlm.training.data.validate
    import maya_vlm.training.evaluation.run
    import maya_vlm.training.inference.chat
    import maya_vlm.training.model.assemble
    import maya_vlm.training.run
    import maya_vlm.training.run.estimate
    import maya_vlm.training.run.trainer  # noqa: F401
    import tests.data.tiny_build
    import tests.run.tiny_run  # noqa: F401


def forked(make: Callable[[], Any]) -> None:
    """Run `make` in a child; RuntimeError where it fails."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            make()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise RuntimeError(f"{make}: ended with {code}")


class World:
    """Good inputs below one folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.home = root, root / "home"
        root.mkdir(parents=True, exist_ok=True)

    def _made(self, name: str, make: Callable[[Path], Any]) -> Path:
        folder = self.root / name
        if not folder.exists():
            forked(lambda: make(folder))
        return folder

    @property
    def model(self) -> Path:
        """A saved Maya."""
        from tests.helpers.tiny_maya import save_tiny_maya

        return self._made("model", save_tiny_maya)

    @property
    def training(self) -> Path:
        """Bases, data, and `recipe.yaml`: one stage of one step."""
        return self._made("training", lambda folder: write_recipe(folder, steps=1))

    def recipe(self, **changes: Any) -> dict[str, Any]:
        """The recipe as a mapping."""
        found = yaml.safe_load((self.training / "recipe.yaml").read_text(encoding="utf-8"))
        return {**found, **changes}

    @property
    def dataset(self) -> Path:
        """A finished dataset with its pictures: 12 captions in English and French."""
        return self._made("build", _build) / "build" / "dataset"

    @property
    def questions(self) -> Path:
        """A dataset in the layout of the mini one: questions in English about three pictures."""
        return self._made("questions", _questions)

    @property
    def evaluated(self) -> Path:
        """The model with the results of a short evaluation."""
        return self._made("evaluated", lambda folder: _evaluated(self.model, folder))

    @property
    def whole_run(self) -> Path:
        """A run of four steps that was not disturbed."""
        return self._made("whole", _whole_run)

    @property
    def unfinished_run(self) -> Path:
        """The same run, killed after its third step; it has saved at its second."""
        return self._made("unfinished", _unfinished_run)


def write_recipe(folder: Path, steps: int) -> None:
    """Bases, data and a recipe of one stage."""
    from tests.run.tiny_run import make_recipe, write

    folder.mkdir()
    recipe = make_recipe(folder)
    stage = recipe["stages"][0]
    stage["args"] = {"max_steps": steps, "logging_steps": 1, "save_steps": 2}
    recipe["stages"] = [stage]
    write(recipe, folder / "recipe.yaml")


def _build(folder: Path) -> None:
    from maya_vlm.training.data.dataset.layout import assemble
    from maya_vlm.training.data.dataset.plan import LayoutPlan
    from tests.data.tiny_build import make_plan, rows_of, translate, write_source

    write_source(folder / "in", rows_of(12))
    layout = LayoutPlan(images="bytes", licence="cc-by-4.0")
    plan = make_plan(folder, languages=("fr",), judged=False, layout=layout)
    translate(plan)
    assemble(plan, progress=False)


def _questions(folder: Path) -> None:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from maya_vlm.training.data.sources.plan import MINI

    rows = pq.read_table(MINI / "instruct" / "en" / "test-clean.parquet")
    names = rows.column("image").unique()[:3]
    pictures = pq.read_table(MINI / "images" / "twemoji.parquet")
    configs = []
    for name, table in (("instruct", rows), ("images", pictures)):
        path = folder / name / "test.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(table.filter(pc.is_in(table["image"], value_set=names)), path)
        files = [{"split": "test", "path": f"{name}/test.parquet"}]
        configs.append({"config_name": name, "data_files": files})
    head = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{head}---\n", encoding="utf-8")


def _evaluated(model: Path, folder: Path) -> None:
    from maya_vlm.training.evaluation.run import evaluate

    shutil.copytree(model, folder)
    languages = ["en", "fr"]
    evaluate(str(folder), limit=2, languages=languages, baseline_items=2, sheet=False)


def _whole_run(folder: Path) -> None:
    from maya_vlm.training.run.train import train

    write_recipe(folder, steps=4)
    train(str(folder / "recipe.yaml"))


def _unfinished_run(folder: Path) -> None:
    from maya_vlm.training.run import trainer
    from maya_vlm.training.run.train import train

    original = trainer.LineCallback.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == 3:
            os._exit(0)

    trainer.LineCallback.on_log = on_log  # type: ignore
    write_recipe(folder, steps=4)
    train(str(folder / "recipe.yaml"))


# ------------------------------------------------------------------------------ changes that many kinds make

# Values of every type that a file can hold; none is what a field asks for.
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    10**30,
    2**63,
    0.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x" * 3000,
    "a\nb",
    "\x1b[2J\x07",
    "\u202egnp.exe",
    "a\0b",
    "../../escaped",
    "\ud83d",
    "<script>alert(1)</script>",
    [],
    [[]],
    {},
    {"a": {"b": 1}},
    ["x", 1],
]


def deep(levels: int) -> str:
    """A text of JSON, and of YAML, nested so deep."""
    return "[" * levels + "]" * levels


def damaged(chance: random.Random, data: bytes) -> tuple[str, bytes]:
    """The bytes cut, flipped, doubled, or of another sort; with a word for what was done."""
    way = chance.choice(["cut", "cut", "flip", "flip", "zero", "doubled", "empty", "html", "lfs"])
    if way == "cut":
        size = chance.randrange(max(1, len(data)))
        return f"cut at {size}", data[:size]
    if way == "flip":
        found = bytearray(data)
        for _ in range(chance.choice([1, 1, 8])):
            found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
        return way, bytes(found)
    if way == "zero":
        start = chance.randrange(max(1, len(data)))
        return f"zeros from {start}", data[:start] + bytes(len(data) - start)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
    found_whole = {
        "doubled": data + data,
        "empty": b"",
        "html": b"<!DOCTYPE html><title>404</title>",
        "lfs": pointer + b"\nsize 1234\n",
    }
    return way, found_whole[way]


def paths_of(value: Any, at: tuple = ()) -> list[tuple]:
    """The path of every value inside of mappings and lists."""
    found = [at] if at else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, each in items:
        found += paths_of(each, (*at, key))
    return found


def changed(value: Any, path: tuple, new: Any) -> Any:
    """A copy with another value at a path."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new
    return copy


def dotted(path: tuple) -> str:
    return ".".join(map(str, path))
