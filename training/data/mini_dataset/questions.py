"""The questions of the mini dataset and the words that answer them, in every language."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from .draw import pick

PROMPTS_FILE = Path(__file__).with_name("prompts.json")
_SEPARATORS = {"zh": "、", "ja": "、", "ar": "، ", "ur": "، "}


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
