"""Small datasets in the layout of the Hub: sorted tables of texts per language, images stored once."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.helpers.tiny import IMAGE_SIZE

from ..run.tiny_run import WORDS

LANGUAGES = ("en", "fr", "hi")
README = """---
configs:
- config_name: all
  default: true
  data_files:
  - split: train
    path: "data/*/*.parquet"
- config_name: en
  data_files:
  - split: train
    path: "data/en/*.parquet"
---
"""


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def path_of(number: int) -> str:
    return f"{number % 3:02}/{number:05}.png"


def caption_rows(images: Sequence[int], language: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{n:05}",
            "image": path_of(n),
            "lang": language,
            "caption": f"{WORDS[language][1]} {n}",
        }
        for n in images
    ]


def write_shards(folder: Path, name: str, rows: list[dict], shards: int, group: int) -> None:
    """Write rows as numbered parquet files with `group` rows per row group."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = min(shards, len(rows))
    for number, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
        file = folder / f"{name}-{number:05}-of-{shards:05}.parquet"
        pq.write_table(pa.Table.from_pylist([rows[i] for i in part]), file, row_group_size=group)


def make_tables(
    folder: Path,
    images: int = 20,
    languages: Sequence[str] = LANGUAGES,
    missing: Sequence[tuple[int, str]] = ((4, "fr"), (7, "en"), (7, "fr")),
    picture: Any = png,
    built: bool = False,
) -> Path:
    """Write a dataset folder with a card: captions by language, in tables sorted by id, which are cut into
    shards and row groups at different places; images stored once.

    Args:
        missing: (image, language) pairs without a caption.
        picture: returns an image's bytes by its number.
        built: give the image table the columns of `maya data build`; otherwise id and image.
    """
    for place, language in enumerate(languages):
        rows = caption_rows([n for n in range(images) if (n, language) not in missing], language)
        write_shards(folder / "data" / language, "clean", rows, 1 + place, 3 + 2 * place)
    rows = [
        {"id": f"{n:05}", "image": {"bytes": picture(n), "path": path_of(n)}} for n in range(images)
    ]
    if built:
        rows = [{"id": r["id"], "image": r["image"]["path"], "picture": r["image"]} for r in rows]
    write_shards(folder / "images", "part", rows, 2, 4)
    (folder / "README.md").write_text(README)
    return folder


def make_rows(path: Path, images: int = 6, each: int = 2) -> Path:
    """Write one parquet file of `messages` + `images` rows that hold the images' bytes; the last row but
    one has two images, the last row none."""
    rows = []
    for number in range(images):
        for turn in range(each):
            language = LANGUAGES[turn % len(LANGUAGES)]
            question, answer = WORDS[language]
            held = [{"bytes": png(number), "path": None}]
            rows.append(
                {
                    "id": f"{number}-{turn}",
                    "images": held,
                    "lang": language,
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": f"{answer} {number}"},
                    ],
                }
            )
    rows[-2]["images"] = [{"bytes": png(90 + n), "path": None} for n in range(2)]
    rows[-1]["images"] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return path
