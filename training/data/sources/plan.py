"""Section `source` of a plan: where images and texts come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...common.languages import LANGUAGES
from ...common.schema import to_dict
from ...rows.hub import HubFiles
from .records import COLUMNS

MINI = Path(__file__).resolve().parents[1] / "mini"


@dataclass
class SourcePlan:
    """Where images and texts come from.

    kind: `llava` for files of rows: JSON, JSON lines (also .gz) or parquet, such as LLaVA-Pretrain, LLaVA's
        665K, PALO's mix; `hub` for a Hub dataset or a local folder of parquet, JSON lines or CSV; `folder` for
        pictures with captions (metadata.jsonl, metadata.csv or a .txt beside each); `mini` for the
        mini dataset's captions.
    path: file, files, folder or repository; the mini dataset's default is the one that ships.
    data_files: of a `hub` source, the one file that has the rows, such as LLaVA's JSON.
    images: folder, .zip or .tar of the pictures, here or, for a `hub` source, an archive in its repository;
        without it, pictures are named but not looked at.
    follow_links: take pictures and captions that links in a folder lead to outside of it. What is built may be
        published, and whoever made the folder may have linked to any file of this machine.
    language: BCP-47 code of the rows that do not say theirs; `detect` asks each text. Without it a
        file's name may say it (maya_russian_...json).
    detect_among: the languages that `detect` chooses from.
    task: `caption` (one question and answer: the answer is the caption) or `conversation`; by
        default what a row looks like.
    config, split, revision: of a Hub dataset. `split` also of the mini dataset: one or more of its
        three, separated by commas.
    columns: which column is which field (id, image, image_sha256, lang, text, turns), where it is
        not the usual name or several could be it.
    duplicates: rows with the (id, lang) of another: `refuse` the source, `list` all but the first
        in refused.jsonl, or `number` them: the second `x` becomes `x#2`. LLaVA's instruct mixes
        use an image's id for several conversations.
    extract_images: write pictures that stand inside of rows to `images/` of the build, named by
        their SHA-256; needed where they are to be judged or published.
    """

    kind: Literal["mini", "llava", "hub", "folder"]
    path: str | list[str] | None = None
    images: str | None = None
    language: str | None = None
    detect_among: list[str] = field(default_factory=lambda: list(LANGUAGES))
    task: Literal["caption", "conversation"] | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    duplicates: Literal["refuse", "list", "number"] = "refuse"
    extract_images: bool = False
    data_files: str | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        if self.kind == "mini":
            self.path = self.path or str(MINI)
            self.language = self.language or "en"
            self.images = self.images or str(self.paths[0])
            self.split = self.split or "train,validation,test"
        elif self.kind == "folder":
            self.images = self.images or (self.paths[0] if self.path else None)
        elif self.kind == "hub":
            self.split = self.split or "train"
        if self.images is not None and not self.images.strip():
            raise ValueError(
                f"source.images: expected a folder, .zip or .tar of pictures, found {self.images!r}"
            )
        if self.path is None:
            raise ValueError(f"source.path: a source of kind {self.kind} needs one")
        if self.kind != "llava" and len(self.paths) != 1:
            raise ValueError(f"source.path: a source of kind {self.kind} has one path")
        if unknown := sorted(self.columns.keys() - COLUMNS.keys()):
            raise ValueError(f"source.columns: unknown {unknown}; known fields: {list(COLUMNS)}")
        if self.extract_images and self.kind != "hub":
            raise ValueError("source.extract_images: only rows of kind hub hold their pictures")
        if self.data_files is not None and self.kind != "hub":
            raise ValueError("source.data_files: only a source of kind hub has several files")

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path or []

    def pictures(self) -> Path | None:
        """Return the place of the pictures that rows name, or None.

        An archive of a Hub repository is fetched into Hugging Face's cache. Raises FileNotFoundError,
        ConnectionError.
        """
        if self.images is None:
            return None
        remote = self.kind == "hub" and not Path(self.paths[0]).exists()
        if remote and not Path(self.images).exists():
            return HubFiles(self.paths[0], self.revision).fetch(self.images)
        return Path(self.images)


# Fields that plans had not always are no part of hashes where they say nothing: old work is continued.
_LATER = ("data_files", "follow_links")


def plan_for_hash(plan: Any) -> dict[str, Any]:
    """Return a source plan, or a plan with one, as plain values to hash."""
    values = to_dict(plan)
    source = values.get("source", values)
    for name in _LATER:
        if not source[name]:
            del source[name]
    return values
