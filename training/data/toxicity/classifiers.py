"""Judges that return a probability: transformers text-classification models, and plain functions."""

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

from ...common.classifiers import Activation, TextClassifier
from ...common.files import sha256_file
from ...common.schema import digest
from ...common.telling import one_line
from .verdicts import ImageRef, Judgement

# Increase when requests or the reading of answers change; part of every key.
VERSION = 1
UNSAFE_AT = 0.5  # threshold of the label only; the policy decides what is dropped


@dataclass(kw_only=True)
class ClassifierJudge:
    """A transformers text-classification model; the worst piece of a long text counts.

    The fields are those of `TextClassifier`.
    """

    model: str
    toxic: Sequence[str | int]
    activation: Activation
    revision: str | None = None
    batch_size: int = 32
    max_length: int | None = None
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    concurrency = 1

    def __post_init__(self) -> None:
        self.classifier = TextClassifier(**vars(self))
        self.batch_rows = self.batch_size
        self.model_revision = local_revision(self.model) or self.revision or "main"
        labels = [list(self.toxic), self.activation]
        self.policy_sha = digest(labels)
        # Exclude batch size and device: they change answers only by rounding.
        self.key = digest(
            {
                "classifier": VERSION,
                "model": [self.model, self.model_revision, self.dtype],
                "labels": labels,
                "max_length": self.max_length,
            }
        )

    async def __aenter__(self) -> ClassifierJudge:
        await asyncio.to_thread(self.classifier.load)
        # If the plan names a branch, verdicts store its commit.
        self.model_revision = self.classifier.commit or self.model_revision
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.classifier.release()

    async def judge(self, texts: Sequence[tuple[str, str]]) -> list[Judgement]:
        return await asyncio.to_thread(self._judge, [text for text, _ in texts])

    def _judge(self, texts: Sequence[str]) -> list[Judgement]:
        found = self.classifier.probabilities(texts)
        return [max(map(self._read, pieces), key=_badness) for pieces in found]

    def _read(self, scores: Mapping[str, float]) -> Judgement:
        read = self.classifier.read(scores)
        if read is None:
            return Judgement.unreadable(None, f"no probabilities: {scores}")
        raw = json.dumps({label: round(value, 6) for label, value in sorted(scores.items())})
        return _scored(*read, raw)


@dataclass
class FunctionJudge:
    """A function of an installed package that scores texts or images.

    `function` is "package.module:name". The function takes a list of texts, or of PIL images in RGB. For each
    it returns the probability that the input is unsafe, or a mapping of categories to such probabilities,
    of which the maximum counts.
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
            raise ValueError(f"{self.function}: expected {len(given)} scores, found {len(answers)}")
        found = [self._read(answer) for answer in answers]
        self._has_answered = self._has_answered or any(each.parse_ok for each in found)
        if found and not self._has_answered:
            # The fault is not that of a single input.
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
                f"function: {self.function}: expected an installed module {error.name!r}, found none"
            ) from None
        except AttributeError:
            raise ValueError(f"function: expected {name!r} in {module}, found none") from None
        if not callable(found):
            raise ValueError(
                f"function: expected package.module:name of a function, found {self.function!r}"
            )
        return found

    def _version(self) -> str:
        """Return the installed version of the function's package, or a hash of its file."""
        module = self.function.partition(":")[0]
        file = Path(importlib.import_module(module).__file__ or "")
        if file.is_relative_to(sysconfig.get_path("purelib")):
            for name in _distributions().get(module.partition(".")[0], []):
                return f"{name} {importlib.metadata.version(name)}"
        return f"source {sha256_file(file)[:16]}" if file.is_file() else "unknown"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return {top-level module: installed packages that provide it}; the search takes a second."""
    return importlib.metadata.packages_distributions()


def _badness(found: Judgement) -> tuple[bool, bool, float]:
    """Return the sort key of pieces of a text: unsafe first, then unreadable, then by score."""
    return found.label == "unsafe", not found.parse_ok, found.score or 0.0


def _scored(score: float, category: str | None, raw: str) -> Judgement:
    score = min(1.0, score) if score < 1 + 1e-6 else score  # float32 sums may exceed 1 slightly
    label: Literal["safe", "unsafe"] = "unsafe" if score >= UNSAFE_AT else "safe"
    return Judgement(label, category, score, raw=raw)


def local_revision(model: str) -> str | None:
    """Return the identity of a local folder's weights: a hash of names, sizes and times of its files.

    None for a Hub repository, whose revision is its commit.
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
