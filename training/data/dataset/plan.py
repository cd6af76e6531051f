"""Section `layout` of a plan, and the fields of a plan that the layout reads."""

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

    images: `paths` publishes only paths and SHA-256 of the pictures; `bytes` also publishes the pictures,
        in `images/`. Pictures from the web belong to others: check what their licence allows.
    shard_rows: maximum rows per file.
    image_shard_mb: maximum MiB of pictures per file.
    messages_images: maximum number of pictures in the config `messages`, which embeds each with one clean
        text as `messages` + `images`, for TRL and the Hub's viewer. 0 leaves the config out; so does
        `images: paths`.
    licence: licence of the dataset, as a Hub identifier (cc-by-4.0). Default: the licence that the
        translator imposes on its texts (Aya: cc-by-nc-4.0), else `unknown`.
    licence_note: sentence for the card about the licence: who owns the pictures and texts.
    description: first paragraph of the card.
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
    """The fields of a build's plan that the layout reads; see `data.plan.Plan`."""

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
    """Return the dataset's licence as a Hub identifier, and a sentence about it.

    Raises:
        ValueError: the plan's licence allows uses that the translator's licence forbids.
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
            f"layout.licence: expected a non-commercial licence, found {licence!r}: texts made by {name} "
            f"are {preset.licence}. {preset.licence_note} Set such a licence, or use another translator"
        )
    notes = [layout.licence_note, *(f"{n}: {p.licence_note}" for n, p in bound.items())]
    default = next(iter(bound.values())).licence if bound else "unknown"
    return licence or default, " ".join(note for note in notes if note) or None
