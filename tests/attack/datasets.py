"""Finished datasets of strangers: odd manifests, damaged shards, cards and links that lead elsewhere."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .cards import HOSTILE, card_faults
from .case import Case, Expect, Fault, Outcome, Place
from .world import ODD, changed, damaged, deep, paths_of

VERBS = ("export llava", "export messages", "publish", "validate")
# Those that read the manifest.
BY_MANIFEST = VERBS[:3]


def cases(chance: random.Random) -> Iterator[Case]:
    """Dataset folders that are exported, published or validated."""
    for verb in VERBS:
        # There is no Hub to publish to.
        expect: Expect = "refused" if verb == "publish" else "accepted"
        yield _case(chance, "good", lambda place, folder: None, expect, verbs=(verb,))
    while True:
        yield chance.choice([_manifest, _manifest, _name, _whole, _shard, _shard, _row, _card])(
            chance
        )


def _case(
    chance: random.Random,
    about: str,
    change: Any,
    expect: Expect,
    *names: str,
    verbs: tuple[str, ...] = VERBS,
) -> Case:
    verb = chance.choice(verbs)

    def prepare(place: Place) -> list[str]:
        folder = place.input / "data" / "dataset"
        shutil.copytree(place.world.dataset, folder)
        change(place, folder)
        if verb == "publish":
            return ["publish", str(folder), "user/name", "--kind", "dataset"]
        if verb == "validate":
            return ["data", "validate", str(folder), "--language", "en"]
        form = verb.split()[1]
        return ["data", "export", str(folder), "--output", str(place.output), "--format", form]

    # `validate` reads no manifest; publishing ends with that there is no Hub.
    known = expect if verb.startswith("export") or about == "good" else "either"
    shown = ("dataset", "offline", *names)
    writes = ("data",) if verb == "publish" else ()
    return Case(f"{verb} {about}", prepare, known, shown, writes=writes, check=_cards)


def _cards(place: Place, outcome: Outcome) -> list[Fault]:
    faults = []
    for path in [*place.output.rglob("README.md"), *place.input.rglob("README.md")]:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        if "Written by maya" in text:
            faults += card_faults(text)
    return faults


def _edit(folder: Path, make: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(make(json.loads(path.read_text(encoding="utf-8")))))


def _manifest(chance: random.Random) -> Case:
    """An odd value somewhere in the manifest."""
    seed, value = chance.randrange(2**32), chance.choice(ODD)

    def change(place: Place, folder: Path) -> None:
        def make(manifest: Any) -> Any:
            at = random.Random(seed).choice([p for p in paths_of(manifest) if len(p) < 5])
            return changed(manifest, at, value)

        _edit(folder, make)

    return _case(
        chance,
        f"manifest {value!r:.30} ({seed})",
        change,
        "either",
        "manifest.json",
        verbs=BY_MANIFEST,
    )


def _name(chance: random.Random) -> Case:
    """A hostile name of the dataset, of a language, a licence or a file."""
    key = chance.choice(["name", "licence", "description", "language", "file", "config"])
    value = chance.choice(HOSTILE)

    def change(place: Place, folder: Path) -> None:
        def make(manifest: Any) -> Any:
            if key in ("name", "licence", "description"):
                manifest[key] = value
            elif key == "language":
                languages = manifest["counts"]["languages"]
                languages[value] = languages.pop("fr")
            elif key == "config":
                manifest["configs"][value] = next(iter(manifest["configs"].values()))
            else:
                name = next(n for n in manifest["files"] if n.startswith("data/"))
                manifest["files"][value] = manifest["files"].pop(name)
            return manifest

        _edit(folder, make)

    return _case(
        chance, f"{key} {value!r:.40}", change, "either", "manifest.json", verbs=BY_MANIFEST
    )


def _whole(chance: random.Random) -> Case:
    """A manifest that is another thing."""
    texts = {
        "deep": deep(100_000),
        "list": "[]",
        "null": "null",
        "empty mapping": "{}",
        "only its format": '{"format": "maya-dataset-1"}',
        "empty": "",
        "NaN": '{"format": NaN}',
        "cut": '{"format": "maya-dataset-1", "name": "ti',
    }
    name = chance.choice(sorted(texts))
    return _case(
        chance,
        f"manifest is {name}",
        lambda place, folder: (folder / "manifest.json").write_text(texts[name]),
        "refused",
        "manifest.json",
        verbs=BY_MANIFEST,
    )


def _shards(folder: Path) -> list[Path]:
    # Those that every command reads: texts and pictures.
    return sorted([*folder.glob("data/*/*.parquet"), *folder.glob("images/*.parquet")])


def _shard(chance: random.Random) -> Case:
    """A shard that is damaged, gone, doubled, or a link to another folder's file."""
    seed, way = (
        chance.randrange(2**32),
        chance.choice(["damaged", "damaged", "gone", "link", "pipe"]),
    )

    def change(place: Place, folder: Path) -> None:
        draw = random.Random(seed)
        path = draw.choice(_shards(folder))
        data = path.read_bytes()
        if way == "damaged":
            path.write_bytes(damaged(draw, data)[1])
            return
        path.unlink()
        if way == "link":
            # The Hub's cache is made of links: one to a good file is as good as that.
            (place.root / "elsewhere").write_bytes(data)
            path.symlink_to(place.root / "elsewhere")
        elif way == "pipe":
            import os

            os.mkfifo(path)

    expect: Expect = "refused" if way in ("gone", "pipe") else "either"
    return _case(chance, f"shard {way} ({seed})", change, expect, ".parquet")


def _row(chance: random.Random) -> Case:
    """A picture's name, a text or an id of a row is hostile."""
    key = chance.choice(["image", "caption", "id"])
    value = chance.choice([*HOSTILE, None])
    expect: Expect = "refused" if key == "image" and value in ("../../escaped", "") else "either"

    def change(place: Place, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        for kind in ("data", "images"):
            for path in sorted((folder / kind).rglob("*.parquet")):
                table = pq.ParquetFile(path).read()
                at = table.schema.get_field_index("path" if kind == "images" else key)
                if at < 0 or (kind == "images" and key != "image"):
                    continue
                column = table.column(at).to_pylist()
                column[0] = value
                field = table.schema.field(at).with_nullable(True)
                pq.write_table(table.set_column(at, field, pa.array(column, field.type)), path)

    return _case(chance, f"row {key} = {value!r:.40}", change, expect, ".parquet", "image", "row")


def _card(chance: random.Random) -> Case:
    """The folder's own card names files elsewhere."""
    pattern = chance.choice(["../../../secret.txt", "/etc/*", "../**", "a\0b", "https://x.test/a"])

    def change(place: Place, folder: Path) -> None:
        head = {"configs": [{"config_name": "all", "data_files": pattern}]}
        (folder / "README.md").write_text(f"---\n{json.dumps(head)}\n---\n")

    return _case(chance, f"card names {pattern!r}", change, "either", "README.md")
