"""Rows of `messages` + `images`, the form that TRL and other trainers read: pictures embedded.

`content` is a plain string, as TRL's vision collator takes it: it puts the row's images in front of the
first user turn.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import pyarrow as pa

from ...rows.parquet import Row
from .caption_requests import request_for

Key = TypeVar("Key")

_TEXT = {"dtype": "string", "_type": "Value"}
# Lists are written as JSON lists, which every release of `datasets` reads; the word "List" only newer ones.
_FEATURES: dict[str, Any] = {
    "id": _TEXT,
    "lang": _TEXT,
    "images": [{"_type": "Image"}],
    "messages": [{"role": _TEXT, "content": _TEXT}],
}
_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("lang", pa.string()),
    pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))),
    pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
]


def messages_schema(**more: str) -> pa.Schema:
    """The columns `id`, `lang`, `images` and `messages`.

    `datasets` and the Hub's viewer learn from the schema's metadata that `images` are pictures.

    Args:
        more: further columns: name -> "string" or "bool".
    """
    features = _FEATURES | {name: {"dtype": kind, "_type": "Value"} for name, kind in more.items()}
    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in more.items()]
    return pa.schema(
        [*_FIELDS, *fields],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


MESSAGES_SCHEMA = messages_schema()


def as_messages(row: Row, requests: Sequence[str]) -> list[Row]:
    """A row with a `caption` or `messages` as a conversation, which begins with a question.

    Args:
        requests: what a caption may be the answer to, in the row's language.
    """
    turns = row.get("messages")
    if turns is None:
        turns = [{"role": "user", "content": ""}, {"role": "assistant", "content": row["caption"]}]
    if turns[0]["content"] == "":
        turns = [{**turns[0], "content": request_for(row["id"], requests)}, *turns[1:]]
    return turns


def share_languages(
    available: Mapping[Key, Collection[str]], languages: Sequence[str]
) -> dict[Key, str]:
    """One language for each key, so that all languages are given about equally often.

    Keys with the fewest languages choose first, and every key takes the language that was given
    least so far. Keys with as many languages choose in the order of `available`.
    """
    given = dict.fromkeys(languages, 0)
    shared = {}
    for key in sorted(available, key=lambda key: len(available[key])):
        lang = min((lang for lang in languages if lang in available[key]), key=given.__getitem__)
        given[lang] += 1
        shared[key] = lang
    return shared


def trl_snippet(path: str, config: str, split: str) -> str:
    """Lines for a card that train on such rows with stock TRL.

    Args:
        path: of the dataset, as Python code.
    """
    return (
        "```python\n"
        "from datasets import load_dataset\n"
        "from trl import SFTConfig, SFTTrainer\n\n"
        f'rows = load_dataset({path}, "{config}", split="{split}")\n'
        'trainer = SFTTrainer("llava-hf/llava-1.5-7b-hf", SFTConfig(max_length=None), '
        "train_dataset=rows)\n"
        "trainer.train()\n"
        "```"
    )
