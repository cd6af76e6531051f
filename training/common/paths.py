"""Expand paths that users write: `~`, `$HOME` and other environment variables."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def expand(path: str) -> str:
    """Return `path` with a leading `~` or `~user` and environment variables expanded.

    A path that exists exactly as written is returned unchanged.

    Raises:
        ValueError: if a variable is unset or empty, or a user has no home folder. Otherwise folders
            literally named `$NAME` or `~user` would be created.
    """
    if not (path.startswith("~") or "$" in path) or os.path.lexists(path):
        return path
    for found in _VARIABLE.finditer(path):
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ValueError(
                f"{path!r}: expected the environment variable {name} to be set, found nothing: set it, "
                "or write the full path"
            )
    path = _VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], path)
    if path.startswith("~"):
        whole = os.path.expanduser(path)
        if whole.startswith("~"):
            raise ValueError(f"{path!r}: expected a user with a home folder: write the full path")
        return whole
    return path
