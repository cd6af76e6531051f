"""Recipes: odd values at every key, odd YAML, odd `--set`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import yaml

from .case import Case, Expect, Place
from .world import ODD, deep, dotted

# Keys that take numbers, beside those that the good recipe has.
NUMBERS = (
    ("stages", 0, "data", 0, "limit"),
    ("stages", 0, "shuffle_buffer"),
    ("stages", 0, "args", "learning_rate"),
    ("stages", 0, "args", "weight_decay"),
    ("stages", 0, "args", "max_grad_norm"),
    ("stages", 0, "args", "warmup_steps"),
    ("stages", 0, "args", "num_train_epochs"),
    ("stages", 0, "args", "max_length"),
    ("stages", 0, "args", "gradient_accumulation_steps"),
    ("stages", 0, "data", 0, "tasks", "name"),
    ("stages", 0, "adapter", "rate"),
    ("stages", 0, "adapter", "r"),
    ("model", "projector_num_layers"),
    ("model", "vision_feature_layer"),
)
# Numbers that no key takes.
SENSELESS = (math.nan, math.inf, -math.inf, -(10**30), "1e", [1])
# What a run would spend its time on, not its reader.
COSTLY = ("processes", "max_steps", "num_train_epochs", "max_length", "batch_size", "r")


def cases(chance: random.Random) -> Iterator[Case]:
    """Recipes that are read for an estimate, and some for a run."""
    yield _case("good", lambda recipe: None, "accepted", (), run=False)
    while True:
        yield chance.choice([_value, _value, _value, _number, _number, _text, _text, _set, _set])(
            chance
        )


def _command(place: Place, text: str, run: bool, sets: list[str]) -> list[str]:
    path = place.write("recipe.yaml", text)
    command = ["train", str(path), "--output-dir", str(place.output)]
    command += ["--set", *sets] if sets else []
    return command if run else [*command, "--estimate", "--gpu", "l4"]


def _case(about: str, change: Any, expect: Expect, names: tuple[str, ...], run: bool) -> Case:
    def prepare(place: Place) -> list[str]:
        recipe = place.world.recipe()
        change(recipe)
        return _command(place, yaml.safe_dump(recipe, allow_unicode=True), run, [])

    return Case(f"{'run' if run else 'estimate'} {about}", prepare, expect, ("recipe.yaml", *names))


def _put(recipe: Any, path: tuple, value: Any) -> None:
    inner = recipe
    for number, key in enumerate(path[:-1]):
        if isinstance(inner, dict):
            inner.setdefault(key, [] if isinstance(path[number + 1], int) else {})
        inner = inner[key]
    inner[path[-1]] = value


def _paths() -> list[tuple]:
    """Keys of the recipe that the tests' makers write."""
    stage = ("name", "batch_size", "group_size", "data", "train", "args")
    found: list[tuple] = [("output_dir",), ("seed",), ("model",), ("stages",), ("processes",)]
    found += [("model", key) for key in ("vision_tower", "language_model", "chat_template")]
    found += [("stages", 0, key) for key in stage]
    found += [("stages", 0, "data", 0), ("stages", 0, "data", 0, "path"), ("stages", 0)]
    found += [("stages", 0, "train", 0, key) for key in ("pattern", "rate")]
    found += [("stages", 0, "args", key) for key in ("max_steps", "logging_steps", "save_steps")]
    return found


def _value(chance: random.Random) -> Case:
    """A value of another type at a key, or a key that nobody knows."""
    path = chance.choice(_paths())
    value = chance.choice(ODD)
    expect: Expect = "either"
    if isinstance(value, (dict, list)) and path[-1] not in ("data", "train", "args", "stages"):
        expect = "refused"
    if isinstance(value, float) and path[-1] != "rate" and not math.isfinite(value):
        expect = "refused"
    if chance.random() < 0.2:
        inner = chance.choice([("model",), ("stages", 0), ("stages", 0, "data", 0), ()])
        path, expect = (*inner, "nobody\nknows"), "refused"
    about = f"{dotted(path)} = {value!r:.40}"
    key = str(path[-1]).split("\n")[0]
    return _case(about, lambda r: _put(r, path, value), expect, (key, dotted(path)), run=False)


