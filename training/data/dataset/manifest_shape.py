"""The shape of a dataset's manifest.json and of the notes about its parts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...common.languages import check_language
from ...common.names import folded, stays_inside
from ...common.shapes import check_shape
from ...common.telling import one_line

FORMAT = "maya-dataset-1"

NUMBERS = {...: int}
TOTALS = dict.fromkeys(("expected", "ok", "rejected", "failed", "clean", "review", "flagged"), int)
FILES = {...: {"rows": int, "bytes": int, "sha256": str}}
# Shapes of the counts of each part.
IMAGES = {"rows": int, "images": int, "bytes": int}
MESSAGES = {"rows": int, "languages": NUMBERS, "bytes": int}
AUDIT = {"verdicts": int}
LANGUAGE = {
    **TOTALS,
    "rejected_for": NUMBERS,
    "flags": NUMBERS,
    "translators": [
        {
            "model": str,
            "model_revision": (str, None),
            "prompt_id": (str, None),
            "parameters": (str, None),
            "rows": int,
        }
    ],
}
SUMMARY = {
    "policy": str,
    "policy_sha": str,
    "unjudged": [str],
    "found": [{"decision": str, "stage": str, "category": str, "lang": str, "rows": int}],
    "verdicts": [{"judge": str, "label": str, "verdicts": int}],
    "failures": NUMBERS,
}
_SOURCE = {
    "name": str,
    **dict.fromkeys(("config", "split", "revision"), (str, None)),
    **dict.fromkeys(("read", "rows", "refused"), int),
    "refused_for": NUMBERS,
}
_TRANSLATION = {
    "retries": int,
    "models": [{"model": str, "revision": (str, None), "rows": NUMBERS, "parameters": NUMBERS}],
}
_VERIFICATION = {
    "hard": [str],
    "quality_model": (str, None),
    "back_translation_model": (str, None),
}
_JUDGE = {
    "name": str,
    "stage": str,
    "model": (str, None),
    "revision": (str, None),
    "languages": ([str], None),
}
MANIFEST = {
    "name": str,
    "description": (str, None),
    "texts": str,
    "source_language": str,
    "licence": str,
    "licence_note": (str, None),
    "counts": {"all": TOTALS, "languages": {...: LANGUAGE}},
    "images": (IMAGES, None),
    "messages": (MESSAGES, None),
    "configs": {...: {"path": str, "rows": int}},
    "source": _SOURCE,
    "translation": (_TRANSLATION, None),
    "verification": (_VERIFICATION, None),
    "toxicity": ({**SUMMARY, "judges": [_JUDGE]}, None),
    "files": FILES,
}
_CONFIG = re.compile(r"[\w.-]{1,100}", re.ASCII)


def check_manifest(manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check a manifest of format FORMAT from an untrusted author, and return it.

    Raises:
        ValueError: names file and key: wrong shape, an invalid language, or a file name that leads out of
            the folder.
    """
    # Manifests written before the config `messages` existed lack its key.
    manifest = {"messages": None, **manifest}
    check_shape(manifest, MANIFEST, str(path))
    languages = manifest["counts"]["languages"]
    check_languages(languages, f"{path}: counts.languages")
    for number in _numbers(manifest):
        if number < 0:
            raise ValueError(f"{path}: expected counts of 0 or more, found {number}")
    if not manifest["configs"]:
        raise ValueError(f"{path}: configs: expected at least one, found none")
    for name, about in manifest["configs"].items():
        if not _CONFIG.fullmatch(name):
            raise ValueError(
                f"{path}: configs: expected names of letters, digits and . _ -, found "
                f"{one_line(repr(name), 60)}"
            )
        _check_inside(about["path"], f"{path}: configs.{name}.path")
    for name in manifest["files"]:
        _check_inside(name, f"{path}: files")
    return manifest


def check_languages(languages: Iterable[str], where: str) -> None:
    """Raise ValueError for an invalid language, or for two languages that would share a folder."""
    seen: dict[str, str] = {}
    for lang in languages:
        check_language(lang, where)
        other = seen.setdefault(folded(lang), lang)
        if other != lang:
            raise ValueError(
                f"{where}: expected one spelling per language, found {other!r} and {lang!r}: use the same "
                "for both"
            )


def _check_inside(name: str, where: str) -> None:
    if not stays_inside(name):
        raise ValueError(
            f"{where}: expected a path below the dataset's folder, found {one_line(repr(name), 60)}"
        )


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int) else []
