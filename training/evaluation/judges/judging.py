"""Asks a judge about the cases that are not in the journal, and counts failed judgements."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...common.files import only_one
from ...common.telling import one_line
from ...common.thoughts import without_thought
from ..asking import Progress
from .journal import Journal
from .judge import Judge, Reply
from .rubric import Case

# There is no score if a larger share of the judgements failed.
FAILED_SHARE = 0.01
# The run ends if this many first replies are all unreadable: the judge does not follow the reply format.
UNREADABLE = 20


@dataclass(frozen=True)
class Judgement:
    """The judgement of one case.

    Args:
        value: the result of the rubric's `read`; None if the judgement failed.
        reply: the judge's last reply; None if there is none.
        error: the reason why a judgement failed.
        served: the name of the model in the server's response.
    """

    value: Any
    reply: str | None
    error: str | None = None
    served: str | None = None

    @property
    def listed(self) -> str:
        """The text for answers files: the reply, or the error."""
        return f"failed: {self.error}" if self.value is None else self.reply or ""


class Judging:
    """One judge and its journal.

    Args:
        judge: the judge to ask.
        path: the journal's file.
        failed_share: there is no score if a larger share of the judgements failed.

    Attributes:
        calls: number of calls made; judgements from the journal do not count.
    """

    def __init__(self, judge: Judge, path: Path, failed_share: float = FAILED_SHARE):
        if not 0 <= failed_share <= 1:
            raise ValueError(f"failed share: expected a number from 0 to 1, found {failed_share}")
        self.judge, self.path, self.failed_share = judge, path, failed_share
        self.calls = 0
        if path.is_dir():
            raise ValueError(f"--judgements {path}: expected a file, found a folder")

    def __call__(self, cases: Sequence[Case], name: str) -> list[Judgement]:
        """Return the judgements of cases, in order. Equal cases share one call.

        Args:
            name: name of the judged task, for the progress lines.

        Raises:
            OSError: the judge cannot be reached, or another process uses the journal.
            ValueError: every judgement failed, or the first UNREADABLE replies were all unreadable.
        """
        judgements = [Judgement(None, None)] * len(cases)
        lock = self.path.with_name(f"{self.path.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        refusal = f"{self.path}: another process judges with this file: wait, or name another file"
        with only_one(lock, refusal), contextlib.closing(Journal(self.path)) as journal:
            if journal.damaged:
                print(f"{self.path}: {journal.damaged} damaged lines are skipped and judged again")
            waiting = list(range(len(cases)))
            attempt = 0
            while waiting:
                asked = [replace(cases[place], attempt=attempt) for place in waiting]
                found = self._judge(asked, journal, name, UNREADABLE if attempt == 0 else None)
                for place, judgement in zip(waiting, found, strict=True):
                    judgements[place] = judgement
                attempt += 1
                waiting = [
                    place
                    for place in waiting
                    if judgements[place].value is None and attempt < cases[place].rubric.tries
                ]
        if cases and not any(judgement.value is not None for judgement in judgements):
            raise self._useless(judgements)
        return judgements

    def _judge(
        self, cases: Sequence[Case], journal: Journal, name: str, most: int | None
    ) -> list[Judgement]:
        """Make one attempt at each case; stop once `most` first replies are all unreadable (None: never)."""
        keys = [case.key(self.judge.id, self.judge.version) for case in cases]
        judged: dict[str, Judgement] = {}
        new: dict[str, Case] = {}
        for key, case in zip(keys, cases, strict=True):
            record = journal.records.get(key)
            if record is None:
                new[key] = case
            else:
                judged[key] = _judgement(case, record)
        readable = any(judgement.value is not None for judgement in judged.values())
        unreadable = [] if readable else list(judged.values())
        asked = list(new.items())
        progress = Progress(len(asked), unit="judgements")
        progress.start(f"{name}, judged by {self.judge.id}")

        def tell(place: int, reply: Reply) -> None:
            nonlocal readable
            key, case = asked[place]
            self.calls += 1
            if reply.text is None:
                judged[key] = Judgement(None, None, reply.error)
            else:
                record = {
                    "key": key,
                    "reply": reply.text,
                    "served": reply.served,
                    "structured": reply.structured,
                    "usage": reply.usage,
                }
                journal.append(record)
                judged[key] = _judgement(case, record)
                readable = readable or judged[key].value is not None
                unreadable.append(judged[key])
                stop_where_unreadable()
            progress.add()

        def stop_where_unreadable() -> None:
            if most is not None and not readable and len(unreadable) >= most:
                raise self._useless(unreadable)

        stop_where_unreadable()
        with contextlib.closing(progress):
            if asked:
                self.judge.ask([case for _, case in asked], tell)
        return [judged[key] for key in keys]

    def _useless(self, judgements: Sequence[Judgement]) -> ValueError:
        return ValueError(
            one_line(
                f"judge {self.judge.id}: expected readable judgements, found none in {len(judgements)}, the last: "
                f"{judgements[-1].error}: name a judge that follows the format; replies are kept in "
                f"{self.path}"
            )
        )


def _judgement(case: Case, record: Mapping[str, Any]) -> Judgement:
    """Return the judgement that a recorded reply gives for a case."""
    reply, served = record["reply"], record["served"]
    said = without_thought(reply, case.text)
    value = None if said is None else case.rubric.read(said.lstrip("\n"))
    if value is None:
        error = f"expected {case.rubric.expects}, found {one_line(reply, 200)!r}"
        return Judgement(None, reply, error, served)
    return Judgement(value, reply, None, served)
