"""The interface of a task: requests to a model, the score of one answer, and rows of numbers.

A task has three duties. `load` reads its dataset and returns requests: parts of a prompt, a language, and a
limit of new tokens. `score` scores one answer. `aggregate` returns rows of values with intervals. All other code
(for asking the model, baselines, resuming, tables and cards) knows no task by name.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from PIL.Image import Image

from ..common.languages import LANGUAGES
from ..inference.generation import Answer
from .results import DataInfo, MetricInfo, Row
from .scoring.intervals import Interval, mean, mean_of_languages

# The runs that have rows: the model, two baselines without the right picture, and random guessing.
MODEL, BLIND, SHUFFLED, CHANCE = "model", "blind", "shuffled", "chance"
BASELINES = (BLIND, SHUFFLED)


@dataclass(frozen=True, slots=True)
class Picture:
    """A part of a prompt: the picture that the task's `Pictures` return for `key`."""

    key: str


class Pictures(Protocol):
    """Pictures that are read on access, so that memory does not grow with their number."""

    def load(self, key: str) -> Image:
        """Return the decoded picture.

        Raises:
            ValueError, OSError: in one line that names the picture.
        """


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model.

    Args:
        id: unique in its task.
        language: BCP-47 code of the prompt's language.
        answer_language: language of the requested answer; None for an answer without one, such as a letter.
        content: the user's turn, texts and pictures in their order.
        max_new_tokens: limit of the answer's length, in tokens.
        subset: the subset of the score, `part/column` or one word; a key of `Task.subsets`.
        item: the unit that is independent of other requests, such as the image: intervals resample items.
        expected: the right answer, in the form that `score` needs.
        about: further data for the score.
        chance: the expected score of a random answer, if it can be computed.
        avoid: in the shuffled run, this request gets no picture with one of these marks.
        marks: marks of this request's picture, see `avoid`.
        system: the system turn.
        stop: an answer ends before the first of these texts.
    """

    id: str
    language: str
    content: tuple[str | Picture, ...]
    max_new_tokens: int
    item: str
    answer_language: str | None = None
    subset: str = "all"
    expected: Any = None
    about: Mapping[str, Any] = field(default_factory=dict)
    chance: float | None = None
    avoid: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    system: str | None = None
    stop: tuple[str, ...] = ()

    @property
    def pictures(self) -> tuple[str, ...]:
        """Return the keys of the pictures, in order."""
        return tuple(part.key for part in self.content if isinstance(part, Picture))

    @property
    def text(self) -> str:
        """Return the texts of the prompt, joined."""
        return "".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True)
class Score:
    """The score of one answer.

    Args:
        values: metric -> value; None if the judgement failed, which is never averaged.
        parsed: the parsed answer; None if it could not be parsed.
        unparsable: whether the answer lacks the requested form. Such an answer counts as wrong.
        judgements: the judge's replies, or the reasons why judgements failed.
    """

    values: Mapping[str, float | None]
    parsed: str | None = None
    unparsable: bool = False
    judgements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    """A request with its answer and its score."""

    request: Request
    answer: Answer
    score: Score


@dataclass(frozen=True)
class Loaded:
    """A task's requests, all of one selection of its dataset."""

    requests: Sequence[Request]
    pictures: Pictures
    data: DataInfo
    languages: Sequence[str]


@dataclass(frozen=True)
class Selection:
    """The part of a dataset to ask about.

    Args:
        data: a folder or Hub repository in the layout of the task's dataset; None: the task's dataset.
        split: None: the task's default.
        languages: BCP-47 codes; None: all.
        limit: number of items, drawn from the seed; None: all.
        revision: revision of a Hub repository; None: the one that the task pins.
    """

    data: str | None = None
    split: str | None = None
    languages: Sequence[str] | None = None
    limit: int | None = None
    seed: int = 0
    revision: str | None = None


