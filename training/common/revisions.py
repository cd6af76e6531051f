"""Parse names of models and datasets: a folder, or `user/name@revision` on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from .reading import check_text

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split a name into the name without revision, and the revision (branch, tag or commit) or None.

    The revision is part of the name (`user/name@v1`) or given as `revision`. A name that exists locally
    as a whole, or that can only be a path, is not split.

    Raises:
        ValueError: if name or revision is empty, if two revisions differ, or if a file or folder has
            a revision.
    """
    check_text(name, "a name of a folder or repository")
    if not name.strip() or not name.isprintable():
        raise ValueError(f"expected the name of a folder or repository, found {name!r}")
    local = is_path(name) or Path(name).exists()
    inline = None
    if "@" in name and not local:
        name, _, inline = name.partition("@")
        if not name or not inline:
            raise ValueError(f"expected NAME@REVISION, found {name}@{inline}")
    if revision is None:
        return name, inline
    if not revision.strip() or not revision.isprintable():
        raise ValueError(f"{name}: revision: expected a branch, tag or commit, found {revision!r}")
    if local:
        raise ValueError(
            f"{name}: revision {revision!r}: expected a Hub repository, found a local path, which has no "
            "revisions: leave the revision out"
        )
    if inline not in (None, revision):
        raise ValueError(
            f"{name}: expected one revision, found {inline!r} in the name and {revision!r} beside it"
        )
    return name, revision


def is_path(name: str) -> bool:
    """Return whether a name can only be that of a file or folder, existing or not."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.partition("@")[0].count("/") > 1
