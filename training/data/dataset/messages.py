"""Rows of `messages` + `images` with embedded pictures, the format that TRL and other trainers read.

`content` is a plain string: TRL's vision collator expects that, and inserts the row's images before the first
user turn. If a row has no question, a request for a caption is put before its text.
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
# Write lists as JSON lists: every release of `datasets` reads them; only newer ones know the word "List".
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
    """Return the schema of `id`, `lang`, `images` and `messages`.

    The schema's metadata tells `datasets` and the Hub's viewer that `images` are pictures.

    Args:
        more: further columns, as name -> "string" or "bool".
    """
    features = _FEATURES | {name: {"dtype": kind, "_type": "Value"} for name, kind in more.items()}
    fields = [pa.field(name, pa.type_for_alias(kind)) for name, kind in more.items()]
    return pa.schema(
        [*_FIELDS, *fields],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


MESSAGES_SCHEMA = messages_schema()

# Language -> requests. English: LLaVA's eleven requests for a brief description (arXiv 2304.08485, table 11).
# Other languages: our own short requests of the same meaning.
KNOWN_REQUESTS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("caption_requests.json").read_text(encoding="utf-8")
)
REQUESTS = KNOWN_REQUESTS["en"]


def known_requests(lang: str) -> Sequence[str]:
    """Return the requests in a language; `pt-BR` falls back to `pt`, any other to English."""
    return KNOWN_REQUESTS.get(lang) or KNOWN_REQUESTS.get(lang.partition("-")[0]) or REQUESTS


def number_of(row_id: str) -> int:
    """Return a large number derived from the row's id only, for reproducible random choices."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8], "big")


def request_for(row_id: str, requests: Sequence[str]) -> str:
    """Return one request, chosen by the row's id."""
    return requests[number_of(row_id) % len(requests)]


def read_requests(path: Path) -> dict[str, list[str]]:
    """Read {language: requests} from a YAML file.

    Raises:
        ValueError: the file has another shape.
    """
    found = read_mapping(path)
    for lang, texts in found.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}: {lang}: expected a list of texts, found {texts!r:.60}")
    return found


def as_messages(row: Row, requests: Sequence[str]) -> list[Row]:
    """Return a row with `caption` or `messages` as a conversation that begins with a question.

    Args:
        row: a row of the dataset.
        requests: questions in the row's language that a caption may answer.
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
    """Assign one language to each key, so that all languages are about equally frequent.

    Keys with the fewest languages choose first; ties keep the order of `available`. Each key takes its
    language with the fewest assignments so far.
    """
    given = dict.fromkeys(languages, 0)
    shared = {}
    for key in sorted(available, key=lambda key: len(available[key])):
        lang = min((lang for lang in languages if lang in available[key]), key=given.__getitem__)
        given[lang] += 1
        shared[key] = lang
    return shared


def trl_snippet(path: str, config: str, split: str) -> str:
    """Return Markdown code for a card that trains on these rows with stock TRL.

    Args:
        path: path of the dataset, as a Python expression.
        config: name of the config.
        split: name of the split.
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