class Task(ABC):
    """One benchmark. Its class attributes are stored in results files.

    Args:
        protocol: one of `protocols`; None: the first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    # BCP-47 codes of the dataset's languages.
    languages: ClassVar[Sequence[str]] = ("en",)
    # Changes with the prompt, the parser or the metric, so that results of different versions are never mixed.
    version: ClassVar[str] = "1"
    # Protocols (ways of asking and scoring), the default first: name -> the paper or script that it follows.
    protocols: ClassVar[Mapping[str, str]]
    # Subsets of the scores, in the order of tables: subset -> title. A subset `part/column` is a column of
    # the part's own table.
    subsets: Mapping[str, str] = {"all": ""}
    parts: Mapping[str, str] = {}
    # The answer sheet shows the first of these subsets that has answers; empty for a task without a sheet.
    sheet: Sequence[str] = ()
    metrics: Mapping[str, MetricInfo] = {
        "accuracy": {"title": "accuracy", "higher_is_better": True, "percent": True}
    }
    metric: str = "accuracy"  # the headline metric, which tables show
    # Whether training data is known to hold the benchmark's pictures or questions.
    contamination: ClassVar[str] = ""

    def __init__(self, protocol: str | None = None):
        if protocol is not None and protocol not in self.protocols:
            raise ValueError(
                f"{self.name}: protocol: expected one of {', '.join(self.protocols)}, found {protocol!r}"
            )
        self.protocol = protocol or next(iter(self.protocols))

    @property
    def key(self) -> str:
        """Return the task's key in rows and files: its name, and its protocol unless it is the default."""
        first = next(iter(self.protocols))
        return self.name if self.protocol == first else f"{self.name}:{self.protocol}"

    def describe(self) -> dict[str, Any]:
        """Describe the protocol: prompts, parser, stop texts."""
        return {}

    @abstractmethod
    def load(self, selection: Selection) -> Loaded:
        """Read the dataset.

        Raises:
            ValueError, OSError: in one line: the dataset, split, language or a column does not exist, or a picture
                cannot be read.
        """

    @abstractmethod
    def score(self, request: Request, answer: Answer) -> Score:
        """Score one answer. An answer that cannot be parsed is unparsable; its meaning is never guessed."""

    def scores(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Score]:
        """Score many answers, in order; a task with a judge model sends several requests at a time."""
        return [self.score(*one) for one in zip(requests, answers, strict=True)]

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        """Return rows of this task's metrics: for each subset the languages, then the means of `groups`.

        The subset "all" holds all answers.
        """
        return [
            row
            for metric in self.metrics
            for subset in self.subsets
            for row in self.rows(
                [one for one in scored if subset in (one.request.subset, "all")],
                metric,
                subset,
                run,
                groups,
                seed,
            )
        ]

    def rows(
        self,
        scored: Sequence[Scored],
        metric: str,
        subset: str,
        run: str,
        groups: Mapping[str, Sequence[str]],
        seed: int,
    ) -> list[Row]:
        """Return the means of one metric over one subset.

        A failed judgement (None) is left out and counted. A score without the metric is left out, since the metric does
        not apply to its question.
        """
        values: dict[str, list[tuple[str, float]]] = {}
        failures: Counter[str] = Counter()
        for one in scored:
            if metric not in one.score.values:
                continue
            language, value = one.request.language, one.score.values[metric]
            failures[language] += value is None or one.score.unparsable
            if value is not None:
                values.setdefault(language, []).append((one.request.item, value))
        place = Place(self.key, subset, run, metric, self.metrics[metric]["higher_is_better"])
        return mean_rows(place, values, groups, seed, failures, self.interval)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the files for the benchmark's own server or script, and return their paths.

        File names begin with `key`, since other tasks write into the same folder.
        """
        return []

    def interval(self, values: Sequence[tuple[str, float]], seed: int) -> Interval:
        """Return the mean of one language's (item, value) pairs, with its interval."""
        return mean(values, seed)


class Place(NamedTuple):
    """The values that several rows share."""

    task: str
    subset: str
    run: str
    metric: str
    higher_is_better: bool | None

    def row(
        self,
        language: str,
        value: float,
        low: float | None,
        high: float | None,
        n: int,
        failures: int,
    ) -> Row:
        """Return a row of this place."""
        return {
            "task": self.task,
            "subset": self.subset,
            "run": self.run,
            "language": language,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "value": value,
            "low": low,
            "high": high,
            "n": n,
            "failures": failures,
        }


