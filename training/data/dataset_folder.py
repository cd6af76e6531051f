"""A finished dataset on disk: a built one, or one in the layout of the mini dataset.

    dataset = open_dataset(Path("runs/data/my-captions"))
    for row in dataset.rows("hi", "train"): ...

Both give their rows in the same form, by language and split.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..common.reading import parse_yaml, read_text
from .manifest import matching, read_manifest
from .records import Row
from .toxicity.step import read as stream

# Folders of a dataset in the layout of the mini dataset -> columns of their tables.
MINI_KINDS = {"texts": ("id", "image", "prompt", "text"), "instruct": ("id", "image", "messages")}
SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset on disk.

    name: fit to be the beginning of a file's name.
    files: (language, split) -> its series of files, each sorted by id: file names, and whether the
        rows are clean.
    licence: the entries of its card's YAML that say it.
    judged: whether clean rows are told from others.
    """

    folder: Path
    name: str
    languages: list[str]
    splits: list[str]
    files: dict[tuple[str, str], list[tuple[list[str], bool]]]
    licence: dict[str, Any]
    judged: bool

    @property
    def has_pictures(self) -> bool:
        """Whether the pictures are in it, in `images/*.parquet`."""
        return any((self.folder / "images").glob("*.parquet"))

    def rows(self, lang: str, split: str, clean: bool = False) -> Iterator[Row]:
        """Rows sorted by id, with `id`, `image`, and `caption` or `messages`.

        Args:
            clean: only rows that nothing was found against.

        Raises ValueError for a row without a text.
        """
        chosen = [names for names, is_clean in self.files[lang, split] if is_clean or not clean]
        for row in heapq.merge(*map(self._series, chosen), key=lambda row: row["id"]):
            turns = row.get("messages")
            said = [row["caption"]] if turns is None else [turn["content"] for turn in turns]
            if not said or not all(isinstance(text, str) for text in said):
                raise ValueError(
                    f"{self.folder}: row {row['id']!r} ({lang}): expected texts, found {said!s:.60}: "
                    "correct the dataset"
                )
            yield row

    def _series(self, names: Sequence[str]) -> Iterator[Row]:
        for name in names:
            kind = name.split("/")[0]
            if kind not in MINI_KINDS:
                yield from stream(self.folder / name, ["id", "image", "caption", "messages"])
                continue
            for row in stream(self.folder / name, list(MINI_KINDS[kind])):
                yield row if kind == "instruct" else _question_and_answer(row)


def open_dataset(folder: Path) -> DatasetFolder:
    """A build's output_dir, its dataset folder, or a folder in the layout of the mini dataset.

    Raises ValueError for a folder that is none of these, and for a language that is no code.
    """
    if (folder / "dataset").is_dir():
        folder = folder / "dataset"
    mini = any((folder / kind).is_dir() for kind in MINI_KINDS)
    found = _open_mini(folder) if mini else _open_built(folder)
    for lang in found.languages:
        # It becomes a part of paths, and whoever made the dataset wrote it.
        if not lang.replace("-", "").isalnum():
            raise ValueError(
                f"{folder}: language: expected a BCP-47 code, found {lang!r}: correct the dataset"
            )
    return found


def _file_name(name: str) -> str:
    """A dataset's name without what leads to another folder."""
    return re.sub(r"[/\\:\0]+", "-", name).lstrip(".-") or "dataset"


def _question_and_answer(row: Row) -> Row:
    said = (("user", row.get("prompt") or ""), ("assistant", row["text"]))
    turns = [{"role": role, "content": content} for role, content in said]
    return {"id": row["id"], "image": row["image"], "messages": turns}


def _open_built(folder: Path) -> DatasetFolder:
    manifest = read_manifest(folder)
    languages = list(manifest["counts"]["languages"])
    files: dict[tuple[str, str], list[tuple[list[str], bool]]] = {}
    for lang in languages:
        series: dict[str, list[str]] = {}
        for name in sorted(matching(manifest["files"], f"data/{lang}/*.parquet")):
            series.setdefault(name.rpartition("-")[0], []).append(name)
        files[lang, "train"] = [(n, s.endswith("/clean")) for s, n in series.items()]
    return DatasetFolder(
        folder=folder,
        name=_file_name(manifest["name"]),
        languages=languages,
        splits=["train"],
        files=files,
        licence={"license": manifest["licence"]},
        judged=manifest["toxicity"] is not None,
    )


def _open_mini(folder: Path) -> DatasetFolder:
    """Files are `<kind>/<language>/<split>-{clean,flagged}.parquet`."""
    files: dict[tuple[str, str], list[tuple[list[str], bool]]] = {}
    judged = True
    for path in sorted(folder.glob("*/*/*.parquet")):
        kind, lang, file = path.relative_to(folder).parts
        if kind not in MINI_KINDS:
            continue
        absent = {"id", "image", MINI_KINDS[kind][-1]} - set(pq.read_schema(path).names)
        if absent:
            raise ValueError(
                f"{path}: columns: expected {', '.join(MINI_KINDS[kind])}, found none called "
                f"{', '.join(sorted(absent))}: write the table with them"
            )
        split, _, state = path.stem.partition("-")
        judged = judged and state in ("clean", "flagged")
        files.setdefault((lang, split), []).append(([f"{kind}/{lang}/{file}"], state == "clean"))
    if not files:
        raise ValueError(
            f"{folder}: expected texts/<language>/<split>-*.parquet or "
            "instruct/<language>/<split>-*.parquet, found no such file: name a dataset's folder"
        )
    splits = sorted({split for _, split in files}, key=_split_place)
    languages = sorted({lang for lang, _ in files})
    for key in ((lang, split) for lang in languages for split in splits):
        files.setdefault(key, [])
    licence = {k: v for k, v in _card(folder).items() if k.startswith("license")}
    name = _file_name(folder.resolve().name)
    return DatasetFolder(folder, name, languages, splits, files, licence, judged)


def _split_place(split: str) -> tuple[int, str]:
    known = SPLIT_ORDER.index(split) if split in SPLIT_ORDER else len(SPLIT_ORDER)
    return known, split


def _card(folder: Path) -> dict[str, Any]:
    """The YAML of README.md; empty where there is none. Raises ValueError naming a card that cannot be read."""
    path = folder / "README.md"
    text = read_text(path).replace("\r\n", "\n") if path.is_file() else ""
    parts = text.split("---\n", 2)
    found = parse_yaml(parts[1], str(path)) if len(parts) == 3 else None
    return found if isinstance(found, dict) else {}
