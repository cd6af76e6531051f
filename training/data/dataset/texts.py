"""Write the texts of one language: accepted rows with their decisions to `data/`, other rows to `rejected/`."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...common.schema import digest
from ...rows.parquet import Row, check_columns, parquet_file, read_rows
from ..engine.storage import ShaTable
from ..sources.records import SOURCE_SCHEMA
from ..verification.rows import final_rows
from .parts import VERSION, Build
from .shards import Shards

_MESSAGES = SOURCE_SCHEMA.field("turns").type
_ABOUT = [
    ("source_lang", pa.string()),
    ("model", pa.string()),
    ("model_revision", pa.string()),
    ("prompt_id", pa.string()),
    ("parameters", pa.string()),
    ("finish_reason", pa.string()),
    ("attempts", pa.int32()),
    ("status", pa.string()),
    ("flags", pa.list_(pa.string())),
    ("lid_confidence", pa.float32()),
    ("quality", pa.float32()),
    ("reviewed", pa.string()),
]
_IDENTITY = [SOURCE_SCHEMA.field(n) for n in ("id", "image", "image_sha256", "lang", "task")]
_TOXICITY = [
    ("toxicity", pa.string()),
    ("toxicity_category", pa.string()),
    ("toxicity_reason", pa.string()),
]
_TRANSLATOR = ("model", "model_revision", "prompt_id", "parameters")


def text_schema(conversations: bool) -> pa.Schema:
    """Return the columns of `data/`: captions, or conversations if any source row is a conversation."""
    if conversations:
        content = [("messages", _MESSAGES), ("source_messages", _MESSAGES)]
    else:
        content = [("caption", pa.string()), ("source_caption", pa.string())]
    return pa.schema([*_IDENTITY, *content, *_ABOUT, *_TOXICITY, ("run_id", pa.string())])


def rejected_schema(conversations: bool) -> pa.Schema:
    """Return the columns of `rejected/`: source of the rejected or failed text, and the reason."""
    kept = [f for f in text_schema(conversations) if f.name not in ("caption", "messages")]
    kept = [f for f in kept if not f.name.startswith("toxicity")]
    return pa.schema([*kept, ("reasons", pa.string())])


@dataclass
class Counts:
    """Row counts of one language. rejected_for: rows by the first check that rejected them."""

    expected: int = 0
    ok: int = 0
    rejected: int = 0
    failed: int = 0
    clean: int = 0
    review: int = 0
    flagged: int = 0
    rejected_for: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    """Soft flags of accepted rows -> rows."""
    translators: list[Row] = field(default_factory=list)

    def check(self, lang: str) -> None:
        """Raise ValueError if the counts do not add up."""
        statuses = self.ok + self.rejected + self.failed
        decided = self.clean + self.review + self.flagged
        if statuses != self.expected or decided != self.ok:
            raise ValueError(
                f"{lang}: expected {self.expected:,} rows, found {self.ok:,} ok + {self.rejected:,} "
                f"rejected + {self.failed:,} failed, and among the ok rows {self.clean:,} clean + "
                f"{self.review:,} review + {self.flagged:,} flagged: run the steps before assemble again"
            )

    def line(self) -> str:
        """Return the counts as one line."""
        return (
            f"{self.expected:,} rows = {self.ok:,} ok + {self.rejected:,} rejected + "
            f"{self.failed:,} failed; {self.ok:,} ok = {self.clean:,} clean + "
            f"{self.review:,} review + {self.flagged:,} flagged"
        )


class Texts:
    """The part with the files of one language.

    Args:
        build: the build.
        lang: the language.
        first_paths: SHA-256 -> path of the picture in `images/`; None if pictures are not published.
    """

    def __init__(self, build: Build, lang: str, first_paths: ShaTable | None):
        self.build, self.plan, self.name = build, build.plan, lang
        self._first_paths = first_paths
        self._in_source = lang in build.source["languages"]
        self._translated = lang in build.plan.languages

    def key(self) -> str:
        build, layout = self.build, self.plan.layout
        inputs: list[Any] = [build.source_sha if self._in_source else None]
        if self._translated:
            translated = build.unit_shas("translate", self.name, build.source_sha)
            inputs.append(translated)
            if self.plan.verification is not None:
                inputs.append(build.unit_shas("verify", self.name, translated))
        inputs += build.decided_shas
        form = [build.conversations, layout.images, layout.shard_rows]
        judged = self.plan.toxicity is not None
        return digest([VERSION, self.name, form, judged, inputs])

    def write(self, shards: Shards) -> Row:
        """Write the files of the language; return its Counts as a mapping."""
        lang, source = self.name, self.build.source
        total = source["rows"] if self._translated else 0
        counts = Counts(expected=total + source["languages"].get(lang, 0))
        rejected_for: Counter[str] = Counter()
        flags: Counter[str] = Counter()
        translators: Counter[tuple[Any, ...]] = Counter()
        conversations, most = self.build.conversations, self.plan.layout.shard_rows
        text, rejected = text_schema(conversations), rejected_schema(conversations)
        for row in self._decided():
            setattr(counts, row["status"], getattr(counts, row["status"]) + 1)
            made = self._row(row)
            if row["status"] == "ok":
                decision = row["toxicity"] or "clean"
                setattr(counts, decision, getattr(counts, decision) + 1)
                flags.update(row["flags"] or ())
                shards.add(f"data/{lang}/{decision}", text, made, most)
            else:
                if row["status"] == "rejected":
                    rejected_for[(row["reasons"] or "no reason").partition(":")[0]] += 1
                shards.add(f"rejected/{lang}", rejected, made, most)
            if row["model"] is not None:
                translators[tuple(row[name] for name in _TRANSLATOR)] += 1
        counts.rejected_for = dict(rejected_for.most_common())
        counts.flags = dict(flags.most_common())
        counts.translators = [
            {**dict(zip(_TRANSLATOR, values, strict=True)), "rows": number}
            for values, number in translators.most_common()
        ]
        return vars(counts)

    def _row(self, row: Row) -> Row:
        """Convert a row of the build to the columns of the dataset."""
        made = dict(row)
        if self._first_paths is not None and row["image_sha256"] is not None:
            made["image"] = self._first_paths.get(row["image_sha256"], "") or row["image"]
        if self.build.conversations:
            return made | {"messages": _messages(row)}
        return made | {"caption": row["text"], "source_caption": row["source_text"]}

    def _decided(self) -> Iterator[Row]:
        """Yield rows with `toxicity`: clean, review or flagged; None in a build without judges."""
        if self.plan.toxicity is None:
            for row in self._rows():
                yield {**row, **dict.fromkeys(name for name, _ in _TOXICITY)}
            return
        path = self.build.folder / "toxicity" / "decisions.parquet"
        if not path.is_file():
            raise ValueError(f"{path}: expected a file, found none: run the step toxicity first")
        decisions = _of_language(path, self.name)
        decision = next(decisions, None)
        for row in self._rows():
            # Skip decisions about rows that were rejected after judging.
            while decision is not None and decision["id"] < row["id"]:
                decision = next(decisions, None)
            found = decision if decision is not None and decision["id"] == row["id"] else None
            if row["status"] == "ok" and found is None:
                raise ValueError(
                    f"{path}: row {row['id']!r} ({self.name}): expected a decision for its text, found "
                    "none: run the step toxicity again"
                )
            found = found if row["status"] == "ok" else None
            yield {
                **row,
                "toxicity": found and found["decision"],
                "toxicity_category": found and found["category"],
                "toxicity_reason": (found and found["reason"]) or None,
            }

    def _rows(self) -> Iterator[Row]:
        """Yield all rows of the language sorted by id, source rows and translations."""
        parts = []
        if self._in_source:
            parts.append(self._source_rows())
        if self._translated:
            parts.append(self._translated_rows())
        last: str | None = None
        for row in heapq.merge(*parts, key=lambda row: row["id"]):
            where = f"{self.build.folder}: row {row['id']!r} ({self.name})"
            if last is not None and row["id"] <= last:
                what = (
                    "expected once, found twice"
                    if row["id"] == last
                    else f"expected in the order of ids, found after {last!r}"
                )
                raise ValueError(f"{where}: {what}")
            last = row["id"]
            if row["status"] == "ok" and row["text"] is None and row["turns"] is None:
                raise ValueError(
                    f"{where}: expected a text in an accepted row, found none: reject it in a review sheet"
                )
            yield row

    def _source_rows(self) -> Iterator[Row]:
        empty: Row = dict.fromkeys(name for name, _ in _ABOUT)
        empty |= {"source_text": None, "source_messages": None}
        empty |= {"reasons": None, "status": "ok", "flags": []}
        about = {"source_lang": self.name, "run_id": self.build.run_id}
        for row in self.build.source_rows():
            if row["lang"] == self.name:
                yield {**empty, **row, **about}

    def _translated_rows(self) -> Iterator[Row]:
        rows: Iterable[Row]
        if self.plan.verification is not None:
            rows = final_rows(self.build.folder, self.name)
        else:
            paths = self.build.unit_paths("translate", self.name)
            added: Row = {"lid_confidence": None, "quality": None, "reviewed": None}
            rows = ({**row, **added} for path in paths for row in read_rows(path))
        if not self.build.conversations:
            yield from rows
            return
        sources = self.build.source_rows(["id", "text", "turns"])
        for row, source in zip(rows, sources, strict=True):
            yield {**row, "source_messages": _messages(source)}


def _messages(row: Row) -> list[Row] | None:
    """Return a row as conversation; a caption becomes the answer to a picture with no question, as in training."""
    if row["turns"] is not None or row["text"] is None:
        return row["turns"]
    return [{"role": "user", "content": ""}, {"role": "assistant", "content": row["text"]}]


def _of_language(path: Path, lang: str) -> Iterator[Row]:
    """Yield the decisions about rows of one language."""
    columns = ["id", "lang", "decision", "category", "reason"]
    check_columns(path, dict.fromkeys(columns, pa.string()))
    with parquet_file(path) as file:
        for batch in file.iter_batches(50_000, columns=columns):
            yield from batch.filter(pc.equal(batch["lang"], lang)).to_pylist()
