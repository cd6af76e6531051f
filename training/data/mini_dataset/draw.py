"""Choices that look random and never change: each is a hash of the seed and of what it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

SEED = 20261121
Item = TypeVar("Item")


def draw(count: int, *purpose: object) -> int:
    """A number in [0, count) that depends on the seed and `purpose` alone.

    Hashing, not `random`: the same on every Python version and in any order of calls.
    """
    text = "\x1f".join(str(part) for part in (SEED, *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def pick(items: Sequence[Item], *purpose: object) -> Item:
    """One of `items`."""
    return items[draw(len(items), *purpose)]


def shuffled(items: Sequence[Item], *purpose: object) -> list[Item]:
    """`items` in another order. Their str() must tell them apart."""
    return sorted(items, key=lambda item: (draw(2**60, *purpose, item), str(item)))
