"""Paths as people write them: `~`, `$HOME` and other variables of the environment."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


def expand(path: str) -> str:
    """`path` with a leading `~` or `~user` and with variables of the environment written out.

    A path that exists as it is written stays as it is.

    Raises ValueError for a variable that is not set or empty, and for a user without a home folder:
    taken literally, they would become folders called `$NAME` and `~user`.
    """
    if not (path.startswith("~") or "$" in path) or os.path.lexists(path):
        return path
    for found in _VARIABLE.finditer(path):
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ValueError(
                f"{path!r}: expected the environment variable {name} to be set, found nothing: set it, "
                "or write the path out"
            )
    path = _VARIABLE.sub(lambda found: os.environ[found[1] or found[2]], path)
    if path.startswith("~"):
        whole = os.path.expanduser(path)
        if whole.startswith("~"):
            raise ValueError(f"{path!r}: expected a user with a home folder: write the path out")
        return whole
    return path
