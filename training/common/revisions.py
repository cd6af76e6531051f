"""`user/name@revision`: models and datasets by folder, or by repository and revision."""

from __future__ import annotations

import re
from pathlib import Path

from .reading import check_text

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def split_revision(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """A name without its revision, and the revision: a branch, tag or commit.

    The revision is behind the name (`user/name@v1`) or beside it. What exists here under the whole
    name is a file or folder, and so is what only a path can be.

    Raises ValueError for an empty name or revision, for two different revisions, and for a revision
    of a file or folder.
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
            f"{name}: revision {revision!r}: expected a repository of the Hub, found a folder, which "
            "has no revisions: leave the revision out"
        )
    if inline not in (None, revision):
        raise ValueError(
            f"{name}: expected one revision, found {inline!r} behind the name and {revision!r} beside it"
        )
    return name, revision


def is_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder, existing or not."""
    return name.startswith((".", "/", "~")) or "\\" in name or name.partition("@")[0].count("/") > 1
