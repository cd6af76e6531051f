"""Rows of `messages` + `images`, the form that TRL and other trainers read: pictures embedded.

`content` is a plain string, as TRL's vision collator takes it: it puts the row's images in front of the
first user turn. A row without a question of its own has a request for a caption in front of its text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from ...common.schema import read_mapping
from ...rows.parquet import Row

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

# Language -> requests. English has LLaVA's eleven for a brief description (arXiv 2304.08485, table 11); the
# others are ours: short ones of the same meaning.
KNOWN_REQUESTS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("caption_requests.json").read_text(encoding="utf-8")
)
REQUESTS = KNOWN_REQUESTS["en"]


def known_requests(lang: str) -> Sequence[str]:
    """Return the requests in a language, or in English if there are none; `pt-BR` may use those of `pt`."""
    return KNOWN_REQUESTS.get(lang) or KNOWN_REQUESTS.get(lang.partition("-")[0]) or REQUESTS


def number_of(row_id: str) -> int:
    """Return a large number that only the row's id decides, for random choices."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big")


def request_for(row_id: str, requests: Sequence[str]) -> str:
    """Return one of the requests, chosen by the row's id."""
    return requests[number_of(row_id) % len(requests)]


def read_requests(path: Path) -> dict[str, list[str]]:
    """Read language -> requests from a YAML file. Raises ValueError for a file of another form."""
    found = read_mapping(path)
    for lang, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}: {lang}: expected a list of texts, found {texts!r:.60}")
    return found


def as_messages(row: Row, requests: Sequence[str]) -> list[Row]:
    """Return a row with a `caption` or `messages` as a conversation that begins with a question.

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
    """Return one language for each key, so that all languages are about equally frequent.

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
    """Return lines for a card that train on these rows with stock TRL.

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
