"""Names of strangers that become parts of paths: of datasets, languages, files, judges, splits.

One component is either cleaned (`file_name`) or refused (`check_component`); a path with folders in it,
such as a picture's, is refused where it leads out of its folder (`stays_inside`). Names that a file system
may take for one, because they differ by case or Unicode form only, are told by `folded`.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath, PureWindowsPath

from .telling import one_line, printable

# Bytes; file systems take 255, and endings are added.
LONGEST = 150
_SPECIAL = re.compile(r'[/\\:*?"<>|]')
# Names of devices on Windows, whatever their ending.
_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def is_component(name: str) -> bool:
    """Whether a name is one component of a path, the same on every system."""
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
    """Raise ValueError, naming `where`, for a name that is no component of a path."""
    if not is_component(name):
        raise ValueError(
            f"{where}: expected a name without slashes, colons, control characters or a dot at its end, "
            f"of at most {LONGEST} bytes, found {one_line(repr(name), 60)}"
        )


def file_name(name: str, otherwise: str) -> str:
    """A name as one component of a path that is no hidden file; `otherwise` if nothing of it is left."""
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
    """Whether a relative path with / in it stays in the folder that it is joined to, on any system.

    Links are not looked at.
    """
    path, windows = PurePosixPath(name), PureWindowsPath(name)
    outside = path.is_absolute() or windows.drive or windows.root or name != printable(name)
    return bool(path.parts) and not outside and ".." not in (*path.parts, *windows.parts)


def folded(name: str) -> str:
    """The same text for names that a file system may take for one: by case, or by Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
