"""Random-looking choices that never change, and the questions that they select.

Each choice is a hash of the seed and of the purpose of the choice.
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
    """Return a number in [0, count) that depends only on the seed and `purpose`.

    A hash, unlike `random`, is the same in every Python version and for any order of calls.
    """
    text = "\x1f".join(str(part) for part in (SEED, *purpose))
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def pick(items: Sequence[Item], *purpose: object) -> Item:
    """Return one of `items`."""
    return items[draw(len(items), *purpose)]


def shuffled(items: Sequence[Item], *purpose: object) -> list[Item]:
    """Return `items` in another order. Each item needs a different str()."""
    return sorted(items, key=lambda item: (draw(2**60, *purpose, item), str(item)))


@functools.cache
def load_prompts() -> dict[str, dict[str, Any]]:
    """Return {language: {task: question wordings}}, with the words for yes and no."""
    return json.loads(PROMPTS_FILE.read_text(encoding="utf-8"))


def ask(language: str, task: str, *purpose: object, name: str = "") -> str:
    """Return one question wording of `task`, chosen by `purpose`."""
    question = pick(load_prompts()[language][task], "question", language, task, *purpose)
    return question.replace("{name}", name)


def join_words(language: str, words: list[str]) -> str:
    """Join a list of words as is usual in `language`."""
    return _SEPARATORS.get(language, ", ").join(words)
