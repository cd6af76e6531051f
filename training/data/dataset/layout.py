"""The last step of a build: write `dataset/`, a folder for the Hub, from rows and decisions.

    data/<lang>/clean-00000.parquet     rows with a text that passed every check
    data/<lang>/review-00000.parquet    rows that people have to decide
    data/<lang>/flagged-00000.parquet   toxic rows
    rejected/<lang>-00000.parquet       rows without a text, with the reason; in no config for training
    images/part-00000.parquet           each distinct picture once, if the plan publishes pictures
    messages/part-00000.parquet         some pictures with a clean text each, in the format that TRL reads
    audit/<judge>-00000.parquet         every verdict of every judge
    manifest.json                       sha256, rows and bytes of every file, counts, configs, provenance

All files are sorted by id. Rows stream from the build's units into the files, so memory holds one or
two units. A part (a language, the images, the config `messages`, the audit) is rebuilt only if its inputs
have changed. The manifest is written last, so a folder with a manifest is complete.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...common.files import sha256_bytes, sha256_file
from ...common.schema import digest
from ...rows.parquet import Row, read_rows
from ..engine.storage import ShaTable
from ..sources.pictures import Pictures
from ..sources.sorting import ExternalSort
from ..toxicity.decisions import AUDIT_SCHEMA
from . import messages_config
from .manifest import write_manifest
from .messages import KNOWN_REQUESTS, MESSAGES_SCHEMA
from .parts import VERSION, Build, finished_part
from .plan import BuildPlan
from .shards import IMAGE_SCHEMA, Shards
from .texts import Counts, Texts


def assemble(plan: BuildPlan, progress: bool = True) -> dict[str, Any]:
    """Write `dataset/` of a build whose other steps are finished, and return the manifest.

    Args:
        plan: plan of the build.
        progress: print the counts of each part.

    Raises:
        ValueError: a unit is missing or older than its inputs, a row has no decision, a picture's
            bytes differ from the source, or the counts do not add up.
        OSError: a picture is missing, or the disk rejects a file.
    """
    # 1. Pictures
    build = Build(plan)
    (build.root / "manifest.json").unlink(missing_ok=True)
    parts: dict[str, dict[str, Any]] = {}
    if plan.layout.images == "bytes":
        parts["images"] = finished_part(build, Images(build))
    # 2. Texts of each language
    with contextlib.ExitStack() as stack:
        first_paths = None
        if parts:
            first_paths = stack.enter_context(_first_paths(build.root, parts["images"]["files"]))
        for lang in build.languages:
            parts[lang] = finished_part(build, Texts(build, lang, first_paths))
            counts = Counts(**parts[lang]["counts"])
            counts.check(lang)
            if progress:
                print(f"assemble/{lang}: {counts.line()}", flush=True)
    # 3. The config `messages`, the audit, the manifest
    if "images" in parts and plan.layout.messages_images:
        parts["messages"] = finished_part(build, Messages(build, parts))
        if progress:
            pictures = parts["messages"]["counts"]["rows"]
            print(f"assemble/messages: {pictures:,} pictures", flush=True)
    if plan.toxicity is not None:
        parts["audit"] = finished_part(build, Audit(build))
    return write_manifest(plan, build.root, build.source, parts, build.conversations)


class Images:
    """The part with the pictures: each distinct picture of the source once, under its first row's path."""

    name = "images"

    def __init__(self, build: Build):
        self.build, self.plan = build, build.plan
        self._most = build.plan.layout.image_shard_mb

    def key(self) -> str:
        return digest([VERSION, self._most, str(self.plan.images), self.build.source_sha])

    def write(self, shards: Shards) -> Row:
        """Write the files of pictures; return the numbers of rows with a picture, of pictures and of bytes."""
        assert self.plan.images is not None
        pictures = Pictures(self.plan.images, follow_links=self.plan.source.follow_links)
        size = pictured = distinct = 0
        with ShaTable() as seen:
            for row in self.build.source_rows(["id", "image", "image_sha256"]):
                if row["image"] is None:
                    continue
                pictured += 1
                if not seen.add(row["image_sha256"]):
                    continue
                data = self._bytes(pictures, row)
                made = {**row, "picture": {"bytes": data, "path": row["image"]}}
                shards.add("images/part", IMAGE_SCHEMA, made, self._most << 20, len(data))
                size += len(data)
                distinct += 1
        return {"rows": pictured, "images": distinct, "bytes": size}

    def _bytes(self, pictures: Pictures, row: Row) -> bytes:
        try:
            data = pictures.read_checked(row["image"])
        except ValueError as error:
            raise ValueError(
                f"{error}: expected a picture that can be published: remove its row from the source, "
                "and run the step source again"
            ) from None
        if sha256_bytes(data) != row["image_sha256"]:
            raise ValueError(
                f"{row['image']!r} in {self.plan.images}: expected the bytes that the step source read, "
                "found others: run the step source again"
            )
        return data


