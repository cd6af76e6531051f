"""A rubric, which is the judge's prompt and the parser of its reply; and the cases it is applied to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from PIL.Image import Image

from ...common.reading import parse_json
from ..protocol import Pictures


@dataclass(frozen=True)
class Rubric:
    """The prompt of a judge and the parser of its reply.

    Args:
        name: name of the rubric.
        version: raised with every change that can change a judgement.
        source: the paper or script that the rubric follows.
        template: the user's turn, with the names of a case's fields in braces.
        read: reply -> the judgement, None for a reply without one.
        expects: description of the replies that `read` accepts.
        system: the system turn.
        temperature, max_tokens: sampling temperature and token limit of the reply.
        schema: JSON schema of the reply, for servers that can constrain a reply to one.
        tries: how often a case is asked at most, until its reply can be parsed.
        warmer: increase of the temperature with each further try.
    """

    name: str
    version: int
    source: str
    template: str
    read: Callable[[str], Any]
    expects: str
    system: str | None = None
    temperature: float = 0.0
    max_tokens: int = 1024
    schema: Mapping[str, Any] | None = None
    tries: int = 1
    warmer: float = 0.0

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Case:
    """One question to a judge.

    Args:
        fields: values of the template's fields: question, reference, answers.
        pictures: keys of `source`; the pictures are shown before the text.
        source: reads the pictures; None for a case without pictures.
        sample: number that distinguishes several gradings of the same answer.
        attempt: number of earlier attempts at the case.
    """

    rubric: Rubric
    fields: Mapping[str, str]
    pictures: tuple[str, ...] = ()
    source: Pictures | None = field(default=None, compare=False)
    sample: int = 0
    attempt: int = 0

    @property
    def text(self) -> str:
        """The user's turn."""
        return self.rubric.template.format(**self.fields)

    @property
    def temperature(self) -> float:
        return self.rubric.temperature + self.attempt * self.rubric.warmer

    def load(self) -> list[Image]:
        """Return the decoded pictures.

        Raises:
            ValueError, OSError: in one line that names the picture.
        """
        return [self.source.load(key) for key in self.pictures] if self.source else []

    def key(self, judge: str, version: str | None) -> str:
        """Return a hash of all that can change the judgement, and of nothing else: no model, file or id."""
        source: Any = self.source
        content = [
            *(judge, version, self.rubric.id, self.rubric.system, self.text),
            *(self.rubric.schema, self.rubric.max_tokens, self.temperature),
            *(self.sample, self.attempt),
            [_picture_sha256(source, key) for key in self.pictures],
        ]
        text = json.dumps(content, ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=100_000)
def _picture_sha256(source: Pictures, key: str) -> str:
    """Return the SHA-256 of a decoded picture. It is cached: orders, runs and tries share the picture."""
    picture = source.load(key)
    digest = hashlib.sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def read_object(reply: str) -> dict[str, Any] | None:
    """Return the only JSON object of a reply, with or without a Markdown fence; None for any other text."""
    begin, end = reply.find("{"), reply.rfind("}")
    around = reply[:begin] + reply[end + 1 :]
    if begin < 0 or around.replace("```json", "").replace("```", "").strip():
        return None
    try:
        value = parse_json(reply[begin : end + 1], "the reply")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def object_schema(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
