"""Results, answers and recipes of strangers beside a model: what a card or a report makes of them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from .cards import HOSTILE, card_faults
from .case import Case, Expect, Fault, Outcome, Place
from .world import ODD, changed, deep, paths_of


def cases(chance: random.Random) -> Iterator[Case]:
    """Model folders with odd results, published to a Hub that is not there."""
    yield _case("good", "results.json", lambda path: None)
    while True:
        kinds = [_value, _value, _value, _key, _key, _whole, _recipe, _answers, _answers]
        yield chance.choice(kinds)(chance)


def _case(about: str, name: str, change: Any, expect: Expect = "either") -> Case:
    def prepare(place: Place) -> list[str]:
        folder = place.input / "model"
        shutil.copytree(place.world.evaluated, folder)
        change(folder / name)
        return ["publish", str(folder), "user/name", "--no-verify"]

    names = (name, "offline") if expect == "either" else (name,)
    return Case(f"{name} {about}", prepare, expect, names, writes=("model",), check=_cards)


def _report(about: str, name: str, change: Any, expect: Expect = "either") -> Case:
    def prepare(place: Place) -> list[str]:
        folder = place.input / "model"
        shutil.copytree(place.world.evaluated, folder)
        change(folder / name)
        return ["evaluate", "--report", str(folder), "--output", str(place.output)]

    return Case(f"report: {name} {about}", prepare, expect, (Path(name).name,), check=_page)


def _page(place: Place, outcome: Outcome) -> list[Fault]:
    """A page has no script, no handler of events, and no address of elsewhere."""
    path = place.output / "report.html"
    if not path.is_file():
        return []
    faults = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            for name, value in attrs:
                away = name in ("src", "href") and not (value or "").startswith(
                    ("#", "data:image/")
                )
                if away or name.startswith("on"):
                    faults.append(Fault("page", f"{tag} {name}={value!r:.80}"))
            if tag in ("script", "iframe", "object", "embed", "link", "form"):
                faults.append(Fault("page", tag))

    Tags().feed(path.read_text(encoding="utf-8"))
    return faults


def _cards(place: Place, outcome: Outcome) -> list[Fault]:
    path = place.input / "model" / "README.md"
    return card_faults(path.read_text(encoding="utf-8")) if path.is_file() else []


def _edit(make: Any) -> Any:
    def change(path: Path) -> None:
        path.write_text(json.dumps(make(json.loads(path.read_text(encoding="utf-8")))))

    return change


def _value(chance: random.Random) -> Case:
    """An odd value somewhere in the results."""
    seed, value = chance.randrange(2**32), chance.choice([*ODD, *HOSTILE])

    def make(results: Any) -> Any:
        draw = random.Random(seed)
        part = draw.choice(["model", "tasks", "tasks", "rows"])
        at = (part, *draw.choice(paths_of(results[part])))
        if at == ("model", "weights_sha256"):
            at = ("model", "name")
        return changed(results, at, value)

    about = f"value {value!r:.40} ({seed})"
    return chance.choice([_case, _case, _report])(about, "results.json", _edit(make))


def _key(chance: random.Random) -> Case:
    """A hostile name of a language, a task, a subset or a metric; or a part that is gone."""
    name = chance.choice(HOSTILE)
    part = chance.choice(["language", "language", "task", "subset", "metric", "gone", "gone"])
    gone = chance.choice(["model", "tasks", "rows", "languages", "metrics", "subsets", "data"])

    def make(results: Any) -> Any:
        key, task = next(iter(results["tasks"].items()))
        rows = [row for row in results["rows"] if row["task"] == key]
        if part == "gone":
            del (results if gone in results else task)[gone]
        elif part == "task":
            results["tasks"][name] = results["tasks"].pop(key)
        elif part == "language":
            task["languages"] = [name if each == "fr" else each for each in task["languages"]]
        else:
            known = task[f"{part}s"]
            old = task["metric"] if part == "metric" else rows[0]["subset"]
            if old in known:
                known[name] = known.pop(old)
            rows = [row for row in rows if row[part] == old]
            if part == "metric":
                task["metric"] = name
        for row in rows if part != "gone" else ():
            if part != "language" or row["language"] == "fr":
                row[part] = name
        return results

    about = f"without {gone}" if part == "gone" else f"{part} {name!r:.40}"
    return _case(about, "results.json", _edit(make))


def _whole(chance: random.Random) -> Case:
    """A file of results that is another thing."""
    texts = {
        "deep": deep(100_000),
        "list": "[]",
        "null": "null",
        "only its format": '{"format": "maya-results-2"}',
        "the format before": '{"format": "maya-results-1"}',
        "another format": '{"format": "\\u001b[2J"}',
        "empty": "",
        "html": "<!DOCTYPE html>",
        "format is a list": '{"format": []}',
    }
    name = chance.choice(sorted(texts))
    return _case(
        f"is {name}", "results.json", lambda path: path.write_text(texts[name]), expect="refused"
    )


def _answers(chance: random.Random) -> Case:
    """Answers with hostile texts, of other types, without a column, or no parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    how = chance.choice(["text", "text", "type", "gone", "twice", "null", "whole"])
    name = chance.choice(["answer", "prompt", "expected", "language", "id", "subset", "pictures"])
    value = chance.choice([text for text in HOSTILE if _is_utf8(text)])

    def change(path: Path) -> None:
        table = pq.read_table(path)
        place = table.column_names.index(name)
        if how == "whole":
            path.write_text(value)
            return
        if how == "gone":
            table = table.drop_columns([name])
        elif how == "twice":
            table = pa.concat_tables([table, table.slice(0, 1)])
        else:
            other = {"text": [value], "type": [7], "null": [None]}[how][0]
            values = [other, *table[name].to_pylist()[1:]]
            if how != "null":
                values = [other] * len(values)
            table = table.set_column(place, name, pa.array(values))
        pq.write_table(table, path)

    expect: Expect = "either" if how in ("text", "null") else "refused"
    return _report(f"{how} {name} {value!r:.40}", "answers/mini.parquet", change, expect)


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _recipe(chance: random.Random) -> Case:
    """A recipe with hostile names of bases and data."""
    import yaml

    name = chance.choice(HOSTILE)
    key = chance.choice(["base", "data", "stage", "text"])
    stage = {"name": name if key == "stage" else "one", "data": [{"path": "x/y"}], "train": []}
    if key == "data":
        stage["data"] = [{"path": name, "languages": [name]}]
    base = {"vision_tower": "x/tower", "language_model": name if key == "base" else "x/y"}
    recipe = {"output_dir": "run", "model": base, "stages": [stage]}
    text = deep(5000) if key == "text" else yaml.safe_dump(recipe, allow_unicode=True)
    return _case(f"{key} {name!r:.40}", "recipe.yaml", lambda path: path.write_text(text))
