"""The table of instructions: questions about one picture in one language, with answers."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from .concepts import Concept, Selection
from .draw import ask, draw, join_words, load_prompts
from .negatives import choose_negatives
from .render import Picture
from .sources import SPLITS
from .texts import Keywords

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("lang", pa.string()),
        ("task", pa.string()),
        (
            "messages",
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
        ),
        ("answer", pa.string()),
        ("concept", pa.string()),
        ("style", pa.string()),
        ("seen", pa.bool_()),
        ("sensitive", pa.list_(pa.string())),
        ("about", pa.string()),
    ]
)
# Yes and no are equally frequent; the picture answers every turn.
_CHATS = (
    ("category", "name"),
    ("name", "category"),
    ("category", "yesno-yes"),
    ("category", "yesno-no"),
    ("yesno-no", "name"),
    ("yesno-yes", "category"),
)


def instruct_rows(
    pictures: list[Picture],
    language: str,
    selection: Selection,
    keywords: Keywords,
) -> list[dict[str, Any]]:
    """Return rows of SCHEMA for pictures whose concept has a name in `language`, sorted by id.

    Every picture gets one `name`, one `category` and a pair of `yesno` questions. In training it also gets
    a two-turn `chat` or a `keywords` question (half of the pictures each).
    """
    rows: list[dict[str, Any]] = []
    for style in SPLITS:
        own = [p for p in pictures if p.style == style and language in p.concept.names]
        negatives = choose_negatives([p.concept for p in own], style, language)
        for picture in own:
            rows += _picture_rows(picture, language, selection, keywords, negatives)
    return sorted(rows, key=lambda row: row["id"])


def _picture_rows(
    picture: Picture,
    language: str,
    selection: Selection,
    keywords: Keywords,
    negatives: dict[str, Concept],
) -> list[dict[str, Any]]:
    concept = picture.concept
    words = load_prompts()[language]
    name = concept.names[language]
    negative = negatives.get(concept.id)

    def turn(task: str, place: str) -> tuple[str, str, str | None]:
        """Return question, answer, and the id of the concept that a yes/no question names."""
        purpose = (place, picture.style, concept.id)
        if task == "name":
            return ask(language, "name", *purpose), name, None
        if task == "category":
            answer = selection.category_names[language][concept.category]
            return ask(language, "category", *purpose), answer, None
        if task == "keywords":
            answer = join_words(language, keywords.best(concept.id, name))
            return ask(language, "keywords", *purpose), answer, None
        # Both questions of a pair have the same wording, so the wording reveals nothing.
        about = concept if task == "yesno-yes" else negative
        assert about is not None
        question = ask(language, "yesno", *purpose, name=about.names[language])
        return question, words["yes" if about is concept else "no"], about.id

    def row(key: str, task: str, tasks: tuple[str, ...]) -> dict[str, Any]:
        turns = [turn(part, task if len(tasks) == 1 else f"chat {part}") for part in tasks]
        messages = []
        for question, answer, _ in turns:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": answer})
        return {
            "id": f"{picture.style}/{concept.id}#{key}",
            "image": picture.path,
            "lang": language,
            "task": task,
            "messages": messages,
            "answer": turns[-1][1],
            "concept": concept.id,
            "style": picture.style,
            "seen": concept.seen,
            "sensitive": list(concept.sensitive),
            "about": next((about for _, _, about in turns if about is not None), None),
        }

    rows = [row("name", "name", ("name",)), row("category", "category", ("category",))]
    if negative is not None:
        rows += [row(key, "yesno", (key,)) for key in ("yesno-yes", "yesno-no")]
    if SPLITS[picture.style] == "train":
        wants_keywords = draw(2, "extra", language, picture.style, concept.id)
        if wants_keywords and keywords.best(concept.id, name):
            rows.append(row("keywords", "keywords", ("keywords",)))
        elif negative is not None:
            chat = _CHATS[draw(len(_CHATS), "chat", language, picture.style, concept.id)]
            rows.append(row("chat", "chat", chat))
    return rows
