"""The table of captions: one row per picture and language."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from .concepts import Selection
from .draw import ask
from .render import Picture
from .sources import SOURCES

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("image_sha256", pa.string()),
        ("lang", pa.string()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("keywords", pa.list_(pa.string())),
        ("category", pa.string()),
        ("category_name", pa.string()),
        ("concept", pa.string()),
        ("style", pa.string()),
        ("seen", pa.bool_()),
        ("sensitive", pa.list_(pa.string())),
        ("source", pa.string()),
    ]
)


class Keywords:
    """CLDR keywords per concept; names of held-out concepts are removed from keywords of seen concepts."""

    def __init__(self, selection: Selection, language: str) -> None:
        hidden = {
            concept.names[language].casefold()
            for concept in selection.concepts
            if not concept.seen and language in concept.names
        }
        self.removed = 0
        self._of: dict[str, list[str]] = {}
        self._common: Counter[str] = Counter()
        for concept in selection.concepts:
            words = list(dict.fromkeys(concept.keywords.get(language, ())))
            if concept.seen:
                left = [word for word in words if word.casefold() not in hidden]
                self.removed += len(words) - len(left)
                words = left
                self._common.update(words)
            self._of[concept.id] = words

    def __getitem__(self, concept_id: str) -> list[str]:
        return self._of[concept_id]

    def best(self, concept_id: str, name: str, count: int = 3) -> list[str]:
        """Return up to `count` keywords other than the name; keywords of the most seen concepts first."""
        words = [word for word in self._of[concept_id] if word.casefold() != name.casefold()]
        return sorted(words, key=lambda word: -self._common[word])[:count]


def caption_rows(
    pictures: list[Picture],
    language: str,
    selection: Selection,
    keywords: Keywords,
) -> list[dict[str, Any]]:
    """Return rows of SCHEMA for pictures whose concept has a name in `language`, sorted by id."""
    source = SOURCES["annotations"]
    rows = []
    for picture in pictures:
        concept = picture.concept
        if language not in concept.names:
            continue
        rows.append(
            {
                "id": f"{picture.style}/{concept.id}",
                "image": picture.path,
                "image_sha256": picture.sha256,
                "lang": language,
                "prompt": ask(language, "name", "caption", picture.style, concept.id),
                "text": concept.names[language],
                "keywords": keywords[concept.id],
                "category": concept.category,
                "category_name": selection.category_names[language][concept.category],
                "concept": concept.id,
                "style": picture.style,
                "seen": concept.seen,
                "sensitive": list(concept.sensitive),
                "source": f"{source.title} {source.version}",
            }
        )
    return sorted(rows, key=lambda row: row["id"])
