"""Read a finished dataset on disk, built by `maya data build` or in the layout of the mini dataset.

    dataset = open_dataset(Path("runs/data/my-captions"))
    for row in dataset.rows("hi", "train"): ...

Both kinds yield rows of the same form, by language and split.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.cards import card_metadata
from ...common.names import check_component, file_name, folded
from ...common.reading import read_text
from ...common.telling import one_line
from ...rows.parquet import Row, check_columns, is_list, is_text, read_rows
from .manifest import matching, read_manifest
from .manifest_shape import check_languages

# Folders of a dataset in mini's layout -> columns of their tables.
MINI_KINDS = {"texts": ("id", "image", "prompt", "text"), "instruct": ("id", "image", "messages")}
TYPES: dict[str, Any] = {"id": is_text, "image": is_text, "text": is_text, "messages": is_list}
SPLIT_ORDER = ("train", "validation", "test")


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset on disk.

    name: name of the dataset, safe as the beginning of a file name.
    files: (language, split) -> series of files, each sorted by id: file names, and whether the rows are
        clean.
    licence: the licence entries of its card's YAML.
    judged: whether clean rows are marked.
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
        """Whether the dataset contains its pictures, in `images/*.parquet`."""
        return any((self.folder / "images").glob("*.parquet"))

    def rows(self, lang: str, split: str, clean: bool = False) -> Iterator[Row]:
        """Yield rows sorted by id, with `id`, `image`, and `caption` or `messages`.

        Args:
            lang: language of the rows.
            split: split of the rows.
            clean: yield only clean rows.

        Raises:
            ValueError: a row has no text.
        """
        chosen = [names for names, is_clean in self.files[lang, split] if is_clean or not clean]
        for row in heapq.merge(*map(self._series, chosen), key=lambda row: row["id"]):
            turns = row.get("messages")
            said = [row.get("caption")] if turns is None else _said(turns)
            if not said or not all(isinstance(text, str) for text in said):
                raise ValueError(
                    f"{self.folder}: row {row['id']!r} ({lang}): expected texts, found "
                    f"{one_line(str(said), 60)}: correct the dataset"
                )
            yield row

    def _series(self, names: Sequence[str]) -> Iterator[Row]:
        last = ""
        for row in self._rows_of(names):
            if row["id"] is None or row["id"] < last:
                raise ValueError(
                    f"{self.folder}: {names[0]}: expected rows in the order of their ids, found "
                    f"{row['id']!r} after {last!r}: correct the dataset"
                )
            last = row["id"]
            yield row

    def _rows_of(self, names: Sequence[str]) -> Iterator[Row]:
        for name in names:
            kind = name.split("/")[0]
            if kind not in MINI_KINDS:
                check_columns(self.folder / name, {n: TYPES[n] for n in ("id", "image")})
                yield from read_rows(self.folder / name, ["id", "image", "caption", "messages"])
                continue
            for row in read_rows(self.folder / name, list(MINI_KINDS[kind])):
                yield row if kind == "instruct" else _question_and_answer(row)


def open_dataset(folder: Path) -> DatasetFolder:
    """Open a build's output_dir, its dataset folder, or a folder in the layout of the mini dataset.

    Raises:
        ValueError: the folder is none of these, or a language is not a valid code.
    """
    if (folder / "dataset").is_dir():
        folder = folder / "dataset"
    mini = any((folder / kind).is_dir() for kind in MINI_KINDS)
    found = _open_mini(folder) if mini else _open_built(folder)
    # Names from the dataset become parts of paths; its author is untrusted.
    check_languages(found.languages, f"{folder}: language")
    seen: dict[str, str] = {}
    for split in found.splits:
        check_component(split, f"{folder}: split")
        if (other := seen.setdefault(folded(split), split)) != split:
            raise ValueError(
                f"{folder}: split: expected names that differ in more than case, found {other!r} and "
                f"{split!r}: rename one"
            )
    return found


def _said(turns: Any) -> list[Any]:
    """Return the text of each turn of a conversation; None for a turn without the expected form."""
    return [
        turn.get("content")
        if isinstance(turn, dict) and isinstance(turn.get("role"), str)
        else None
        for turn in (turns if isinstance(turns, list) else [None])
    ]


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
        name=file_name(manifest["name"], "dataset"),
        languages=languages,
        splits=["train"],
        files=files,
        licence={"license": manifest["licence"]},
        judged=manifest["toxicity"] is not None,
    )


def _open_mini(folder: Path) -> DatasetFolder:
    """Open a folder whose files are `<kind>/<language>/<split>-{clean,flagged}.parquet`."""
    files: dict[tuple[str, str], list[tuple[list[str], bool]]] = {}
    judged = True
    for path in sorted(folder.glob("*/*/*.parquet")):
        kind, lang, file = path.relative_to(folder).parts
        if kind not in MINI_KINDS:
            continue
        check_columns(path, {name: TYPES[name] for name in ("id", "image", MINI_KINDS[kind][-1])})
        split, _, state = path.stem.partition("-")
        judged = judged and state in ("clean", "flagged")
        files.setdefault((lang, split), []).append(([f"{kind}/{lang}/{file}"], state == "clean"))
    if not files:
        raise ValueError(
            f"{folder}: expected texts/<language>/<split>-*.parquet or "
            "instruct/<language>/<split>-*.parquet, found no such file: name a dataset's folder"
        )
    named = sorted({split for _, split in files})
    splits = [s for s in SPLIT_ORDER if s in named] + [s for s in named if s not in SPLIT_ORDER]
    languages = sorted({lang for lang, _ in files})
    for key in ((lang, split) for lang in languages for split in splits):
        files.setdefault(key, [])
    card = folder / "README.md"
    metadata = card_metadata(read_text(card), str(card)) if card.is_file() else {}
    licence = {k: v for k, v in metadata.items() if k.startswith("license")}
    name = file_name(folder.resolve().name, "dataset")
    return DatasetFolder(folder, name, languages, splits, files, licence, judged)
