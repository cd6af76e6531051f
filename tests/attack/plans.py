"""Plans of `maya data build`: odd values at every key, odd YAML, odd `--set`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

from .case import Case, Expect, Place
from .recipes import _put
from .world import ODD, deep, dotted

SOURCE = ("kind", "path", "images", "language", "task", "columns", "duplicates", "extract_images")
LAYOUT = ("images", "shard_rows", "image_shard_mb", "messages_images", "licence", "description")
OTHERS = ("endpoint.base_url", "endpoint.concurrency", "endpoint.timeout", "endpoint.max_attempts")


def cases(chance: random.Random) -> Iterator[Case]:
    """Plans that are built, or of which only the source is looked at."""
    yield Case("good", lambda p: _command(p, yaml.safe_dump(good_plan(p)), "build", []), "accepted")
    while True:
        yield chance.choice([_value, _value, _value, _text, _set])(chance)


def good_plan(place: Place) -> dict[str, Any]:
    """A plan without a translator: three captions with their pictures."""
    from tests.helpers.tiny_maya import tiny_picture

    rows = []
    for number in range(3):
        (place.input / "pictures").mkdir(exist_ok=True)
        tiny_picture(number).save(place.input / "pictures" / f"{number}.png")
        turns = [("human", "<image>\nWhat is shown?"), ("gpt", f"A red boat, number {number}.")]
        said = [{"from": who, "value": text} for who, text in turns]
        rows.append({"id": f"row-{number}", "image": f"{number}.png", "conversations": said})
    path = place.write("rows.json", json.dumps(rows))
    source = {"kind": "llava", "path": str(path), "images": str(place.input / "pictures")}
    return {
        "name": "attack",
        "output_dir": str(place.output),
        "source": {**source, "language": "en"},
    }


def _command(place: Place, text: str, verb: str, sets: list[str]) -> list[str]:
    path = place.write("plan.yaml", text)
    return ["data", verb, str(path), *(["--set", *sets] if sets else [])]


def _value(chance: random.Random) -> Case:
    keys: list[tuple] = [("source", key) for key in SOURCE] + [("layout", key) for key in LAYOUT]
    keys += [("name",), ("output_dir",), ("languages",), ("unit_rows",), ("source",), ("layout",)]
    keys += [("executor", "workers"), ("executor", "kind"), ("executor",), ("verification",)]
    keys += [("translator", *name.split(".")) for name in OTHERS]
    keys += [("toxicity",), ("toxicity", "judges"), ("translator",), ("layout", "nobody")]
    path, value = chance.choice(keys), chance.choice(ODD)
    if path[-1] == "output_dir" and value in ("../../escaped", "a\nb", "x" * 3000):
        value = 1
    expect: Expect = "either"
    if isinstance(value, float) and path[-1] not in ("timeout",):
        expect = "refused"
    if isinstance(value, dict) and value and path[-1] != "executor":
        expect = "refused"
    if path[-1] in ("unit_rows", "workers", "shard_rows", "concurrency") and value in (0, -1):
        expect = "refused" if value is not False else "either"
    if path[-1] == "nobody":
        expect = "refused"
    verb = chance.choice(["build", "build", "validate"])
    # Only the source of a plan is validated.
    if verb == "validate" and path[0] not in ("source", "layout"):
        expect = "either"

    def prepare(place: Place) -> list[str]:
        plan = good_plan(place)
        if path[0] == "translator" and len(path) > 1:
            plan["languages"] = ["fr"]
            endpoint = {"base_url": "http://127.0.0.1:9/v1", "model": "tiny", "max_attempts": 1}
            plan["translator"] = {"preamble": "bare", "endpoint": endpoint}
        _put(plan, path, value)
        return _command(place, yaml.safe_dump(plan, allow_unicode=True), verb, [])

    names: tuple[str, ...] = ("plan.yaml", "rows.json", str(path[-1]))
    if isinstance(value, str) and value.strip():
        names = (*names, value[:20])
    return Case(f"{verb} {dotted(path)} = {value!r:.40}", prepare, expect, names)


def _text(chance: random.Random) -> Case:
    laughs = "a0: &a0 [x, x]\n"
    laughs += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    texts = {
        "billion laughs": laughs,
        "cycle": "name: &a [*a]\n",
        "deep": f"name: {deep(5000)}\n",
        "deep mapping": "{a: " * 3000 + "1" + "}" * 3000,
        "python tag": "name: !!python/object/apply:os.system ['true']\n",
        "list key": "? [a]\n: 1\n",
        "double key": "name: a\nname: b\n",
        "empty": "",
        "control": "name: \x1b[2J\n",
        "surrogate": 'name: "\\ud83d"\n',
        "Latin-1": b"name: b\xe2teau\n".decode("utf-8", "surrogateescape"),
    }
    name, verb = chance.choice(sorted(texts)), chance.choice(["build", "validate", "preambles"])

    def prepare(place: Place) -> list[str]:
        path = place.write("plan.yaml", texts[name].encode("utf-8", "surrogateescape"))
        return ["data", verb, str(path)]

    return Case(f"{verb} text {name}", prepare, "refused", ("plan.yaml",), seconds=20)


def _set(chance: random.Random) -> Case:
    odd = (
        "unit_rows=" + "[" * 3000,
        "unit_rows=\x1b[2J",
        "unit_rows=1e400",
        "source.nobody=1",
        "source.path.deeper=1",
        "toxicity.judges.0.function=os:system",
        "languages.9=fr",
        "name=\udcff",
        "=1",
        "name",
        "x" * 3000 + "=1",
    )
    text = chance.choice(odd)

    def prepare(place: Place) -> list[str]:
        return _command(place, yaml.safe_dump(good_plan(place)), "build", [text])

    # Control characters are shown as escapes.
    shown = text.encode("unicode_escape", "backslashreplace").decode()
    names = ("plan.yaml", text[:20], shown[:20])
    return Case(f"build --set {text:.40}", prepare, "refused", names)