@contextlib.contextmanager
def _first_paths(root: Path, files: Iterable[str]) -> Iterator[ShaTable]:
    """Yield a table from SHA-256 to the path of the picture with these bytes in `images/`."""
    with ShaTable() as table:
        for name in files:
            for row in read_rows(root / name, ["image", "image_sha256"]):
                table.set(row["image_sha256"], "", row["image"])
        yield table


class Messages:
    """The part with the config `messages`, written from the finished files of texts and pictures."""

    name = "messages"

    def __init__(self, build: Build, parts: dict[str, dict[str, Any]]):
        self.build, self._parts, self._layout = build, parts, build.plan.layout
        self._clean = {
            lang: [n for n in parts[lang]["files"] if n.startswith(f"data/{lang}/clean-")]
            for lang in build.languages
        }

    def key(self) -> str:
        content = {
            name: self._parts[lang]["files"][name]["sha256"]
            for lang, files in self._clean.items()
            for name in files
        }
        images = self._parts["images"]["files"]
        content |= {name: about["sha256"] for name, about in images.items()}
        form = [self._layout.messages_images, self._layout.image_shard_mb, self.build.languages]
        return digest([messages_config.VERSION, form, KNOWN_REQUESTS, content])

    def write(self, shards: Shards) -> Row:
        """Write the config's files; return its rows, in total and by language, and the pictures' bytes."""
        root, images = self.build.root, list(self._parts["images"]["files"])
        chosen = messages_config.choose_rows(root, self._clean, self._layout.messages_images)
        size = 0
        for row in messages_config.config_rows(root, self._clean, images, chosen):
            data = len(row["images"][0]["bytes"])
            most = self._layout.image_shard_mb << 20
            shards.add("messages/part", MESSAGES_SCHEMA, row, most, data)
            size += data
        languages = {lang: len(rows) for lang, rows in chosen.items()}
        return {"rows": sum(languages.values()), "languages": languages, "bytes": size}


class Audit:
    """The part with the verdicts by judge, sorted by id; the build's own file has the order of requests."""

    name = "audit"

    def __init__(self, build: Build):
        self.build, self.plan = build, build.plan
        self._audit = build.folder / "toxicity" / "audit.parquet"

    def key(self) -> str:
        if not self._audit.is_file():
            raise ValueError(
                f"{self._audit}: expected a file, found none: run the step toxicity first"
            )
        return digest([VERSION, self.plan.layout.shard_rows, sha256_file(self._audit)])

    def write(self, shards: Shards) -> Row:
        """Write the files of each judge; return the number of verdicts."""
        assert self.plan.toxicity is not None
        most, verdicts = self.plan.layout.shard_rows, 0
        for judge in self.plan.toxicity.judges:
            with tempfile.TemporaryDirectory(prefix=".sort-", dir=self.build.folder) as scratch:
                sort = ExternalSort(Path(scratch))
                for row in read_rows(self._audit):
                    if row["judge"] == judge.name:
                        sort.add(row, "")
                for _, row, _ in sort.rows():
                    shards.add(f"audit/{judge.name}", AUDIT_SCHEMA, row, most)
                    verdicts += 1
        return {"verdicts": verdicts}
