"""Section `layout` of a plan, and the parts of other sections that the layout needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..sources.plan import SourcePlan
from ..toxicity.plan import ToxicityPlan
from ..translation.plan import TranslatorPlan, read_preset
from ..verification.plan import VerificationPlan


@dataclass
class LayoutPlan:
    """The layout and description of the dataset's folder.

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


class BuildPlan(Protocol):
    """The parts of a build's plan that decide its dataset's layout; see `data.plan.Plan`."""

    name: str
    source: SourcePlan
    languages: list[str]
    translator: TranslatorPlan | None
    verification: VerificationPlan | None
    toxicity: ToxicityPlan | None
    layout: LayoutPlan

    @property
    def folder(self) -> Path: ...

    @property
    def source_language(self) -> str: ...

    @property
    def images(self) -> Path | None: ...

    @property
    def run_id(self) -> str: ...


def licence_of(translator: TranslatorPlan | None, layout: LayoutPlan) -> tuple[str, str | None]:
    """Return the dataset's licence in the Hub's form, and a sentence about it.

    Raises ValueError where the plan names a licence that allows what the translator's forbids.
    """
    bound = {}
    if translator is not None:
        for each in [translator, *translator.per_language.values()]:
            if each.preset is not None:
                preset = read_preset(each.preset)
                if "-nc" in preset.licence:
                    bound[each.preset] = preset
    licence = layout.licence
    if licence is not None and bound and "-nc" not in licence:
        name, preset = next(iter(bound.items()))
        raise ValueError(
            f"layout.licence: {licence!r}, but texts made by {name} are {preset.licence}: "
            f"{preset.licence_note} Name a non-commercial licence, or use another translator"
        )
    notes = [layout.licence_note, *(f"{n}: {p.licence_note}" for n, p in bound.items())]
    default = next(iter(bound.values())).licence if bound else "unknown"
    return licence or default, " ".join(note for note in notes if note) or None
