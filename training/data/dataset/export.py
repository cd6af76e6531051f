"""Write a finished dataset, with its pictures, in the formats of other trainers.

    maya data export runs/data/my-captions --format llava --languages ru hi --output llava/
    maya data export runs/data/my-captions --format messages --output rows/

`llava` is LLaVA's `conversations` JSON: one file per language (and split, if the dataset has several),
and the pictures under the names that the rows use. Rows are
`{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}`, with ids as text,
sorted by id. A caption answers one of LLaVA's eleven requests for a brief description, with `<image>` before
or after the request; the row's id decides both. The requests are English, unless a file gives requests
in other languages. A conversation has `<image>` before its first question.

`messages` is parquet with embedded pictures (messages.py), as TRL's SFTTrainer and `datasets.load_dataset`
read it: one folder per language, and a README.md that defines the configs. The request for a caption is in
the row's language if caption_requests.json has that language.

Picture names come from the dataset; a name that leads out of the output folder is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Template
from typing import Any

import yaml

from ...common.files import atomic, write_bytes
from ...common.markdown import code, escaped
from ...common.names import folded, stays_inside
from ...common.telling import one_line
from ...rows.parquet import Row
from ..sources.pictures import Pictures
from ..sources.records import IMAGE_MARK
from .folder import DatasetFolder, open_dataset
from .messages import (
    MESSAGES_SCHEMA,
    REQUESTS,
    as_messages,
    known_requests,
    number_of,
    read_requests,
    trl_snippet,
)
from .shards import Shards

SHARD_BYTES = 500 << 20
MARKER = "<!-- Written by maya data export; it writes this file again. -->"
SCRATCH = ".export-"
CARD = Path(__file__).with_name("export.md")


@dataclass(frozen=True)
class Exported:
    """The result of an export. files: rows of each file; pictures: number of pictures."""

    files: dict[Path, int]
    pictures: int


def export_llava(
    folder: Path,
    output: Path,
    *,
    languages: Sequence[str] | None = None,
    toxicity_free: bool = False,
    requests: Path | None = None,
    images: Path | None = None,
    with_images: bool = True,
) -> Exported:
    """Write `<name>.<language>.json` files and the pictures that they name.

    Args:
        folder: a build's output_dir, its dataset folder, or a folder in mini's layout.
        output: folder of the export.
        languages: languages of the dataset to export; default: all.
        toxicity_free: export only clean rows, else all rows with a text.
        requests: YAML file of language -> requests for a caption, to replace `REQUESTS`.
        images: folder or zip of the pictures, if the dataset does not contain them.
        with_images: whether to write the pictures.

    Raises:
        ValueError: the folder has no finished dataset, a language is not in it, `toxicity_free` needs
            judges that the dataset did not have, or a picture is missing, broken or has a name that leads
            out of the folder.
        OSError: the disk is full.
    """
    dataset = _open(folder, languages, toxicity_free)
    if not with_images and images is not None:
        raise ValueError("--images: expected none with --no-images, found both: remove one")
    asked = {} if requests is None else read_requests(requests)
    parts = {}
    for lang in languages or dataset.languages:
        for split in dataset.splits:
            of = f"{dataset.name}-{split}" if len(dataset.splits) > 1 else dataset.name
            parts[output / f"{of}.{lang}.json"] = (lang, split)
    taken = {folded(path.name) for path in parts}
    gallery = _Gallery(dataset, images) if with_images else None
    if with_images:
        _copy_credits(dataset.folder, output)
    written = {}
    for path, (lang, split) in parts.items():
        own = asked.get(lang, REQUESTS)
        rows = dataset.rows(lang, split, toxicity_free)
        rows = _with_pictures(rows, lang, dataset.folder, gallery, output, taken)
        written[path] = _write_json(path, (llava_row(row, own) for row in rows))
    return Exported(written, len(gallery.checked) if gallery is not None else 0)


def export_messages(
    folder: Path,
    output: Path,
    *,
    languages: Sequence[str] | None = None,
    toxicity_free: bool = False,
    requests: Path | None = None,
    images: Path | None = None,
) -> Exported:
    """Write `<language>/<split>-00000.parquet` files of `messages` + `images`, and a README.md.

    All files appear at once when they are complete, and replace an earlier export in `output`.

    Args:
        folder, languages, toxicity_free, images: as in `export_llava`.
        output: a folder that is missing, is empty, or has an earlier export.
        requests: YAML file of language -> requests for a caption, to replace those of
            caption_requests.json.

    Raises:
        ValueError: as in `export_llava`, or `output` contains other files.
        OSError: the disk is full.
    """
    dataset = _open(folder, languages, toxicity_free)
    asked = {} if requests is None else read_requests(requests)
    gallery = _Gallery(dataset, images)
    _check_output(output)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=output) as scratch:
        with Shards(Path(scratch)) as shards:
            for lang in languages or dataset.languages:
                own = asked.get(lang) or known_requests(lang)
                for split in dataset.splits:
                    for row in dataset.rows(lang, split, toxicity_free):
                        made, size = _messages_row(row, lang, dataset.folder, gallery, own)
                        shards.add(f"{lang}/{split}", MESSAGES_SCHEMA, made, SHARD_BYTES, size)
        if not shards.files:
            raise ValueError(f"{folder}: expected rows to export, found none: name other languages")
        _replace(output, Path(scratch), list(shards.files))
    _copy_credits(dataset.folder, output)
    rows = {name: about["rows"] for name, about in sorted(shards.files.items())}
    write_bytes(output / "README.md", _readme(dataset, rows).encode())
    return Exported({output / name: count for name, count in rows.items()}, len(gallery.checked))


def _open(folder: Path, languages: Sequence[str] | None, toxicity_free: bool) -> DatasetFolder:
    dataset = open_dataset(folder)
    folder = dataset.folder
    if toxicity_free and not dataset.judged:
        raise ValueError(f"{folder}: --toxicity-free: expected a dataset with judges, found none")
    for lang in languages or ():
        if lang not in dataset.languages:
            there = ", ".join(dataset.languages)
            raise ValueError(f"{folder}: language: expected one of {there}, found {lang!r}")
    return dataset


# Pictures


class _Gallery:
    """The pictures of an export, from the dataset's own table, or from a folder or zip.

    checked: names of pictures that have already been decoded.
    """

    def __init__(self, dataset: DatasetFolder, images: Path | None):
        folder = dataset.folder
        if dataset.has_pictures and images is not None:
            raise ValueError(
                f"{folder}: --images: expected none, because the dataset contains its pictures "
                f"(images/*.parquet), found {images}: remove the option"
            )
        if not dataset.has_pictures and images is None:
            raise ValueError(
                f"{folder}: images: expected the dataset's pictures in images/*.parquet, found none: "
                "name their place with --images FOLDER_OR_ZIP, or export only the texts with "
                "--format llava --no-images"
            )
        self._pictures = Pictures(images or folder)
        self.checked: set[str] = set()

    def read(self, name: str, where: str) -> bytes:
        """Return the bytes of a picture. `where` names the row in errors."""
        try:
            if name in self.checked:
                return self._pictures.read(name)
            data = self._pictures.read_checked(name)
        except FileNotFoundError:
            raise ValueError(
                f"{where}: expected the picture {name!r} in {self._pictures.path}, found none: add it, "
                "or name another place with --images"
            ) from None
        except (ValueError, OSError) as error:
            raise ValueError(f"{where}: {error}") from None
        self.checked.add(name)
        return data


def _picture_place(folder: Path, row: Row, lang: str) -> str:
    """Return the place of a row's picture for errors.

    Raises:
        ValueError: the picture's name leads out of the folder.
    """
    where = f"{folder}: row {row['id']!r} ({lang}): image"
    if not stays_inside(row["image"]):
        raise ValueError(
            f"{where}: expected a path inside the folder of pictures, found "
            f"{one_line(repr(row['image']), 100)}: correct the dataset"
        )
    return where


def _with_pictures(
    rows: Iterable[Row],
    lang: str,
    folder: Path,
    gallery: _Gallery | None,
    output: Path,
    taken: set[str],
) -> Iterator[Row]:
    """Yield the rows unchanged, after writing the picture of each; each name is written once.

    Args:
        rows: rows of the dataset.
        lang: their language.
        folder: folder of the dataset.
        gallery: the pictures; None writes none.
        output: folder of the export.
        taken: `folded` names of the export's other files.
    """
    for row in rows:
        if (name := row["image"]) is not None:
            where = _picture_place(folder, row, lang)
            if gallery is not None and name not in gallery.checked:
                _write_picture(output, name, gallery.read(name, where), where, taken)
        yield row


def _write_picture(output: Path, name: str, data: bytes, where: str, taken: set[str]) -> None:
    path = output / name
    output.mkdir(parents=True, exist_ok=True)
    # An existing link in the output folder may also lead out of it.
    if not path.resolve().is_relative_to(output.resolve()):
        raise ValueError(
            f"{where}: expected a path inside {output}, found {path.resolve()}: choose an empty "
            "--output"
        )
    if folded(PurePosixPath(name).as_posix()) in taken:
        raise ValueError(
            f"{where}: expected another name for a picture, found {name!r}, the name of a JSON "
            "file: rename it in the dataset"
        )
    if path.is_file() and path.read_bytes() == data:
        return
    if path.exists():
        raise ValueError(
            f"{where}: expected no file {path}, found one with other content: choose an empty "
            "--output"
        )
    write_bytes(path, data)


def _copy_credits(folder: Path, output: Path) -> None:
    """Copy the pictures' credits and licence texts."""
    for path in [folder / "ATTRIBUTION.md", *sorted((folder / "LICENSES").glob("*.txt"))]:
        if path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            write_bytes(output / path.relative_to(folder), path.read_bytes())


