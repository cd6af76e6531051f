"""Base class of the tasks whose answers a judge model grades."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ...inference.generation import Answer
from ..answers import matched, read_answers
from ..judges.judging import Judgement, Judging
from ..judges.plan import JudgePlan
from ..judges.rubric import Case, Rubric
from ..protocol import MODEL, Loaded, Request, Score, Scored, Task
from ..results import JudgeInfo, Row, Withheld


class Against(NamedTuple):
    """The answers of another model, by request."""

    model: str
    answers: Mapping[str, Answer]


class Judged(Task):
    """A task whose scores come from a judge.

    A failed judgement is left out of every mean and is counted. A language gets no score if more than the share
    `Judging.failed_share` of its judgements failed; then no mean over languages that include it is given either.
    """

    # Protocol -> the prompts and the parser of the judge.
    rubrics: ClassVar[Mapping[str, Rubric]]

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.judging: Judging | None = None
        self.served: set[str] = set()
        self.failed: dict[str, list[str]] = {}
        self.withheld: list[Withheld] = []

    @property
    def rubric(self) -> Rubric:
        return self.rubrics[self.protocol]

    def describe(self) -> dict[str, Any]:
        return {
            "rubric": self.rubric.id,
            "judge_system": self.rubric.system,
            "judge_prompt": self.rubric.template,
            "judge_temperature": self.rubric.temperature,
            "judge_max_tokens": self.rubric.max_tokens,
            "judge_tries": self.rubric.tries,
        }

    def prepare(self, judging: Judging, against: Against | None) -> None:
        """Store the judge and another model's answers.

        Raises:
            ValueError: a task that needs another model's answers got none, or one that needs none got some.
        """
        if against is not None:
            raise ValueError(f"--against: {self.key} compares with no other model's answers")
        self.judging = judging

    @abstractmethod
    def cases(self, request: Request, text: str) -> list[Case]:
        """Return the judge's cases for one answer, at least one."""

    @abstractmethod
    def values(self, request: Request, judged: Sequence[Any]) -> Mapping[str, float | None]:
        """Return metric -> value, from the judgements of an answer's cases, none of which failed."""

    def score(self, request: Request, answer: Answer) -> Score:
        return self.scores([request], [answer])[0]

    def scores(self, requests: Sequence[Request], answers: Sequence[Answer]) -> list[Score]:
        assert self.judging is not None, "a judged task needs `prepare` first"
        pairs = zip(requests, answers, strict=True)
        cases = [self.cases(request, answer.text) for request, answer in pairs]
        found = iter(self.judging([case for own in cases for case in own], self.key))
        return [
            self._score(request, [next(found) for _ in own])
            for request, own in zip(requests, cases, strict=True)
        ]

    def _score(self, request: Request, judgements: Sequence[Judgement]) -> Score:
        self.served.update(judgement.served for judgement in judgements if judgement.served)
        judged = [judgement.value for judgement in judgements]
        failed = any(value is None for value in judged)
        return Score(
            dict.fromkeys(self.metrics) if failed else self.values(request, judged),
            parsed=None if failed else ", ".join(map(str, judged)),
            judgements=tuple(judgement.listed for judgement in judgements),
        )

    def belongs(self, request: Request, subset: str) -> bool:
        """Return whether a request's score counts in a subset."""
        return subset in (request.subset, "all")

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        self.failed[run] = [one.request.id for one in scored if self._failed(one)]
        rows = []
        for subset in self.subsets:
            own = [one for one in scored if self.belongs(one.request, subset)]
            missing = self._withhold(own, run, subset)
            for metric in self.metrics:
                rows += [
                    row
                    for row in self.rows(own, metric, subset, run, groups, seed)
                    if missing.isdisjoint(groups.get(row["language"], [row["language"]]))
                ]
        return rows

    def _failed(self, one: Scored) -> bool:
        return one.score.values[self.metric] is None

    def _withhold(self, scored: Sequence[Scored], run: str, subset: str) -> set[str]:
        """Return the languages that get no score."""
        assert self.judging is not None
        asked = Counter(one.request.language for one in scored)
        failed = Counter(one.request.language for one in scored if self._failed(one))
        missing = {
            language
            for language, number in failed.items()
            if number > self.judging.failed_share * asked[language]
        }
        self.withheld += [
            {
                "run": run,
                "subset": subset,
                "language": language,
                "failed": failed[language],
                "asked": asked[language],
            }
            for language in sorted(missing)
        ]
        return missing

    def judge_info(self) -> JudgeInfo:
        """Return the judge's part of the results; call it after `aggregate`."""
        assert self.judging is not None
        return {
            "id": self.judging.judge.id,
            "version": self.judging.judge.version,
            "served": sorted(self.served),
            "rubric": self.rubric.id,
            "rubric_source": self.rubric.source,
            "failed_share": self.judging.failed_share,
            "failed": {run: ids for run, ids in self.failed.items() if ids},
            "withheld": self.withheld,
        }


def give_judge(
    tasks: Sequence[Task], loaded: Mapping[str, Loaded], plan: JudgePlan | None, folder: Path
) -> None:
    """Open the judge for the tasks that need one.

    Args:
        loaded: key of a task -> its requests.
        folder: the folder of the results.

    Raises:
        ValueError, OSError: in one line: a task has no judge or no answers to compare with, no task needs the
            judge, or the judge cannot be reached.
    """
    judged = [task for task in tasks if isinstance(task, Judged)]
    if plan is None:
        if judged:
            raise ValueError(
                f"{judged[0].key}: expected a judge, since a model grades the answers, found none: name one with --judge"
            )
        return
    if not judged:
        raise ValueError(f"--judge: expected a task with a judge, found {', '.join(loaded)}")
    against = None if plan.against is None else read_answers(plan.against)
    judging = plan.open(folder)
    for task in judged:
        other = None
        if against is not None:
            found = matched(against, MODEL, loaded[task.key].requests, more=True)
            other = Against(against.model["name"], found)
        task.prepare(judging, other)
