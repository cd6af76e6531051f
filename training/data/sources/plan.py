"""Section `source` of a plan: the origin of images and texts."""

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
    """The origin of images and texts.

    kind: `llava` for files of rows, as JSON, JSON lines (also .gz) or parquet: LLaVA-Pretrain, LLaVA's
        665K, PALO's mix; `hub` for a Hub dataset or a local folder of parquet, JSON lines or CSV; `folder` for
        pictures with captions (metadata.jsonl, metadata.csv, or one .txt per picture); `mini` for the
        captions of the mini dataset.
    path: file, files, folder or repository; default for `mini`: the shipped mini dataset.
    data_files: for a `hub` source, the one file with rows, for example LLaVA's JSON.
    images: folder, .zip or .tar of the pictures; for a `hub` source also an archive in its repository.
        Without it, rows keep the names of pictures, and the pictures are not checked.
    follow_links: follow links in a folder that lead out of it. The build may be published, and the
        folder's author may have linked to any file of this machine.
    language: BCP-47 code of rows that do not give theirs; `detect` identifies each text. By default
        the file name may give it (maya_russian_...json).
    detect_among: candidate languages for `detect`.
    task: `caption` (one question and answer; the answer is the caption) or `conversation`. Default:
        decided by each row.
    config, split, revision: of a Hub dataset. For `mini`, `split` is one or more of its three splits,
        separated by commas.
    columns: field (id, image, image_sha256, lang, text, turns) -> column, where the name is unusual
        or several columns fit.
    duplicates: for rows with an (id, lang) that occurred before: `refuse` rejects the source, `list`
        drops them and lists them in refused.jsonl, `number` renames the second `x` to `x#2`. LLaVA's
        instruct mixes use an image's id for several conversations.
    extract_images: write pictures that are embedded in rows to `images/` of the build, named by their
        SHA-256; required to judge or publish them.
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
            raise ValueError(f"source.path: expected a path for kind {self.kind}, found none")
        if self.kind != "llava" and len(self.paths) != 1:
            raise ValueError(f"source.path: expected one path for kind {self.kind}")
        if unknown := sorted(self.columns.keys() - COLUMNS.keys()):
            raise ValueError(f"source.columns: expected fields of {list(COLUMNS)}, found {unknown}")
        if self.extract_images and self.kind != "hub":
            raise ValueError(
                "source.extract_images: expected kind hub, whose rows may embed pictures"
            )
        if self.data_files is not None and self.kind != "hub":
            raise ValueError("source.data_files: expected kind hub, which may have several files")

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path or []

    def pictures(self) -> Path | None:
        """Return the place of the pictures that rows name, or None.

        An archive in a Hub repository is downloaded to Hugging Face's cache.

        Raises:
            FileNotFoundError: the Hub repository has no such file.
            ConnectionError: the Hub cannot be reached.
        """
        if self.images is None:
            return None
        remote = self.kind == "hub" and not Path(self.paths[0]).exists()
        if remote and not Path(self.images).exists():
            return HubFiles(self.paths[0], self.revision).fetch(self.images)
        return Path(self.images)


# Later fields of the plan: their defaults are omitted from hashes, so that earlier builds continue.
_LATER = ("data_files", "follow_links")


def plan_for_hash(plan: Any) -> dict[str, Any]:
    """Return a source plan, or a plan that contains one, as plain values for a hash."""
    values = to_dict(plan)
    source = values.get("source", values)
    for name in _LATER:
        if not source[name]:
            del source[name]
    return values
