"""Make the recipe.yaml to publish, without secrets and local paths."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from maya_vlm.training.common.reading import read_yaml
from maya_vlm.training.common.secrets import redact

_HOME = re.compile(r"~[^/\\]*([/\\]|$)|\$\{?\w+\}?[/\\]")


def published_recipe(path: Path) -> str | None:
    """Return the text to publish instead of a recipe, or None if the file can be published unchanged.

    Raises:
        ValueError: the file is not YAML.
    """
    found = read_yaml(path)
    cleaned = _without_paths(redact(found))
    if cleaned == found:
        return None
    return yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True)


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {_without_paths(name): _without_paths(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    """Return the last component of a path outside the run's folder. Return other texts unchanged."""
    place = text.removeprefix("file://")
    windows = PureWindowsPath(place)
    is_elsewhere = place.startswith(("/", "\\\\")) or windows.drive or _HOME.match(place)
    climbs = ".." in windows.parts and "\n" not in place
    if not is_elsewhere and not climbs:
        # A note in the recipe may contain the home folder too.
        return text.replace(str(Path.home()), "~") if Path.home() != Path("/") else text
    # Split at both separators, because the run may have used another operating system.
    parts = [part for part in re.split(r"[/\\]", place) if part not in ("", ".", "..")]
    last = parts[-1] if parts else ""
    return PurePosixPath(last).name or "."