def mean_rows(
    place: Place,
    values: Mapping[str, Sequence[tuple[str, float]]],
    groups: Mapping[str, Sequence[str]],
    seed: int,
    failures: Mapping[str, int] | None = None,
    interval: Callable[[Sequence[tuple[str, float]], int], Interval] = mean,
) -> list[Row]:
    """Return a row for each language, then one for each group of languages.

    Args:
        values: language -> (item, value) of each answer.
        failures: language -> number of answers that could not be parsed or judged.
        interval: computes the mean and interval of one language's values.
    """
    failures = failures or {}
    rows = [
        place.row(lang, *interval(values[lang], seed), len(values[lang]), failures.get(lang, 0))
        for lang in in_order(values)
    ]
    for group, languages in groups.items():
        chosen = {lang: values[lang] for lang in languages if lang in values}
        if chosen:
            n, failed = (
                sum(map(len, chosen.values())),
                sum(failures.get(lang, 0) for lang in chosen),
            )
            rows.append(place.row(group, *mean_of_languages(chosen, seed=seed), n, failed))
    return rows


def in_order(languages: Iterable[str]) -> list[str]:
    """Return languages in the order of tables: Maya's, then others alphabetically."""
    place = {language: number for number, language in enumerate(LANGUAGES)}
    return sorted(languages, key=lambda language: (place.get(language, len(place)), language))


def chosen_languages(asked: Sequence[str] | None, known: list[str], split: str) -> list[str]:
    """Return the requested languages, all if None.

    Raises:
        ValueError: no language is requested, or one is unknown.
    """
    if asked is None:
        return known
    unknown = [lang for lang in asked if lang not in known]
    if unknown:
        raise ValueError(
            f"languages: expected some of {', '.join(known)} in {split!r}, found {', '.join(map(repr, unknown))}"
        )
    if not asked:
        raise ValueError(f"languages: expected some of {', '.join(known)} in {split!r}, found none")
    return list(dict.fromkeys(asked))


def sample(names: Iterable[str], limit: int | None, seed: int) -> list[str]:
    """Return `limit` names, sorted; the choice depends only on the seed and the names.

    Raises:
        ValueError: the limit is below 1.
    """
    names = sorted(set(names))
    if limit is None:
        return names
    if limit < 1:
        raise ValueError(f"limit: expected at least 1, found {limit}")
    key = {name: hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names}
    return sorted(sorted(names, key=key.__getitem__)[:limit])


def blind(request: Request) -> Request:
    """Return the same question without its pictures."""
    return replace(request, content=tuple(p for p in request.content if isinstance(p, str)))


def shuffled(requests: Sequence[Request], seed: int) -> list[Request]:
    """Return the same questions, each with the pictures of another question.

    A random order of all pictures is shifted by one number of places, so that all questions about a picture get the
    same other picture. No picture keeps its place, and none shows what its question is about (`Request.avoid`).

    Raises:
        ValueError: there is no such shift, for example with a single picture.
    """
    marks: dict[str, frozenset[str]] = {}
    avoid: dict[str, frozenset[str]] = {}
    for request in requests:
        for key in request.pictures:
            marks[key] = marks.get(key, frozenset()) | request.marks
            avoid[key] = avoid.get(key, frozenset()) | request.avoid
    order = sorted(marks)
    np.random.default_rng(seed).shuffle(order)
    for shift in range(1, len(order)):
        other = dict(zip(order, order[shift:] + order[:shift], strict=True))
        if not any(marks[there] & avoid[key] for key, there in other.items()):
            return [
                replace(
                    request,
                    content=tuple(
                        Picture(other[part.key]) if isinstance(part, Picture) else part
                        for part in request.content
                    ),
                )
                for request in requests
            ]
    raise ValueError(
        f"pictures: expected enough for the shuffled run, in which none shows what its question asks, found "
        f"{len(order)}: use more"
    )
