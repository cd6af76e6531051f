"""The JSON and text files of a model's folder, with odd values, gone, damaged or of another shape."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .case import Case, Expect, Place
from .world import ODD, changed, damaged, deep, paths_of

FILES = (
    "config.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
)
TEMPLATES = (
    "{% for",
    "{{ 1 / 0 }}",
    "{{ nobody.of.them }}",
    "{% for a in range(10**9) %}{{ a }}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ raise_exception('a\x1b[2J\nb') }}",
    "{% include '/etc/passwd' %}",
    "{{ 'x' * 10**9 }}",
    "",
    "{{ messages }}",
)


def cases(chance: random.Random) -> Iterator[Case]:
    """Model folders with one odd file."""
    yield use(chance, "good", lambda folder: None, "accepted", "model", "chat")
    while True:
        name = chance.choice(FILES)
        yield _template(chance) if name == "chat_template.jinja" else _json(chance, name)


def picture(place: Place) -> Path:
    """A good picture to ask about."""
    from tests.helpers.tiny_maya import tiny_picture

    path = place.input / "picture.png"
    tiny_picture(1).save(path)
    return path


def use(
    chance: random.Random, about: str, change: Any, expect: Expect, name: str, command: str = ""
) -> Case:
    """A command, drawn where none is given, that loads a model's folder after `change(folder)`."""
    commands = ["chat", "chat", "chat", "evaluate", "train", "publish", "renew"]
    command = command or chance.choice(commands)

    def prepare(place: Place) -> list[str]:
        folder = place.input / "model"
        shutil.copytree(place.world.model, folder)
        change(folder)
        if command == "chat":
            question = ["What is shown?", "--model", str(folder), "--max-new-tokens", "2"]
            return ["chat", str(picture(place)), *question]
        if command == "evaluate":
            return [
                "evaluate",
                str(folder),
                "--limit",
                "1",
                "--no-baselines",
                "--output",
                str(place.output),
            ]
        if command == "publish":
            return ["publish", str(folder), "user/name", "--no-verify"]
        if command == "renew":
            return ["renew", str(folder), "--no-check", "--dry-run"]
        recipe = place.world.recipe(output_dir=str(place.output))
        recipe["model"] = {"checkpoint": str(folder)}
        return ["train", str(place.write("recipe.yaml", yaml.safe_dump(recipe)))]

    # `renew` reads what it writes anew; evaluation and publishing do not read every file.
    known = expect if command in ("chat", "train") else "either"
    # There is no Hub to publish to: a good folder ends with that.
    names = (name, "model", *(["offline"] if command == "publish" else []))
    answers = command == "chat"
    return Case(f"{command} {about}", prepare, known, names, writes=("model",), answers=answers)


def _json(chance: random.Random, name: str) -> Case:
    way = chance.choice(["value", "value", "value", "value", "whole", "damaged", "gone"])
    value, seed = chance.choice(ODD), chance.randrange(2**32)
    whole = chance.choice([deep(50_000), "[]", "null", "{}", '"x"', '{"a": NaN}', "1" * 10_000])
    expect: Expect = "either"
    if way == "whole" and name != "generation_config.json" and whole != "{}":
        expect = "refused"
    if way == "gone" and name in ("config.json", "tokenizer.json"):
        expect = "refused"

    def change(folder: Path) -> None:
        path, draw = folder / name, random.Random(seed)
        data = path.read_bytes()
        if way == "whole":
            path.write_text(whole)
        elif way == "damaged":
            path.write_bytes(damaged(draw, data)[1])
        elif way == "gone":
            path.unlink()
        else:
            config = json.loads(data)
            at = draw.choice([p for p in paths_of(config) if len(p) < 5][:200])
            path.write_text(json.dumps(changed(config, at, value)))

    about = f"{name} {way}"
    if way == "value":
        about += f" = {value!r:.30} ({seed})"
    elif way == "whole":
        about += f" {whole[:10]}"
    return use(chance, about, change, expect, name)


def _template(chance: random.Random) -> Case:
    text = chance.choice(TEMPLATES)
    name = "chat_template.jinja"
    return use(
        chance,
        f"template {text[:40]!r}",
        lambda folder: (folder / name).write_text(text),
        "refused" if text not in ("", "{{ messages }}") else "either",
        name,
    )
