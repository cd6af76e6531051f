"""Read and check the YAML front matter of Hub cards (README.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .names import stays_inside
from .reading import parse_yaml, read_text, read_yaml

_CARD = re.compile(r"\s*---[ \t]*\r?\n(.*?)(?<=\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def card_metadata(text: str, where: str) -> dict[str, Any]:
    """Return the YAML front matter of a Hub card (README.md); an empty dict without one.

    Raises:
        ValueError: as `parse_yaml`, and if the YAML is not a mapping.
    """
    match = _CARD.match(text)
    found = parse_yaml(match[1], f"{where}: YAML front matter") if match else None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ValueError(
            f"{where}: YAML front matter: expected a mapping, found {type(found).__name__}: "
            "correct the card"
        )
    return found


def check_cards(folder: Path) -> None:
    """Raise ValueError if a card of a dataset folder names `data_files` outside of that folder.

    `datasets` reads the YAML of README.md and of .huggingface.yaml, and opens any file that it names.
    """
    card, other = folder / "README.md", folder / ".huggingface.yaml"
    heads = [(card, card_metadata(read_text(card), str(card)))] if card.is_file() else []
    if other.is_file():
        heads.append((other, read_yaml(other)))
    for file, head in heads:
        for pattern in _texts(head.get("configs")) if isinstance(head, dict) else ():
            if pattern != "." and ("://" in pattern or not stays_inside(pattern)):
                raise ValueError(
                    f"{file}: data_files: expected files below {folder}, found {pattern!r}: correct "
                    "the card"
                )


def _texts(configs: Any) -> Iterator[str]:
    """Yield all strings under `data_files` and `data_dir` of a card's configs, at any depth."""
    waiting = [
        config[name]
        for config in (configs if isinstance(configs, list) else [])
        if isinstance(config, dict)
        for name in ("data_files", "data_dir")
        if name in config
    ]
    while waiting:
        found = waiting.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