def _number(chance: random.Random) -> Case:
    """A number that makes no sense; a run must not take it in silence."""
    path = chance.choice([*NUMBERS, ("stages", 0, "train", 0, "rate"), ("stages", 0, "batch_size")])
    value = chance.choice([*SENSELESS, -1])
    expect: Expect = "refused"
    if value == -1 and path[-1] in ("vision_feature_layer", "max_length", "num_train_epochs"):
        expect = "either"
    costly = path[-1] in COSTLY
    run = not costly and chance.random() < 0.3
    # An estimate need not look at what only the trainer knows.
    if not run and "args" in path:
        expect = "either"

    def change(recipe: Any) -> None:
        if "adapter" in path:
            recipe["stages"][0]["adapter"] = {"rate": 0.01, "r": 4}
        if path[-1] == "num_train_epochs":
            del recipe["stages"][0]["args"]["max_steps"]
        _put(recipe, path, value)

    return _case(f"{dotted(path)} = {value!r}", change, expect, (str(path[-1]),), run)


def _text(chance: random.Random) -> Case:
    """YAML that is odd as a text."""
    laughs = "a0: &a0 [x, x]\n"
    laughs += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    texts: dict[str, str] = {
        "billion laughs": laughs,
        "cycle": "a: &a [*a]\n",
        "cycle in stages": "output_dir: x\nmodel: {}\nstages: &a\n- *a\n",
        "deep": f"seed: {deep(5000)}\n",
        "deep mapping": "{a: " * 3000 + "1" + "}" * 3000,
        "python tag": "seed: !!python/object/apply:os.system ['true']\n",
        "odd tag": "seed: !ruby/object:Gem {}\n",
        "list key": "? [a]\n: 1\n",
        "double key": "seed: 1\nseed: 2\n",
        "two documents": "---\na: 1\n---\nb: 2\n",
        "list": "- a\n",
        "empty": "",
        "null letter": "seed: \0\n",
        "control": "seed: \x1b[2J\n",
        "tab": "\tseed: 1\n",
        "text": "a recipe",
        "anchor of nobody": "seed: *nobody\n",
        "date": "seed: 2020-01-01\nmodel: 1:30:00\n",
        "merge": "<<: {seed: 1}\nmodel: {}\n",
        "surrogate": 'seed: "\\ud83d"\n',
        "long": "x" * 300_000,
    }
    name = chance.choice(sorted(texts))
    return Case(
        f"text {name}",
        lambda place: _command(place, texts[name], False, []),
        "refused",
        ("recipe.yaml",),
    )


def _set(chance: random.Random) -> Case:
    """`--set` with odd keys and values."""
    odd = (
        "seed=" + "[" * 3000,
        "seed=&a [*a]",
        "seed=\x1b[2J",
        "seed=!!python/name:os.system",
        "stages.9.name=x",
        "stages.-1.name=x",
        "stages.0.args.nonsense=1",
        "stages.nobody.name=x",
        "stages=1",
        "=1",
        "seed",
        "seed=",
        ".=1",
        "a..b=1",
        "model.vision_tower.deeper=1",
        "seed.x=1",
        "stages.0.batch_size=1e400",
        "seed=\udcff",
        "output_dir=[]",
        "x" * 3000 + "=1",
        "\x07=1",
    )
    text = chance.choice(odd)

    def prepare(place: Place) -> list[str]:
        return _command(place, yaml.safe_dump(place.world.recipe()), False, [text])

    expect: Expect = "either" if text == "output_dir=[]" else "refused"
    # Control characters are shown as escapes.
    shown = text.encode("unicode_escape", "backslashreplace").decode()
    return Case(f"--set {text:.40}", prepare, expect, ("recipe.yaml", text[:20], shown[:20]))
