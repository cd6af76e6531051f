"""Build the mini dataset: `maya data mini --output DIR`."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...common.files import sha256_bytes, write_json
from ..sources.plan import MINI
from . import card, instruct, messages, texts
from .concepts import LANGUAGES, Selection, load_sensitive, select
from .draw import SEED
from .instruct import instruct_rows
from .render import Picture, draw_style
from .sources import SOURCES, SPLITS, needed_sources, open_sources
from .tables import IMAGE_SCHEMA, write_table
from .texts import Keywords, caption_rows

MANIFEST = "manifest.json"
# Picture with samples of all styles. Drawn once from the pinned packages, with fonts for every script.
SAMPLES = MINI / "samples.png"


def build_mini(
    output: str | Path, sources: str | Path | None = None, styles: Sequence[str] | None = None
) -> dict[str, Any]:
    """Build the mini dataset in `output` and return its manifest.

    The build runs in a temporary folder next to `output`, which is renamed at the end, so `output` is
    either complete or unchanged. The same packages and versions of Pillow, resvg-py and pyarrow give the
    same bytes.

    Args:
        output: folder to create. An earlier build is replaced; any other content is an error.
        sources: folder with the npm tarballs; default: fetch them with `npm pack`.
        styles: art styles to include; default: all.

    Raises:
        ValueError: a style is unknown, or a source package is missing or differs from the pinned one.
        FileExistsError: `output` contains something other than a build of this dataset.
        FileNotFoundError: `sources` is not a folder.
    """
    output = Path(output)
    chosen = _check_styles(styles)
    if output.exists() and not (output / MANIFEST).is_file() and any(output.iterdir()):
        raise FileExistsError(
            f"{output}: expected an empty folder or a mini dataset, found no {MANIFEST}: "
            "choose another folder"
        )
    if sources is not None and not Path(sources).is_dir():
        raise FileNotFoundError(f"{sources}: expected a folder with the npm tarballs, found none")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch:
        work = Path(scratch)
        folder = Path(sources) if sources is not None else work / "sources"
        folder.mkdir(exist_ok=True)
        fresh = work / "fresh"
        manifest = _build(fresh, folder, sources is not None, chosen)
        if output.exists():
            output.rename(work / "old")
        fresh.rename(output)
    return manifest


def _check_styles(styles: Sequence[str] | None) -> list[str]:
    unknown = [style for style in styles or () if style not in SPLITS]
    if unknown:
        raise ValueError(f"style: expected one of {', '.join(SPLITS)}, found {unknown[0]!r}")
    return [style for style in SPLITS if styles is None or style in styles]


def _build(output: Path, folder: Path, offline: bool, styles: list[str]) -> dict[str, Any]:
    # 1. Pictures of each style
    archives = open_sources(needed_sources(styles), folder, offline)
    selection = select(archives)
    files: dict[str, dict[str, Any]] = {}
    pictures: dict[str, list[Picture]] = {}
    left_out: dict[str, dict[str, list[str]]] = {}
    for style in styles:
        pictures[style], reasons = draw_style(style, selection.concepts, archives[style])
        left_out[style] = dict(sorted(reasons.items()))
        rows = [_image_row(picture) for picture in pictures[style]]
        _write(output, f"images/{style}.parquet", rows, IMAGE_SCHEMA, files)

    # 2. Captions and questions in each language, the config `messages`
    removed = {}
    balance: dict[str, Any] = {}
    for language in LANGUAGES:
        keywords = Keywords(selection, language)
        removed[language] = keywords.removed
        for split in sorted({SPLITS[style] for style in styles}):
            own = [p for style in styles if SPLITS[style] == split for p in pictures[style]]
            captions = caption_rows(own, language, selection, keywords)
            questions = instruct_rows(own, language, selection, keywords)
            balance.setdefault(split, {})[language] = _balance(questions)
            for kind, rows, schema in (
                ("texts", captions, texts.SCHEMA),
                ("instruct", questions, instruct.SCHEMA),
            ):
                for flagged in (False, True):
                    name = f"{kind}/{language}/{split}-{'flagged' if flagged else 'clean'}.parquet"
                    part = [row for row in rows if is_flagged(row["sensitive"]) == flagged]
                    _write(output, name, part, schema, files)
    embedded = write_messages(output, styles, files)

    # 3. Manifest, licences, card
    manifest = {
        "seed": SEED,
        "sources": [_source_entry(key) for key in archives],
        "tools": {name: version(name) for name in ("pillow", "pyarrow", "resvg-py")},
        "languages": list(LANGUAGES),
        "concepts": _concept_counts(selection),
        "dropped_emoji": selection.dropped,
        "repaired_names": selection.repaired,
        "concepts_without_name": selection.unnamed,
        "keywords_removed_as_held_out_names": removed,
        "styles": {
            style: {
                "split": SPLITS[style],
                "pictures": len(pictures[style]),
                "left_out": {reason: len(ids) for reason, ids in left_out[style].items()},
            }
            for style in styles
        },
        "left_out_concepts": {
            style: {
                reason: ids
                for reason, ids in left_out[style].items()
                if reason not in ("held out", "not in this set")
            }
            for style in styles
        },
        "held_out": sorted(concept.id for concept in selection.concepts if not concept.seen),
        "configs": card.count_configs(files, styles),
        "balance": balance,
        "messages": embedded,
        "files": dict(sorted(files.items())),
    }
    _copy_licences(output, styles)
    write_json(output / MANIFEST, manifest)
    picture = SAMPLES.name if styles == list(SPLITS) else None
    if picture is not None:
        shutil.copyfile(SAMPLES, output / picture)
    text = card.write_card(manifest, selection, picture)
    (output / "README.md").write_text(text, encoding="utf-8")
    (output / "ATTRIBUTION.md").write_text(card.write_attribution(styles), encoding="utf-8")
    return manifest


def write_messages(
    output: Path, styles: Sequence[str], files: dict[str, dict[str, Any]]
) -> dict[str, int]:
    """Write the config `messages` from the other tables in `output`; return the rows by language.

    Args:
        output: folder of the dataset.
        styles: its art styles.
        files: files of the manifest; written files are added.
    """
    counts = dict.fromkeys(LANGUAGES, 0)
    for style in styles:
        rows = messages.message_rows(output, style)
        for row in rows:
            counts[row["lang"]] += 1
        _write(output, f"messages/{SPLITS[style]}-{style}.parquet", rows, messages.SCHEMA, files)
    return counts


def is_flagged(reasons: Sequence[str]) -> bool:
    """Return whether one of the reasons excludes a row from the toxicity-free subset."""
    listed = load_sensitive()
    return any(listed[reason]["toxic"] for reason in reasons)


def _image_row(picture: Picture) -> dict[str, Any]:
    return {
        "image": picture.path,
        "image_sha256": picture.sha256,
        "picture": {"bytes": picture.png, "path": picture.path},
        "style": picture.style,
        "concept": picture.concept.id,
    }


def _write(
    output: Path, name: str, rows: list[dict[str, Any]], schema: Any, files: dict[str, Any]
) -> None:
    path = output / name
    write_table(path, rows, schema)
    data = path.read_bytes()
    files[name] = {"rows": len(rows), "bytes": len(data), "sha256": sha256_bytes(data)}


def _balance(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count the rows of each task, and the questions with the answers yes and no."""
    yesno = [row for row in rows if row["task"] == "yesno"]
    return {
        "tasks": dict(sorted(Counter(row["task"] for row in rows).items())),
        "yes": sum(row["about"] == row["concept"] for row in yesno),
        "no": sum(row["about"] != row["concept"] for row in yesno),
    }


def _source_entry(key: str) -> dict[str, str]:
    return {
        name: getattr(SOURCES[key], name) for name in ("package", "version", "sha512", "licence")
    }


def _concept_counts(selection: Selection) -> dict[str, Any]:
    concepts = selection.concepts
    reasons = Counter(reason for concept in concepts for reason in concept.sensitive)
    return {
        "all": len(concepts),
        "held_out": sum(not concept.seen for concept in concepts),
        "flagged": sum(concept.toxic for concept in concepts),
        "by_category": dict(Counter(concept.category for concept in concepts)),
        "by_reason": dict(sorted(reasons.items())),
    }


def _copy_licences(output: Path, styles: list[str]) -> None:
    folder = output / "LICENSES"
    folder.mkdir()
    for name in sorted({SOURCES[key].licence for key in needed_sources(styles)}):
        shutil.copyfile(MINI / "LICENSES" / f"{name}.txt", folder / f"{name}.txt")
