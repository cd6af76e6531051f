"""Choices that look random and never change, and the questions that are drawn so.

Each choice is a hash of the seed and of what it is for.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

SEED = 20261121
PROMPTS_FILE = Path(__file__).with_name("prompts.json")
_SEPARATORS = {"zh": "、", "ja": "、", "ar": "، ", "ur": "، "}
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


@functools.cache
def load_prompts() -> dict[str, dict[str, Any]]:
    """language -> task -> question variants, and the words for yes and no."""
    return json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))


def ask(language: str, task: str, *purpose: object, name: str = "") -> str:
    """One of the question variants of `task`; `purpose` decides which."""
    question = pick(load_prompts()[language][task], "question", language, task, *purpose)
    return question.replace("{name}", name)


def join_words(language: str, words: list[str]) -> str:
    """A list of words as `language` writes one."""
    return _SEPARATORS.get(language, ", ").join(words)
