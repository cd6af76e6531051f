"""A built dataset as other projects read it: LLaVA's `conversations` JSON, one file a language.

    maya data export runs/data/my-captions --format llava --languages ru hi --output llava/

Rows are `{"id", "image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}`, ids as
text, in order of their ids. A caption is the answer to one of LLaVA's eleven requests for a brief
description (LLaVA, arXiv 2304.08485, table 11), with `<image>` before or after it, both drawn by the
row's id. The requests are in English unless a file brings others for a language. A conversation has
`<image>` before its first question.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..schema import read_mapping
from .files import atomic
from .manifest import matching, read_manifest
from .records import IMAGE_MARK, Row
from .toxicity.step import read as stream

REQUESTS = (
    "Describe the image concisely.",
    "Provide a brief description of the given image.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)


def export_llava(
    folder: Path,
    output: Path,
    *,
    languages: Sequence[str] | None = None,
    toxicity_free: bool = False,
    requests: Path | None = None,
) -> dict[Path, int]:
    """Write `<name>.<language>.json` files; returns their rows.

    Args:
        folder: a build's output_dir, or its dataset folder.
        languages: only these of the dataset's.
        toxicity_free: only rows that are clean; else all that have a text.
        requests: a YAML file, language -> list of what the human asks for a caption, instead of
            `REQUESTS`.

    Raises ValueError for a folder that holds no finished dataset, a language that is not in it, a
    dataset that was not judged where `toxicity_free` is asked for; OSError when the disk is full.
    """
    if (folder / "dataset").is_dir():
        folder = folder / "dataset"
    manifest = read_manifest(folder)
    if toxicity_free and manifest["toxicity"] is None:
        raise ValueError(f"{folder}: no judge has read it, so nothing is known to be toxicity-free")
    there = list(manifest["counts"]["languages"])
    for lang in languages or ():
        if lang not in there:
            raise ValueError(f"{folder}: language {lang!r} is not in it; found {', '.join(there)}")
    asked = {} if requests is None else read_requests(requests)
    kind = "clean" if toxicity_free else "*"
    written = {}
    for lang in languages or there:
        files = matching(manifest["files"], f"data/{lang}/{kind}-*.parquet")
        path = output / f"{manifest['name']}.{lang}.json"
        own = asked.get(lang, REQUESTS)
        written[path] = _write(path, (llava_row(row, own) for row in _sorted(folder, files)))
    return written


def read_requests(path: Path) -> dict[str, list[str]]:
    """Language -> requests. Raises ValueError for a file of another form."""
    found = read_mapping(path)
    for lang, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}: {lang}: expected a list of texts, found {texts!r:.60}")
    return found


def _sorted(folder: Path, files: Sequence[str]) -> Iterator[Row]:
    """Rows of all series of files (clean, review, flagged) by id."""
    columns = ["id", "image", "caption", "messages"]
    series: dict[str, list[str]] = {}
    for name in sorted(files):
        series.setdefault(name.rpartition("-")[0], []).append(name)

    def rows(names: list[str]) -> Iterator[Row]:
        for name in names:
            yield from stream(folder / name, columns)

    return heapq.merge(*map(rows, series.values()), key=lambda row: row["id"])


def llava_row(row: Row, requests: Sequence[str] = REQUESTS) -> dict[str, Any]:
    """A row of the dataset as LLaVA has it; `image` is left out of rows without one."""
    number = int.from_bytes(hashlib.sha256(row["id"].encode()).digest()[:8], "big")
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


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for count, row in enumerate(rows, 1):
            file.write(",\n" if count > 1 else "\n")
            file.write(json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")
    return count
