"""`dataset/manifest.json`: contents, origin and licence of a dataset's folder.

The dataset card is generated from this file, and publishing compares the folder with it.
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...common.files import write_json
from ...common.reading import read_json, read_json_mapping
from ...common.shapes import check_shape
from ...common.telling import one_line
from ...rows.parquet import Row
from .manifest_shape import FORMAT, SUMMARY, check_manifest
from .plan import BuildPlan, licence_of

# Folders that contain data files and nothing else.
FOLDERS = ("data", "rejected", "images", "messages", "audit")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished dataset.

    Raises:
        ValueError: the folder has no manifest.json, or it has another format.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: expected the manifest.json of `maya data build`, found none: name a finished dataset"
        ) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected the manifest of `maya data build` (format {FORMAT}), found "
            f"{one_line(repr(manifest), 60)}"
        )
    return check_manifest(manifest, path)


def configs(files: dict[str, Row], languages: list[str], judged: bool) -> dict[str, Row]:
    """Return {config name: {"path": glob of its files, "rows": number}} for configs with rows.

    All configs are globs over the same files, so nothing is stored twice, except in `messages`, which
    combines texts and pictures of other configs. Without judges, no config is named toxicity-free. The
    first config is the default.
    """
    wanted = {"toxicity_free": "data/*/clean-*.parquet"} if judged else {}
    wanted["all"] = "data/*/*.parquet"
    for lang in languages:
        wanted[lang] = f"data/{lang}/*.parquet"
        if judged:
            wanted[f"{lang}_toxicity_free"] = f"data/{lang}/clean-*.parquet"
    wanted |= {
        "images": "images/*.parquet",
        "messages": "messages/*.parquet",
        "toxicity_audit": "audit/*.parquet",
        "rejected": "rejected/*.parquet",
    }
    found = {
        name: {"path": pattern, "rows": sum(files[f]["rows"] for f in matching(files, pattern))}
        for name, pattern in wanted.items()
    }
    return {name: about for name, about in found.items() if about["rows"]}


def matching(files: dict[str, Row], pattern: str) -> list[str]:
    """Return the names that match a glob; a star does not match a slash."""
    depth = pattern.count("/")
    return [name for name in files if name.count("/") == depth and fnmatchcase(name, pattern)]


def write_manifest(
    plan: BuildPlan,
    root: Path,
    source: dict[str, Any],
    parts: dict[str, dict[str, Any]],
    conversations: bool,
) -> dict[str, Any]:
    """Write the manifest of finished parts, and delete data files that belong to no part.

    Args:
        plan: plan of the build.
        root: folder of the dataset.
        source: manifest of the source step.
        parts: "images", "messages", "audit" and each language -> {"files", "counts"}.
        conversations: whether the texts are conversations.
    """
    files = {
        name: about for part in parts.values() for name, about in sorted(part["files"].items())
    }
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*"), reverse=True):
            if path.is_dir():
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.relative_to(root).as_posix() not in files:
                path.unlink()
    languages = {
        name: part["counts"] for name, part in parts.items() if "expected" in part["counts"]
    }
    licence, note = licence_of(plan.translator, plan.layout)
    totals = {
        name: sum(counts[name] for counts in languages.values())
        for name in ("expected", "ok", "rejected", "failed", "clean", "review", "flagged")
    }
    manifest = {
        "format": FORMAT,
        "name": plan.name,
        "description": plan.layout.description,
        "texts": "conversations" if conversations else "captions",
        "source_language": plan.source_language,
        "licence": licence,
        "licence_note": note,
        "counts": {"all": totals, "languages": languages},
        "images": parts["images"]["counts"] if "images" in parts else None,
        "messages": parts["messages"]["counts"] if "messages" in parts else None,
        "configs": configs(files, list(languages), plan.toxicity is not None),
        "source": _source(plan, source),
        "translation": _translation(plan, languages),
        "verification": _verification(plan),
        "toxicity": _toxicity(plan),
        "files": files,
    }
    write_json(root / "manifest.json", manifest)
    return manifest


def _source(plan: BuildPlan, source: dict[str, Any]) -> Row:
    # Omit local folders: only the last part of the path may mean something elsewhere.
    kept = ("read", "rows", "refused", "refused_for", "notes", "languages", "tasks")
    named = [
        p if plan.source.kind == "hub" and not Path(p).exists() else Path(p).name
        for p in plan.source.paths
    ]
    about = {name: getattr(plan.source, name) for name in ("kind", "config", "split", "revision")}
    return {"name": ", ".join(named), **about, **{name: source[name] for name in kept}}


def _translation(plan: BuildPlan, languages: dict[str, Row]) -> Row | None:
    """Return the models with their row counts, and every prompt by its id."""
    if plan.translator is None:
        return None
    models: dict[tuple[str, str | None], Row] = {}
    for lang, counts in languages.items():
        for each in counts["translators"]:
            key = (each["model"], each["model_revision"])
            about = models.setdefault(
                key,
                {"model": key[0], "revision": key[1], "rows": Counter(), "parameters": Counter()},
            )
            about["rows"][lang] += each["rows"]
            about["parameters"][each["parameters"]] += each["rows"]
    prompts = {}
    for lang in plan.languages:
        for prompt in plan.translator.for_language(lang).prompts(plan.source_language, lang):
            if prompt is not None:
                said = prompt.messages("{text}")
                prompts[prompt.id] = {"lang": lang, "name": prompt.name, "messages": said}
    return {
        "retries": plan.translator.retries,
        "models": [
            {**about, "rows": dict(about["rows"]), "parameters": dict(about["parameters"])}
            for about in models.values()
        ],
        "prompts": prompts,
    }


def _verification(plan: BuildPlan) -> Row | None:
    if plan.verification is None:
        return None
    quality, back = plan.verification.quality, plan.verification.back_translation
    return {
        "hard": [c for c in plan.verification.checks.hard if c not in plan.verification.checks.off],
        "off": list(plan.verification.checks.off),
        "quality_model": quality and quality.model,
        "quality_revision": quality and quality.model_revision,
        "back_translation_model": back and back.endpoint.model,
    }


def _toxicity(plan: BuildPlan) -> Row | None:
    if plan.toxicity is None:
        return None
    path = plan.folder / "toxicity" / "summary.json"
    try:
        summary = read_json_mapping(path)
        check_shape(summary, SUMMARY, str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}: run the step toxicity again") from None
    judges = [
        {
            "name": judge.name,
            "stage": judge.stage,
            "model": judge.endpoint.model if judge.endpoint else judge.model or judge.function,
            "revision": judge.endpoint.model_revision if judge.endpoint else judge.revision,
            "languages": judge.languages,
        }
        for judge in plan.toxicity.judges
    ]
    kept = ("policy", "policy_sha", "unjudged", "found", "verdicts", "failures")
    return {"judges": judges, **{name: summary[name] for name in kept}}
