"""The config `messages` of a built dataset: some pictures, embedded, each with one clean text.

Its inputs are finished files of the dataset: `data/<lang>/clean-*.parquet` and `images/*.parquet`. Each
picture appears at most once: with its text in every language it would be stored once per language.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ...common.places import PictureTables
from ...rows.parquet import Row, parquet_file
from .messages import as_messages, known_requests, share_languages

# Increase when the same files yield different rows.
VERSION = 1
Files = Mapping[str, Sequence[str]]


@dataclass
class _Picture:
    """A picture by its name in the dataset. rows: language -> id of its first clean row."""

    image: str
    rows: dict[str, str] = field(default_factory=dict)


def choose_rows(root: Path, clean: Files, most: int) -> dict[str, dict[str, str]]:
    """Return {language: {id of a row: name of its picture}}.

    Of all pictures with a clean row, the `most` with the smallest SHA-256 are chosen. That equals a random
    draw, and every build draws the same. Memory holds a few times `most` names and ids.

    Args:
        root: folder of the dataset.
        clean: language -> its files of clean rows, in order.
        most: maximum number of pictures.
    """
    found: dict[str, _Picture] = {}
    limit: str | None = None
    for lang, names in clean.items():
        for name in names:
            for batch in _pictured(root / name, limit):
                for row in batch.to_pylist():
                    known = found.setdefault(row["image_sha256"], _Picture(row["image"]))
                    known.rows.setdefault(lang, row["id"])
                if len(found) > 2 * most:
                    found = _smallest(found, most)
                    limit = max(found)
    found = _smallest(found, most)
    shared = share_languages({sha: each.rows for sha, each in found.items()}, list(clean))
    chosen: dict[str, dict[str, str]] = {lang: {} for lang in clean}
    for sha256, lang in shared.items():
        chosen[lang][found[sha256].rows[lang]] = found[sha256].image
    return chosen


def _pictured(path: Path, limit: str | None) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows with a picture whose SHA-256 is at most `limit`."""
    with parquet_file(path) as file:
        for batch in file.iter_batches(20_000, columns=["id", "image", "image_sha256"]):
            sha256 = batch["image_sha256"]
            # Rows without a picture have no SHA-256: null is not less than the limit, so they drop out.
            yield batch.filter(
                pc.is_valid(sha256) if limit is None else pc.less_equal(sha256, limit)
            )


def _smallest(found: dict[str, _Picture], most: int) -> dict[str, _Picture]:
    return {sha256: found[sha256] for sha256 in sorted(found)[:most]}


def config_rows(
    root: Path, clean: Files, images: Sequence[str], chosen: Mapping[str, Mapping[str, str]]
) -> Iterator[Row]:
    """Yield rows of `MESSAGES_SCHEMA`, sorted by id.

    Args:
        root: folder of the dataset.
        clean: language -> its files of clean rows.
        images: files of the table of pictures.
        chosen: result of `choose_rows`.
    """
    names = {image for rows in chosen.values() for image in rows.values()}
    pictures = PictureTables([root / name for name in images], wanted=names)
    each = [_chosen(root, files, set(chosen[lang])) for lang, files in clean.items()]
    for row in heapq.merge(*each, key=lambda row: row["id"]):
        yield {
            "id": row["id"],
            "lang": row["lang"],
            "images": [{"bytes": pictures.read(row["image"]), "path": row["image"]}],
            "messages": as_messages(row, known_requests(row["lang"])),
        }


def _chosen(root: Path, files: Sequence[str], ids: set[str]) -> Iterator[Row]:
    wanted = pa.array(sorted(ids), pa.string())
    columns = ["id", "image", "lang", "caption", "messages"]
    for name in files:
        with parquet_file(root / name) as file:
            for batch in file.iter_batches(10_000, columns=columns):
                yield from batch.filter(pc.is_in(batch["id"], value_set=wanted)).to_pylist()
