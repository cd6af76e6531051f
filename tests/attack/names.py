"""Names with markup, YAML, other folders and control characters, wherever a user or a plan gives one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import yaml

from .cards import HOSTILE, card_faults
from .case import Case, Expect, Fault, Outcome, Place
from .configs import picture
from .plans import good_plan

MORE = (
    "\udcff",
    "-x",
    "--help\n",
    "a" * 300,
    "con/../../..",
    "http://127.0.0.1:9/x",
    "file:///etc/passwd",
)

COMMANDS = (
    *("train", "validate", "build", "status", "export", "evaluate", "chat", "model", "repo"),
    *("question", "language", "languages", "images", "policy", "review"),
)


def cases(chance: random.Random) -> Iterator[Case]:
    """Hostile names on the command line, in plans and in recipes."""
    while True:
        yield chance.choice([_plan, _plan, _argument, _argument, _recipe, _file])(chance)


def _cards(own: str) -> Any:
    """A check of built cards; `own` is a text of the plan's author, who may write markup."""

    def check(place: Place, outcome: Outcome) -> list[Fault]:
        found = []
        for path in place.output.rglob("README.md"):
            text = path.read_text(encoding="utf-8")
            found += card_faults(text.replace(own, "") if own else text)
        return found

    return check


def _plan(chance: random.Random) -> Case:
    """The name, licence or description of a built dataset; the card must show it as it is."""
    key, value = chance.choice(["name", "licence", "licence_note", "description", "language"]), ""
    while not value:
        value = chance.choice(HOSTILE)

    def prepare(place: Place) -> list[str]:
        plan = good_plan(place)
        if key == "name":
            plan["name"] = value
        elif key == "language":
            plan["source"]["language"] = value
        else:
            plan["layout"] = {key: value}
        path = place.write("plan.yaml", yaml.safe_dump(plan, allow_unicode=True))
        return ["data", "build", str(path)]

    own = value if key in ("description", "licence_note") else ""
    expect: Expect = "refused" if key == "language" else "either"
    names = ("plan.yaml", key, "rows.json")
    return Case(f"plan {key} {value!r:.40}", prepare, expect, names, check=_cards(own))


def _argument(chance: random.Random) -> Case:
    """A name as an argument of a command; nothing of that name is there."""
    value = chance.choice([*HOSTILE, *MORE]).replace("\0", "0")
    command = chance.choice(COMMANDS)
    missing = value or "nobody"

    def prepare(place: Place) -> list[str]:
        place.input.mkdir(exist_ok=True)
        model = str(place.world.model)
        built = str(place.world.dataset)
        chat = ["chat", str(picture(place))]
        there = ["--model", model, "--max-new-tokens", "1"]
        export = ["data", "export", built, "--output", str(place.output)]
        end = ["--", missing]
        return {
            "train": ["train", *end],
            "validate": ["data", "validate", *end],
            "build": ["data", "build", *end],
            "status": ["data", "status", *end],
            "policy": ["data", "policy", *end],
            "review": ["data", "review", *end],
            "export": ["data", "export", "--output", str(place.output), *end],
            "evaluate": ["evaluate", "--output", str(place.output), *end],
            "chat": ["chat", *there, *end, "What is shown?"],
            "model": [*chat, "What is shown?", f"--model={missing}"],
            "repo": ["publish", "--", model, missing],
            "question": ["chat", *there, "--", chat[1], missing],
            "language": [*chat, *there, f"--language={missing}"],
            "languages": [*export, f"--languages={missing}"],
            "images": [*export, f"--images={missing}"],
        }[command]

    free = command in ("question", "images", "export", "repo") or missing in (".", "/etc/passwd")
    expect: Expect = "either" if free or command == "validate" else "refused"
    return Case(f"argument {command} {value!r:.40}", prepare, expect, answers=command == "question")


def _recipe(chance: random.Random) -> Case:
    """The name of a stage becomes a folder; a path of data or a base may lead anywhere."""
    key, value = chance.choice(["name", "path", "vision_tower", "config", "image_folder"]), ""
    while not value:
        value = chance.choice([*HOSTILE, *MORE]).replace("\udcff", "x")

    def prepare(place: Place) -> list[str]:
        recipe = place.world.recipe(output_dir=str(place.output))
        stage = recipe["stages"][0]
        inner = {"name": stage, "vision_tower": recipe["model"]}.get(key, stage["data"][0])
        inner[key] = value
        return ["train", str(place.write("recipe.yaml", yaml.safe_dump(recipe)))]

    bad = key in ("path", "vision_tower") or ("escaped" in value and key == "name")
    expect: Expect = "refused" if bad else "either"
    return Case(
        f"recipe {key} {value!r:.40}",
        prepare,
        expect,
        ("recipe.yaml", "rows.jsonl", key, value[:20].removeprefix("~"), value.split("/")[-1]),
    )


def _file(chance: random.Random) -> Case:
    """A file whose name is hostile: a picture with a caption in a folder of pictures."""
    usable = [name for name in HOSTILE if name.strip("./") and "\0" not in name and len(name) < 99]
    value = chance.choice([*usable, "\udcff"]).replace("/", "_")

    def prepare(place: Place) -> list[str]:
        from tests.helpers.tiny_maya import tiny_picture

        folder = place.input / "folder"
        folder.mkdir()
        tiny_picture(1).save(folder / "good.png")
        (folder / "good.txt").write_text("A small red boat on a blue lake.")
        (folder / f"{value}.png").write_bytes(b"no picture")
        (folder / f"{value}.txt").write_text("A small red boat on a blue lake.")
        return ["data", "validate", str(folder), "--language", "en"]

    return Case(f"file {value!r:.40}", prepare, "refused", ("folder", ".png"), rows=2)
