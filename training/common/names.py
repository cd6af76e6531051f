"""Check untrusted names that become parts of paths: of datasets, languages, files, judges, splits.

A single component is cleaned (`file_name`) or refused (`check_component`). A path with folders, such as
an image's, is refused if it leaves its folder (`stays_inside`). `folded` finds names that a file system
may treat as equal because they differ only by case or Unicode form.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

from .telling import one_line, printable

# In bytes. File systems allow 255; extensions are added later.
LONGEST = 150
_SPECIAL = re.compile(r'[/\\:*?"<>|]')
# Device names on Windows, with any extension.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def is_component(name: str) -> bool:
    """Return whether a name is a valid single path component on every system."""
    return (
        bool(name)
        and name == printable(name)
        and not _SPECIAL.search(name)
        and not _DEVICES.fullmatch(name)
        and name.strip(" ") == name
        and not name.startswith("..")
        and not name.endswith(".")
        and len(name.encode()) <= LONGEST
    )


def check_component(name: str, where: str) -> None:
    """Raise ValueError, naming `where`, unless the name is a valid single path component."""
    if not is_component(name):
        raise ValueError(
            f"{where}: expected a name without slashes, colons, control characters or a final dot, "
            f"of at most {LONGEST} bytes, found {one_line(repr(name), 60)}"
        )


def file_name(name: str, otherwise: str) -> str:
    """Return a name cleaned to one path component, not hidden; `otherwise` if nothing is left of it."""
    letters = (letter if letter == printable(letter) else "-" for letter in name)
    cleaned = _SPECIAL.sub("-", "".join(letters))
    cleaned = re.sub("-{2,}", "-", cleaned)[:LONGEST]
    while len(cleaned.encode()) > LONGEST:
        cleaned = cleaned[:-1]
    cleaned = cleaned.lstrip(".- ").rstrip(". -")
    if _DEVICES.fullmatch(cleaned):
        cleaned = f"{otherwise}-{cleaned}"
    return cleaned or otherwise


def stays_inside(name: str) -> bool:
    """Return whether a relative path (separator /) stays below the folder it is joined to, on any system.

    Symbolic links are not followed.
    """
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = path.is_absolute() or windows.drive or windows.root or name != printable(name)
    return bool(path.parts) and not outside and ".." not in (*path.parts, *windows.parts)


def folded(name: str) -> str:
    """Return one key for names that a file system may treat as equal: case and Unicode form removed."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
