"""Make the card of a dataset from the manifest of its build. No number is written by hand."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from maya_vlm.training.common.languages import NAMES
from maya_vlm.training.data.dataset.manifest_shape import FORMAT, check_manifest

from .model import MARKER, Markdown, read_json, render, write_card

SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a dataset that `maya data build` made, or None for another folder.

    Raises:
        ValueError: the build of the dataset has not finished, or manifest.json is not a JSON object.
    """
    if not (folder / "manifest.json").is_file():
        if (folder / "data").is_dir() and (folder.parent / "assemble").is_dir():
            raise ValueError(
                f"{folder} has no manifest.json: it is not finished; run `maya data build` again"
            )
        return None
    manifest = read_json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        return None
    return check_manifest(manifest, folder / "manifest.json")


def write_dataset_card(folder: Path, repo_id: str | None = None) -> Path:
    """Write README.md of a folder, or of a dataset for the Hub, unless its owner has written one."""
    write_card(folder, lambda: dataset_card(folder, repo_id or "path/to/this/folder"))
    return folder / "README.md"


def dataset_card(folder: Path, repo_id: str) -> str:
    """Return the card of a dataset that `maya data build` made. Raise ValueError for another folder."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(
            f"{folder}: expected the manifest.json of `maya data build`, or a README.md of its own, "
            "found neither: write a README.md that names the dataset's configs"
        )
    counts = manifest["counts"]
    languages = list(counts["languages"])
    conversations = manifest["texts"] == "conversations"
    size = next((name for most, name in SIZES if counts["all"]["ok"] < most), "n>10M")
    metadata: dict[str, Any] = {
        "language": languages,
        "license": manifest["licence"],
        "pretty_name": manifest["name"],
        "task_categories": ["image-text-to-text" if conversations else "image-to-text"],
        "multilinguality": ["multilingual" if len(languages) > 1 else "monolingual"],
        "size_categories": [size],
        "tags": ["maya", "vision-language", "multilingual"],
        "configs": [
            {
                "config_name": name,
                **({"default": True} if number == 0 else {}),
                "data_files": [{"split": "train", "path": about["path"]}],
            }
            for number, (name, about) in enumerate(manifest["configs"].items())
        ],
    }
    if manifest["translation"]:
        metadata["annotations_creators"] = ["machine-generated"]
    checks = sorted({c for each in counts["languages"].values() for c in each["rejected_for"]})
    values = {
        "marker": MARKER,
        "repo_id": repo_id,
        "manifest": manifest,
        "names": {lang: NAMES.get(lang, lang) for lang in languages},
        "total": counts["all"],
        "languages": counts["languages"],
        "checks": checks,
        "default": next(iter(manifest["configs"])),
        "found": _found(manifest["toxicity"]),
        "column": "messages" if conversations else "caption",
        "example": _example(folder, next(iter(manifest["configs"].values()))["path"]),
        "messages": manifest["messages"] if "messages" in manifest["configs"] else None,
    }
    return render("dataset.md.jinja", metadata, values)


def _example(folder: Path, pattern: str) -> Markdown:
    """Return the first row of a config as JSON, without null values; "" without a file of it here."""
    file = min(folder.glob(pattern), default=None)
    if file is None:
        return Markdown("")
    row = next(pq.ParquetFile(file).iter_batches(batch_size=1)).to_pylist()[0]
    kept = {name: value for name, value in row.items() if value is not None}
    text = json.dumps(kept, indent=2, ensure_ascii=False, default=str)
    # A text that closes the block would be read as part of the card.
    return Markdown(text.replace("```", r"\u0060\u0060\u0060"))


def _found(toxicity: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Count rows by decision, stage and category over all languages, the most frequent first."""
    sums: dict[tuple[str, str, str], int] = {}
    for each in (toxicity or {}).get("found", []):
        key = (each["decision"], each["stage"], each["category"])
        sums[key] = sums.get(key, 0) + each["rows"]
    ordered = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    return [{"decision": d, "stage": s, "category": c, "rows": n} for (d, s, c), n in ordered]
