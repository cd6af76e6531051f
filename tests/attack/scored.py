"""Answers that were made before, scored without a model: odd lines, rows, ids, values and files."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from .case import Case, Expect, Place
from .world import ODD, changed, damaged, deep, paths_of

Rows = list[Any]


def cases(chance: random.Random) -> Iterator[Case]:
    """Files of answers to the questions about three pictures."""
    yield _lines("good", lambda rows: rows, "accepted")
    yield _parquet("good", lambda data: data, "accepted")
    while True:
        yield chance.choice([_value, _value, _ids, _text, _bytes])(chance)


def _answers(place: Place) -> Rows:
    """A good line for each question."""
    return [
        {"id": request.id, "language": "en", "question": request.text, "answer": "a cat"}
        for request in _requests(place)
    ]


def _requests(place: Place) -> Any:
    from maya_vlm.training.evaluation.protocol import Selection
    from maya_vlm.training.evaluation.tasks.mini import Mini

    data = str(place.world.questions)
    return Mini().load(Selection(data, "test", languages=["en"])).requests


def _command(place: Place, name: str) -> list[str]:
    data, output = str(place.world.questions), str(place.output)
    command = ["evaluate", "--rejudge", str(place.input / name), "--tasks", "mini", "--data", data]
    return [*command, "--split", "test", "--languages", "en", "--output", output]


def _lines(about: str, change: Callable[[Rows], Any], expect: Expect = "either") -> Case:
    def prepare(place: Place) -> list[str]:
        found = change(_answers(place))
        if not isinstance(found, str):
            found = "\n".join(json.dumps(row) for row in found)
        place.write("a.jsonl", found)
        return _command(place, "a.jsonl")

    return Case(f"lines {about}", prepare, expect, ("a.jsonl",))


def _parquet(about: str, change: Callable[[bytes], bytes], expect: Expect = "either") -> Case:
    def prepare(place: Place) -> list[str]:
        from maya_vlm.training.evaluation.answers import write_answers
        from maya_vlm.training.evaluation.protocol import Score, Scored
        from maya_vlm.training.evaluation.results import known_by_name
        from maya_vlm.training.inference.generation import Answer

        path = place.input / "a.parquet"
        scored = [Scored(each, Answer("a", 1, True), Score({})) for each in _requests(place)]
        write_answers(path, {"model": scored}, known_by_name("x"))
        path.write_bytes(change(path.read_bytes()))
        return _command(place, "a.parquet")

    return Case(f"parquet {about}", prepare, expect, ("a.parquet",))


def _value(chance: random.Random) -> Case:
    """An odd value in a line, or under a further name."""
    seed, value = chance.randrange(2**32), chance.choice(ODD)
    name = chance.choice(["", "", "model", "model_id", "question_id", "text"])

    def change(rows: Rows) -> Rows:
        draw = random.Random(seed)
        place = draw.randrange(len(rows))
        if name:
            rows[place][name] = value
            return rows
        return changed(rows, draw.choice([at for at in paths_of(rows) if len(at) == 2]), value)

    return _lines(f"{name or 'value'} {value!r:.40} ({seed})", change)


def _ids(chance: random.Random) -> Case:
    """A line that is gone, doubled or of another task."""
    way, seed = chance.choice(["gone", "doubled", "unknown"]), chance.randrange(2**32)

    def change(rows: Rows) -> Rows:
        place = random.Random(seed).randrange(len(rows))
        own = rows[place]
        if way == "gone":
            return rows[:place] + rows[place + 1 :]
        return [*rows, own if way == "doubled" else {**own, "id": f"{own['id']}x"}]

    return _lines(f"{way} ({seed})", change, "refused")


def _text(chance: random.Random) -> Case:
    """A file of other text."""
    text = chance.choice(["", "\n\n", "[1]", "null", "NaN", '{"id": 1', deep(9000), "\ud800", "\0"])
    return _lines(f"text {text!r:.30}", lambda rows: text, "refused")


def _bytes(chance: random.Random) -> Case:
    """A damaged parquet file."""
    seed = chance.randrange(2**32)
    way, _ = damaged(random.Random(seed), bytes(1000))
    return _parquet(
        f"{way.split(' ')[0]} ({seed})", lambda data: damaged(random.Random(seed), data)[1]
    )
