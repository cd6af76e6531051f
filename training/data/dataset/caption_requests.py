"""What a human asks for a caption, where a row has no question of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ...common.schema import read_mapping

# Language -> requests. English has LLaVA's eleven for a brief description (arXiv 2304.08485, table 11); the
# others are ours: short ones of the same meaning.
KNOWN: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("caption_requests.json").read_text(encoding="utf-8")
)
REQUESTS = KNOWN["en"]


def known_requests(lang: str) -> Sequence[str]:
    """Requests in a language, or in English where none are known; `pt-BR` may use those of `pt`."""
    return KNOWN.get(lang) or KNOWN.get(lang.partition("-")[0]) or REQUESTS


def number_of(row_id: str) -> int:
    """A large number that depends on the row's id alone, to draw by."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big")


def request_for(row_id: str, requests: Sequence[str]) -> str:
    """One of the requests, drawn by the row's id."""
    return requests[number_of(row_id) % len(requests)]


def read_requests(path: Path) -> dict[str, list[str]]:
    """Language -> requests, from a YAML file. Raises ValueError for a file of another form."""
    found = read_mapping(path)
    for lang, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}: {lang}: expected a list of texts, found {texts!r:.60}")
    return found