# LLaVA's JSON


def llava_row(row: Row, requests: Sequence[str] = REQUESTS) -> dict[str, Any]:
    """Return a row in LLaVA's format; a row without a picture has no `image`."""
    number = number_of(row["id"])
    turns = row.get("messages")
    if turns is None or (turns[0]["content"] == "" and len(turns) == 2):
        text = turns[1]["content"] if turns else row["caption"]
        request = requests[number % len(requests)]
        before = (number // len(requests)) % 2 == 0
        if row["image"] is not None:
            request = f"{IMAGE_MARK}\n{request}" if before else f"{request}\n{IMAGE_MARK}"
        said = [("human", request), ("gpt", text)]
    else:
        said = [("human" if turn["role"] == "user" else "gpt", turn["content"]) for turn in turns]
        if row["image"] is not None:
            said[0] = (said[0][0], f"{IMAGE_MARK}\n{said[0][1]}")
    named = {} if row["image"] is None else {"image": row["image"]}
    conversations = [{"from": speaker, "value": value} for speaker, value in said]
    return {"id": row["id"], **named, "conversations": conversations}


def _write_json(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for count, row in enumerate(rows, 1):
            file.write(",\n" if count > 1 else "\n")
            file.write(json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")
    return count


# Messages


def _messages_row(
    row: Row, lang: str, folder: Path, gallery: _Gallery, requests: Sequence[str]
) -> tuple[Row, int]:
    """Return a row of `MESSAGES_SCHEMA`, and its size in bytes."""
    images = []
    if row["image"] is not None:
        data = gallery.read(row["image"], _picture_place(folder, row, lang))
        images.append({"bytes": data, "path": row["image"]})
    turns = as_messages(row, requests)
    size = sum(len(turn["content"].encode()) for turn in turns)
    size += sum(len(image["bytes"]) for image in images)
    return {"id": row["id"], "lang": lang, "images": images, "messages": turns}, size


def _check_output(output: Path) -> None:
    card = output / "README.md"
    if card.is_file() and MARKER in card.read_text(encoding="utf-8", errors="replace"):
        return
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if there := [name for name in there if not name.startswith(SCRATCH)]:
        raise ValueError(
            f"{output}: expected an empty folder or an earlier export of messages, found {there[0]}: "
            "choose another --output"
        )


def _replace(output: Path, fresh: Path, names: Sequence[str]) -> None:
    """Move finished files into place, and delete files of earlier exports."""
    for path in output.glob(f"{SCRATCH}*"):
        if path != fresh:
            shutil.rmtree(path)
    (output / "README.md").unlink(missing_ok=True)
    for path in output.glob("*/*.parquet"):
        if re.fullmatch(r"\w+-\d{5}\.parquet", path.name):
            path.unlink()
    for name in names:
        (output / name).parent.mkdir(exist_ok=True)
        os.replace(fresh / name, output / name)


def _readme(dataset: DatasetFolder, rows: dict[str, int]) -> str:
    """Return README.md with the configs: all languages together, then each language."""
    splits: dict[str, Counter[str]] = {}
    for name, count in rows.items():
        lang, file = name.split("/")
        splits.setdefault(lang, Counter())[file.split("-")[0]] += count
    named = [split for split in dataset.splits if any(split in of for of in splits.values())]
    configs = [_config("all", list(splits), splits, named) | {"default": True}]
    configs += [_config(lang, [lang], splits, named) for lang in splits]
    licence = {name: one_line(str(text)) for name, text in dataset.licence.items()}
    head = {"language": list(splits), **licence, "configs": configs}
    table = [
        f"| `{lang}` | " + " | ".join(f"{of[split]:,}" for split in named) + " |"
        for lang, of in splits.items()
    ]
    values = {
        "head": yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=10_000),
        "marker": MARKER,
        "title": escaped(dataset.name),
        "name": code(dataset.name),
        "trl_snippet": trl_snippet('"path/to/this/folder"', "all", named[0]),
        "splits": " | ".join(map(escaped, named)),
        "rules": " ---: |" * len(named),
        "rows": "\n".join(table),
    }
    return Template(CARD.read_text(encoding="utf-8")).substitute(values)


def _config(
    name: str, languages: list[str], splits: dict[str, Counter[str]], named: list[str]
) -> dict[str, Any]:
    files = []
    for split in named:
        paths = [f"{lang}/{split}-*.parquet" for lang in languages if split in splits[lang]]
        if paths:
            files.append({"split": split, "path": paths})
    return {"config_name": name, "data_files": files}
