"""Permissions of weights: safetensors creates files that only their owner can read."""

from __future__ import annotations

import os
from pathlib import Path


def ordinary_permissions(file: Path) -> None:
    """Give `file` the permissions that the process gives to every other file that it creates."""
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)
