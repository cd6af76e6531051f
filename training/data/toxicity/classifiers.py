"""Judges that give a probability: transformers text-classification models, and plain functions.

transformers' own defaults would mislead here: they return the top label only, put a softmax over
the labels of a model that does not say it is multi-label, and fail on long texts.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import json
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ...common.files import sha256_file
from ...common.schema import digest
from ...common.telling import one_line
from .verdicts import ImageRef, Judgement

# Changes to what is asked or how answers are read; part of every key.
VERSION = 1
UNSAFE_AT = 0.5  # the label; what is dropped is the policy's matter


@dataclass(kw_only=True)
class ClassifierJudge:
    """A transformers text-classification model.

    A text longer than the model reads is judged in overlapping pieces, and the worst piece counts:
    nothing at its end goes unread.

    toxic: the labels that mean toxic, by name or index. Under softmax their probabilities add up,
        under sigmoid the largest counts.
    activation: "softmax" for labels that exclude each other, "sigmoid" for labels that do not; there
        is no default, since models seldom say it.
    max_length: tokens; needed where the tokenizer does not say what its model takes.
    """

    model: str
    toxic: Sequence[str | int]
    activation: Literal["softmax", "sigmoid"]
    revision: str | None = None
    batch_size: int = 32
    max_length: int | None = None
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    concurrency = 1

    def __post_init__(self) -> None:
        self.batch_rows = self.batch_size
        self.model_revision = local_revision(self.model) or self.revision or "main"
        labels = [list(self.toxic), self.activation]
        self.policy_sha = digest(labels)
        # Neither batch nor device: they change no answer but by rounding.
        self.key = digest(
            {
                "classifier": VERSION,
                "model": [self.model, self.model_revision, self.dtype],
                "labels": labels,
                "max_length": self.max_length,
            }
        )
        self._pipeline: Any = None
        self._toxic: list[str] = []

    async def __aenter__(self) -> ClassifierJudge:
        await asyncio.to_thread(self._load)
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._pipeline = None

    async def judge(self, texts: Sequence[tuple[str, str]]) -> list[Judgement]:
        return await asyncio.to_thread(self._judge, [text for text, _ in texts])

    def _load(self) -> None:
        from transformers import pipeline

        self._pipeline = pipeline(
            "text-classification",
            model=self.model,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype or "auto",
            trust_remote_code=self.trust_remote_code,
        )
        config, tokenizer = self._pipeline.model.config, self._pipeline.tokenizer
        # Where the plan names a branch, verdicts name the commit that it led to.
        self.model_revision = getattr(config, "_commit_hash", None) or self.model_revision
        labels = {int(n): str(label) for n, label in config.id2label.items()}
        for wanted in self.toxic:
            if wanted not in labels and wanted not in labels.values():
                raise ValueError(
                    f"{self.model}: toxic: {wanted!r} is none of its labels; they are "
                    + ", ".join(f"{n}: {label!r}" for n, label in labels.items())
                )
        self._toxic = [labels[t] if isinstance(t, int) else t for t in self.toxic]
        problem = getattr(config, "problem_type", None)
        if self.activation == "softmax" and (
            problem == "multi_label_classification" or len(labels) == 1
        ):
            raise ValueError(
                f"{self.model}: activation: softmax over {len(labels)} labels"
                + (" that do not exclude each other" if len(labels) > 1 else " is always 1")
                + "; use sigmoid"
            )
        if self.activation == "sigmoid" and problem == "single_label_classification":
            raise ValueError(
                f"{self.model}: activation: its labels exclude each other "
                f"(problem_type {problem!r}); use softmax"
            )
        if self.max_length is None and tokenizer.model_max_length > 1_000_000:
            raise ValueError(
                f"{self.model}: its tokenizer does not say how many tokens the model takes; set "
                "max_length"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"{self.model}: its tokenizer is a slow one, which cannot cut long texts into "
                "pieces; use a model with a tokenizer.json"
            )

    @property
    def _limit(self) -> int:
        """Tokens that the model takes at once, special ones included."""
        known = self._pipeline.tokenizer.model_max_length
        return min(self.max_length or known, known)

    def _pieces(self, text: str) -> list[str]:
        """The text in overlapping pieces that fit the model; mostly the text itself.

        A piece cut out may have a token more than it had inside the text, so there is some room.
        """
        tokenizer = self._pipeline.tokenizer
        room = self._limit - tokenizer.num_special_tokens_to_add()
        spans = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, truncation=False
        )["offset_mapping"]
        if len(spans) <= room:
            return [text]
        overlap = min(32, room // 4)
        size = room - overlap // 2
        starts = [*range(0, len(spans) - size, size - overlap), len(spans) - size]
        return [text[spans[s][0] : spans[s + size - 1][1]] for s in starts]

    def _judge(self, texts: Sequence[str]) -> list[Judgement]:
        pieces = [(n, piece) for n, text in enumerate(texts) for piece in self._pieces(text)]
        answers = self._pipeline(
            [piece for _, piece in pieces],
            top_k=None,
            function_to_apply=self.activation,
            truncation=True,
            max_length=self._limit,
            batch_size=self.batch_size,
        )
        worst: dict[int, Judgement] = {}
        for (n, _), scores in zip(pieces, answers, strict=True):
            found = self._read({each["label"]: each["score"] for each in scores})
            if n not in worst or _badness(found) > _badness(worst[n]):
                worst[n] = found
        return [worst[n] for n in range(len(texts))]

    def _read(self, scores: Mapping[str, float]) -> Judgement:
        if not all(0 <= value <= 1 + 1e-6 for value in scores.values()):
            # A model in half precision may give no number.
            return Judgement.unreadable(None, f"no probabilities: {scores}")
        toxic = {label: scores[label] for label in self._toxic}
        score = sum(toxic.values()) if self.activation == "softmax" else max(toxic.values())
        raw = json.dumps({label: round(value, 6) for label, value in sorted(scores.items())})
        return _scored(score, max(toxic, key=toxic.__getitem__), raw)


@dataclass
class FunctionJudge:
    """Any function of an installed package that scores texts or images.

    The function is named "package.module:name" and called with a list of texts, or of RGB PIL
    images. For each it returns the probability that it is unsafe, or a mapping of categories to
    such probabilities, of which the largest counts.
    """

    function: str
    stage: Literal["text", "image"]
    revision: str | None = None
    batch_size: int = 32
    concurrency = 1

    def __post_init__(self) -> None:
        self.batch_rows = self.batch_size
        self._call = self._find()
        self._has_answered = False
        self.model_revision = self.revision or self._version()
        self.policy_sha = digest([self.function])
        self.key = digest(
            {"function": VERSION, "model": [self.function, self.stage, self.model_revision]}
        )

    async def __aenter__(self) -> FunctionJudge:
        return self

    async def __aexit__(self, *error: Any) -> None: ...

    async def judge(self, items: Sequence[tuple[str, str]] | Sequence[ImageRef]) -> list[Judgement]:
        given = [item.picture if isinstance(item, ImageRef) else item[0] for item in items]
        answers = list(await asyncio.to_thread(self._call, given))
        if len(answers) != len(given):
            raise ValueError(
                f"{self.function}: {len(given)} inputs were given and {len(answers)} scores came "
                "back"
            )
        found = [self._read(answer) for answer in answers]
        self._has_answered = self._has_answered or any(each.parse_ok for each in found)
        if found and not self._has_answered:
            # Not one of these inputs is to blame.
            raise ValueError(found[0].error)
        return found

    def _read(self, answer: Any) -> Judgement:
        try:
            if isinstance(answer, Mapping):
                scores = {str(name): float(value) for name, value in answer.items()}
                category = max(scores, key=scores.__getitem__) if scores else None
                score = scores[category] if category is not None else 0.0
                raw = json.dumps(scores, ensure_ascii=False)
            else:
                category, score = None, float(answer)
                raw = json.dumps(score)
            return _scored(score, category, raw)
        except (TypeError, ValueError, OverflowError):
            return Judgement.unreadable(
                None,
                f"{self.function}: expected a probability from 0 to 1 (or a mapping of categories "
                f"to them), found {one_line(repr(answer), 80)}",
            )

    def _find(self) -> Callable[[list], Any]:
        module, colon, name = self.function.partition(":")
        try:
            found = getattr(importlib.import_module(module), name) if colon else None
        except ModuleNotFoundError as error:
            raise ValueError(
                f"function: {self.function}: no module {error.name!r} is installed"
            ) from None
        except AttributeError:
            raise ValueError(f"function: {module} has no {name!r}") from None
        if not callable(found):
            raise ValueError(
                f"function: expected package.module:name of a function, found {self.function!r}"
            )
        return found

    def _version(self) -> str:
        """The installed version of its package; else a hash of the file it stands in."""
        module = self.function.partition(":")[0]
        file = Path(importlib.import_module(module).__file__ or "")
        if file.is_relative_to(sysconfig.get_path("purelib")):
            for name in _distributions().get(module.partition(".")[0], []):
                return f"{name} {importlib.metadata.version(name)}"
        return f"source {sha256_file(file)[:16]}" if file.is_file() else "unknown"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Top-level module -> the installed packages that bring it; looking through all takes a second."""
    return importlib.metadata.packages_distributions()


def _badness(found: Judgement) -> tuple[bool, bool, float]:
    """What one piece of a text says of the whole: unsafe, else not to be read, else its score."""
    return found.label == "unsafe", not found.parse_ok, found.score or 0.0


def _scored(score: float, category: str | None, raw: str) -> Judgement:
    score = min(1.0, score) if score < 1 + 1e-6 else score  # float32 sums
    label: Literal["safe", "unsafe"] = "unsafe" if score >= UNSAFE_AT else "safe"
    return Judgement(label, category, score, raw=raw)


def local_revision(model: str) -> str | None:
    """What tells the weights of a folder from others: names, sizes and times of its files.

    None for a repository of the Hub, whose revision is its commit.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    files = [
        (file.name, file.stat().st_size, file.stat().st_mtime_ns)
        for file in sorted(folder.iterdir())
        if file.is_file()
    ]
    return f"folder {digest(files)}"
