"""The config `messages`: some pictures of every style, embedded, each with one clean question.

It is built from the tables of pictures and instructions, so it contains nothing that they do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..dataset.messages import messages_schema, share_languages
from .concepts import LANGUAGES
from .draw import pick, shuffled
from .sources import SOURCES, SPLITS

# Maximum pictures per style; ten styles make two megabytes.
PICTURES = 150
SCHEMA = messages_schema(concept="string", style="string", licence="string", seen="bool")


def message_rows(dataset: Path, style: str) -> list[dict[str, Any]]:
    """Return rows of SCHEMA for at most PICTURES pictures of a style, sorted by id.

    Each picture occurs once, with a question of the `instruct` config in one language. The seed
    determines pictures, questions and languages; languages are about equally frequent.

    Args:
        dataset: folder with `images/<style>.parquet` and `instruct/<language>/<split>-clean.parquet`.
        style: the art style.
    """
    names = {lang: _concepts(dataset, style, lang) for lang in LANGUAGES}
    pictures = {
        row["concept"]: row
        for row in pq.read_table(dataset / f"images/{style}.parquet").to_pylist()
    }
    available = {
        concept: [lang for lang in LANGUAGES if concept in names[lang]]
        for concept in shuffled(sorted(pictures), "messages", style)
    }
    asked = [concept for concept, languages in available.items() if languages][:PICTURES]
    language_of = share_languages({concept: available[concept] for concept in asked}, LANGUAGES)
    rows = []
    for lang in LANGUAGES:
        own = {concept for concept in asked if language_of[concept] == lang}
        for question in _questions(dataset, style, lang, own):
            rows.append(_row(question, pictures[question["concept"]]))
    return sorted(rows, key=lambda row: row["id"])


def _table(dataset: Path, style: str, lang: str, columns: Sequence[str] | None = None) -> Any:
    path = dataset / f"instruct/{lang}/{SPLITS[style]}-clean.parquet"
    return pq.read_table(path, columns=columns, filters=pc.field("style") == style)


def _concepts(dataset: Path, style: str, lang: str) -> set[str]:
    return set(_table(dataset, style, lang, ["concept"])["concept"].to_pylist())


def _questions(dataset: Path, style: str, lang: str, concepts: set[str]) -> list[dict[str, Any]]:
    """Return one question about each concept."""
    of: dict[str, list[dict[str, Any]]] = {}
    for row in _table(dataset, style, lang).to_pylist():
        if row["concept"] in concepts:
            of.setdefault(row["concept"], []).append(row)
    return [pick(rows, "messages", style, concept) for concept, rows in of.items()]


def _row(question: dict[str, Any], picture: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": question["id"],
        "lang": question["lang"],
        "images": [picture["picture"]],
        "messages": question["messages"],
        "concept": question["concept"],
        "style": question["style"],
        "licence": SOURCES[question["style"]].licence,
        "seen": question["seen"],
    }
