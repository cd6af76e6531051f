"""The last step of a build: rows and decisions become `dataset/`, a folder ready for the Hub.

    data/<lang>/clean-00000.parquet     rows with a text: nothing was found against them
    data/<lang>/review-00000.parquet    people are to decide
    data/<lang>/flagged-00000.parquet   toxic
    rejected/<lang>-00000.parquet       rows without a text, and why; in no config to train on
    images/part-00000.parquet           pictures, if the plan publishes them: once each
    messages/part-00000.parquet         some of them beside a clean text, as TRL trains on them
    audit/<judge>-00000.parquet         every verdict of every judge
    manifest.json                       sha256, rows and bytes of every file, counts, configs, provenance

All files are sorted by id. Rows flow from the build's units through to the files, so memory holds a
unit or two. Each part (a language, the images, the config `messages`, the audit) is made anew only if
what it is made from has changed; the manifest is written last, so a folder that has one is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ...common.files import sha256_file, write_json
from ...common.names import stays_inside
from ...common.reading import read_json
from ...common.schema import digest
from ...common.shapes import has_shape
from ...rows.parquet import check_columns, parquet_file, read_columns, read_rows
from ..engine.requests import KNOWN
from ..engine.units import UnitManifest, manifest_path
from ..sources.external_sort import ExternalSort
from ..sources.pictures import Pictures
from ..sources.records import SOURCE_SCHEMA, Row
from ..toxicity.step import ShaTable
from . import messages_config
from .manifest_shape import AUDIT, FILES, IMAGES, LANGUAGE, MESSAGES, check_languages
from .messages import MESSAGES_SCHEMA
from .shards import IMAGE_SCHEMA, Shards

if TYPE_CHECKING:
    from ..plan import Plan

# Raised by one when the same build gives other files. The config `messages` has a number of its own:
# a dataset that was laid out without it gets it, and keeps its other files.
VERSION = 1
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


@dataclass
class LayoutPlan:
    """How the dataset's folder is laid out and described.

    images: `paths` publishes the pictures' paths and SHA-256 only; `bytes` the pictures too, in
        `images/`. Pictures of the web are other people's: see what their licence lets you do.
    shard_rows: rows a file at most.
    image_shard_mb: MiB of pictures a file.
    messages_images: pictures at most in the config `messages`, which embeds each beside one clean text
        as `messages` + `images`, for TRL and the Hub's viewer; 0 leaves the config out. There is none
        either where `images` is `paths`.
    licence: of the dataset, as the Hub writes it (cc-by-4.0). By default that of the translator's
        texts where it binds what is made with it (Aya: cc-by-nc-4.0), else `unknown`.
    licence_note: what the card says beside it: whose the pictures and texts are.
    description: what the card says first.
    """

    images: Literal["paths", "bytes"] = "paths"
    shard_rows: int = 100_000
    image_shard_mb: int = 500
    messages_images: int = 2000
    licence: str | None = None
    licence_note: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        for name in ("shard_rows", "image_shard_mb"):
            if getattr(self, name) < 1:
                raise ValueError(f"layout.{name}: expected at least 1, found {getattr(self, name)}")
        if self.messages_images < 0:
            raise ValueError(
                f"layout.messages_images: expected 0 or more, found {self.messages_images}"
            )


def text_schema(conversations: bool) -> pa.Schema:
    """Columns of `data/`: captions, or conversations where at least one source row is one."""
    if conversations:
        content = [("messages", _MESSAGES), ("source_messages", _MESSAGES)]
    else:
        content = [("caption", pa.string()), ("source_caption", pa.string())]
    return pa.schema([*_IDENTITY, *content, *_ABOUT, *_TOXICITY, ("run_id", pa.string())])


def rejected_schema(conversations: bool) -> pa.Schema:
    """Columns of `rejected/`: the source of the text that is not there, and why it is not."""
    kept = [f for f in text_schema(conversations) if f.name not in ("caption", "messages")]
    kept = [f for f in kept if not f.name.startswith("toxicity")]
    return pa.schema([*kept, ("reasons", pa.string())])


@dataclass
class Counts:
    """Rows of one language. rejected_for: by the first check that rejected them."""

    expected: int = 0
    ok: int = 0
    rejected: int = 0
    failed: int = 0
    clean: int = 0
    review: int = 0
    flagged: int = 0
    rejected_for: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    """Soft flags of rows that are ok."""
    translators: list[Row] = field(default_factory=list)

    def check(self, lang: str) -> None:
        """Raises ValueError where the sums do not close."""
        statuses = self.ok + self.rejected + self.failed
        decided = self.clean + self.review + self.flagged
        if statuses != self.expected or decided != self.ok:
            raise ValueError(
                f"{lang}: {self.expected:,} rows expected, {self.ok:,} ok + {self.rejected:,} rejected "
                f"+ {self.failed:,} failed found, of which {self.clean:,} clean + {self.review:,} "
                f"review + {self.flagged:,} flagged; run the steps before assemble again"
            )


def assemble(plan: Plan, progress: bool = True) -> dict[str, Any]:
    """Write `dataset/` of a build whose other steps are done; returns its manifest.

    Raises ValueError for units that are missing or older than what they are made from, for rows
    without a decision, for pictures whose bytes are not those of the source, and for sums that do
    not close; OSError for pictures that are not there and when the disk does not take a file.
    """
    from .manifest import write_manifest

    build = _Build(plan)
    (build.root / "manifest.json").unlink(missing_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    if plan.layout.images == "bytes":
        parts["images"] = build.part("images", build.images_key(), build.write_images)
    with contextlib.ExitStack() as stack:
        if parts:
            stack.enter_context(build.first_paths(parts["images"]["files"]))
        for lang in build.languages:
            parts[lang] = build.part(lang, build.language_key(lang), partial(build.write, lang))
            counts = Counts(**parts[lang]["counts"])
            counts.check(lang)
            if progress:
                print(f"assemble/{lang}: {_line(counts)}", flush=True)
    if "images" in parts and plan.layout.messages_images:
        key = build.messages_key(parts)
        parts["messages"] = build.part("messages", key, partial(build.write_messages, parts))
        if progress:
            print(
                f"assemble/messages: {parts['messages']['counts']['rows']:,} pictures", flush=True
            )
    if plan.toxicity is not None:
        parts["audit"] = build.part("audit", build.audit_key(), build.write_audit)
    return write_manifest(plan, build.root, build.source, parts, build.conversations)


def _line(counts: Counts) -> str:
    return (
        f"{counts.expected:,} rows = {counts.ok:,} ok + {counts.rejected:,} rejected + "
        f"{counts.failed:,} failed; {counts.ok:,} ok = {counts.clean:,} clean + "
        f"{counts.review:,} review + {counts.flagged:,} flagged"
    )


class _Build:
    """The units of a build as they are read here, and the parts of its dataset."""

    def __init__(self, plan: Plan):
        from ..sources.step import finished_sources

        self.plan, self.folder, self.run_id = plan, plan.folder, plan.run_id
        self.root = plan.folder / "dataset"
        self.source = source = finished_sources(self.folder / "source")
        self.units: list[str] = [unit["unit"] for unit in source["units"]]
        self.source_sha = {unit["unit"]: unit["sha256"] for unit in source["units"]}
        self.languages = list(dict.fromkeys([*source["languages"], *plan.languages]))
        check_languages(self.languages, f"{self.folder}: language")
        self.conversations = any(
            read_columns(self.folder / "source" / f"{u}.parquet", ["text"])[0].null_count
            for u in self.units
        )
        self._first_paths: ShaTable | None = None

    # Parts

    def part(self, name: str, key: str, write: Callable[[Shards], Row]) -> dict[str, Any]:
        """{"key", "files", "counts"} of a part, made now or as it was left."""
        note = self.folder / "assemble" / f"{name}.json"
        known = _read_note(note)
        if known is not None and known["key"] == key and self._whole(known["files"]):
            return known
        note.unlink(missing_ok=True)
        shards = Shards(self.root)
        with shards:
            counts = write(shards)
        made = {"key": key, "files": shards.files, "counts": counts}
        write_json(note, made)
        return made

    def _whole(self, files: dict[str, Row]) -> bool:
        for name, about in files.items():
            path = self.root / name
            if (
                not stays_inside(name)
                or not path.is_file()
                or path.stat().st_size != about["bytes"]
            ):
                return False
            if sha256_file(path) != about["sha256"]:
                return False
        return True

    def _unit_shas(self, step: str, lang: str, before: dict[str, str]) -> dict[str, str]:
        """SHA-256 of a step's units. Raises ValueError for one that is not made from those before."""
        found = {}
        for unit in self.units:
            path = self.folder / step / lang / f"{unit}.parquet"
            manifest = UnitManifest.read(manifest_path(path))
            if manifest is None or not path.is_file():
                raise ValueError(f"{path}: not done yet; run the step {step} first")
            if manifest.source_sha256 != before[unit]:
                raise ValueError(f"{path}: made from other rows; run the step {step} again")
            if sha256_file(path) != manifest.parquet_sha256:
                raise ValueError(f"{path}: was changed since; run the step {step} again")
            found[unit] = manifest.parquet_sha256
        return found

    def language_key(self, lang: str) -> str:
        inputs: list[Any] = [self.source_sha if lang in self.source["languages"] else None]
        if lang in self.plan.languages:
            translated = self._unit_shas("translate", lang, self.source_sha)
            inputs.append(translated)
            if self.plan.verification is not None:
                inputs.append(self._unit_shas("verify", lang, translated))
        inputs += self._decided_shas
        layout = self.plan.layout
        form = [self.conversations, layout.images, layout.shard_rows]
        judged = self.plan.toxicity is not None
        return digest([VERSION, lang, form, judged, inputs])

    @cached_property
    def _decided_shas(self) -> list[str | None]:
        """SHA-256 of what people and the judges decided, which is about all languages."""
        paths = (
            self.folder / "review" / "overrides.parquet",
            self.folder / "toxicity" / "decisions.parquet",
        )
        return [sha256_file(path) if path.is_file() else None for path in paths]

    def images_key(self) -> str:
        layout = self.plan.layout
        return digest([VERSION, layout.image_shard_mb, str(self.plan.images), self.source_sha])

    def audit_key(self) -> str:
        audit = self.folder / "toxicity" / "audit.parquet"
        if not audit.is_file():
            raise ValueError(f"{audit}: not there; run the step toxicity first")
        return digest([VERSION, self.plan.layout.shard_rows, sha256_file(audit)])

    # Texts

    def write(self, lang: str, shards: Shards) -> Row:
        """The files of one language; returns its Counts as a mapping."""
        total = self.source["rows"] if lang in self.plan.languages else 0
        counts = Counts(expected=total + self.source["languages"].get(lang, 0))
        rejected_for: Counter[str] = Counter()
        flags: Counter[str] = Counter()
        translators: Counter[tuple[Any, ...]] = Counter()
        about = ("model", "model_revision", "prompt_id", "parameters")
        text, rejected = text_schema(self.conversations), rejected_schema(self.conversations)
        most = self.plan.layout.shard_rows
        for row in self._decided(lang):
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
                translators[tuple(row[name] for name in about)] += 1
        counts.rejected_for = dict(rejected_for.most_common())
        counts.flags = dict(flags.most_common())
        counts.translators = [
            {**dict(zip(about, values, strict=True)), "rows": number}
            for values, number in translators.most_common()
        ]
        return vars(counts)

    def _row(self, row: Row) -> Row:
        """A row of the build in the columns of the dataset."""
        made = dict(row)
        if self._first_paths is not None and row["image_sha256"] is not None:
            made["image"] = self._first_paths.get(row["image_sha256"], "") or row["image"]
        if self.conversations:
            return made | {"messages": _messages(row)}
        return made | {"caption": row["text"], "source_caption": row["source_text"]}

    def _rows(self, lang: str) -> Iterator[Row]:
        """All rows of a language by id: those of the source and those that were translated."""
        parts = []
        if lang in self.source["languages"]:
            parts.append(self._source_rows(lang))
        if lang in self.plan.languages:
            parts.append(self._translated_rows(lang))
        last: str | None = None
        for row in heapq.merge(*parts, key=lambda row: row["id"]):
            if last is not None and row["id"] <= last:
                what = "comes twice" if row["id"] == last else f"comes after {last!r}"
                raise ValueError(f"{self.folder}: row {row['id']!r} ({lang}): {what}")
            last = row["id"]
            if row["status"] == "ok" and row["text"] is None and row["turns"] is None:
                raise ValueError(
                    f"{self.folder}: row {row['id']!r} ({lang}): accepted, but it has no text; "
                    "reject it in a review sheet"
                )
            yield row

    def _source_rows(self, lang: str) -> Iterator[Row]:
        empty: Row = dict.fromkeys(name for name, _ in _ABOUT)
        empty |= {"source_text": None, "source_messages": None}
        empty |= {"reasons": None, "status": "ok", "flags": []}
        for unit in self.units:
            for row in read_rows(self.folder / "source" / f"{unit}.parquet"):
                if row["lang"] == lang:
                    yield {**empty, **row, "source_lang": lang, "run_id": self.run_id}

    def _translated_rows(self, lang: str) -> Iterator[Row]:
        rows: Iterable[Row]
        if self.plan.verification is not None:
            from ..verification.step import final_rows

            rows = final_rows(self.folder, lang)
        else:
            paths = (self.folder / "translate" / lang / f"{unit}.parquet" for unit in self.units)
            added: Row = {"lid_confidence": None, "quality": None, "reviewed": None}
            rows = ({**row, **added} for path in paths for row in read_rows(path))
        if not self.conversations:
            yield from rows
            return
        paths = (self.folder / "source" / f"{unit}.parquet" for unit in self.units)
        sources = (row for path in paths for row in read_rows(path, ["id", "text", "turns"]))
        for row, source in zip(rows, sources, strict=True):
            yield {**row, "source_messages": _messages(source)}

    def _decided(self, lang: str) -> Iterator[Row]:
        """Rows with `toxicity` (clean, review, flagged; None where nothing is judged)."""
        if self.plan.toxicity is None:
            for row in self._rows(lang):
                yield {**row, **dict.fromkeys(name for name, _ in _TOXICITY)}
            return
        path = self.folder / "toxicity" / "decisions.parquet"
        if not path.is_file():
            raise ValueError(f"{path}: not there; run the step toxicity first")
        decisions = _of_language(path, lang)
        decision = next(decisions, None)
        for row in self._rows(lang):
            # Rows that were rejected after they were judged have decisions too.
            while decision is not None and decision["id"] < row["id"]:
                decision = next(decisions, None)
            found = decision if decision is not None and decision["id"] == row["id"] else None
            if row["status"] == "ok" and found is None:
                raise ValueError(
                    f"{path}: row {row['id']!r} ({lang}) has a text and no decision; run the step "
                    "toxicity again"
                )
            found = found if row["status"] == "ok" else None
            yield {
                **row,
                "toxicity": found and found["decision"],
                "toxicity_category": found and found["category"],
                "toxicity_reason": (found and found["reason"]) or None,
            }

    # Images

    def write_images(self, shards: Shards) -> Row:
        """Every distinct picture of the source once, under the path of the first row that has it."""
        assert self.plan.images is not None
        pictures = Pictures(self.plan.images, follow_links=self.plan.source.follow_links)
        size = pictured = distinct = 0
        with ShaTable() as seen:
            for unit in self.units:
                path = self.folder / "source" / f"{unit}.parquet"
                for row in read_rows(path, ["id", "image", "image_sha256"]):
                    if row["image"] is None:
                        continue
                    pictured += 1
                    if not seen.add(row["image_sha256"]):
                        continue
                    try:
                        data = pictures.read_checked(row["image"])
                    except ValueError as error:
                        raise ValueError(
                            f"{error}; what is published must be a picture: remove its row from the "
                            "source, and run the step source again"
                        ) from None
                    if hashlib.sha256(data).hexdigest() != row["image_sha256"]:
                        raise ValueError(
                            f"{row['image']!r} in {self.plan.images}: its bytes have changed since "
                            "the source was read; run the step source again"
                        )
                    picture = {"bytes": data, "path": row["image"]}
                    most = self.plan.layout.image_shard_mb << 20
                    shards.add(
                        "images/part", IMAGE_SCHEMA, {**row, "picture": picture}, most, len(data)
                    )
                    size += len(data)
                    distinct += 1
        return {"rows": pictured, "images": distinct, "bytes": size}

    @contextlib.contextmanager
    def first_paths(self, files: Iterable[str]) -> Iterator[None]:
        """Rows whose pictures have the same bytes name the one path that `images/` has them under."""
        with ShaTable() as table:
            for name in files:
                for row in read_rows(self.root / name, ["image", "image_sha256"]):
                    table.set(row["image_sha256"], "", row["image"])
            self._first_paths = table
            yield
            self._first_paths = None

    # The config `messages`

    def _clean_files(self, parts: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
        return {
            lang: [n for n in parts[lang]["files"] if n.startswith(f"data/{lang}/clean-")]
            for lang in self.languages
        }

    def messages_key(self, parts: dict[str, dict[str, Any]]) -> str:
        """Of the finished files that the config is made from, and of how."""
        layout = self.plan.layout
        content = {
            name: parts[lang]["files"][name]["sha256"]
            for lang, files in self._clean_files(parts).items()
            for name in files
        }
        content |= {name: about["sha256"] for name, about in parts["images"]["files"].items()}
        form = [layout.messages_images, layout.image_shard_mb, self.languages]
        return digest([messages_config.VERSION, form, KNOWN, content])

    def write_messages(self, parts: dict[str, dict[str, Any]], shards: Shards) -> Row:
        """The config's files; returns its rows, all and by language, and the pictures' bytes."""
        clean = self._clean_files(parts)
        images = list(parts["images"]["files"])
        chosen = messages_config.choose_rows(self.root, clean, self.plan.layout.messages_images)
        size = 0
        for row in messages_config.config_rows(self.root, clean, images, chosen):
            data = len(row["images"][0]["bytes"])
            most = self.plan.layout.image_shard_mb << 20
            shards.add("messages/part", MESSAGES_SCHEMA, row, most, data)
            size += data
        languages = {lang: len(rows) for lang, rows in chosen.items()}
        return {"rows": sum(languages.values()), "languages": languages, "bytes": size}

    # Audit

    def write_audit(self, shards: Shards) -> Row:
        """Verdicts by judge and id; the build's own file has them in the order they were asked for."""
        from ..toxicity.decisions import AUDIT_SCHEMA

        assert self.plan.toxicity is not None
        verdicts = 0
        for judge in self.plan.toxicity.judges:
            with tempfile.TemporaryDirectory(prefix=".sort-", dir=self.folder) as scratch:
                sort = ExternalSort(Path(scratch))
                for row in read_rows(self.folder / "toxicity" / "audit.parquet"):
                    if row["judge"] == judge.name:
                        sort.add(row, "")
                for _, row, _ in sort.rows():
                    most = self.plan.layout.shard_rows
                    shards.add(f"audit/{judge.name}", AUDIT_SCHEMA, row, most)
                    verdicts += 1
        return {"verdicts": verdicts}


def _read_note(path: Path) -> dict[str, Any] | None:
    """What was noted of a part; None where nothing is, or it is no note of this form."""
    try:
        note = read_json(path)
    except (OSError, ValueError):
        return None
    shapes: dict[str, dict[str, Any]] = {"images": IMAGES, "messages": MESSAGES, "audit": AUDIT}
    shape = shapes.get(path.stem, LANGUAGE)
    fits = has_shape(note, {"key": str, "files": FILES, "counts": shape})
    return note if fits and note["counts"].keys() == shape.keys() else None


def _messages(row: Row) -> list[Row] | None:
    """A row as a conversation; a caption is an answer to a picture alone, as in training."""
    if row["turns"] is not None or row["text"] is None:
        return row["turns"]
    return [{"role": "user", "content": ""}, {"role": "assistant", "content": row["text"]}]


def _of_language(path: Path, lang: str) -> Iterator[Row]:
    """Decisions about rows of one language."""
    columns = ["id", "lang", "decision", "category", "reason"]
    check_columns(path, dict.fromkeys(columns, pa.string()))
    with parquet_file(path) as file:
        for batch in file.iter_batches(50_000, columns=columns):
            yield from batch.filter(pc.equal(batch["lang"], lang)).to_pylist()
