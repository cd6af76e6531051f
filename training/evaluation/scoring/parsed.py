"""The result type of every parser, an answer or None and never a guess; and the tally of parsed answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypedDict, TypeVar

from ...common.telling import one_line

Result = TypeVar("Result")


@dataclass(frozen=True)
class Parser(Generic[Result]):
    """A named parsing rule. Every score stores `id`, since the rule is part of the score.

    Args:
        name: name of the rule.
        version: raised with every change that can parse an answer differently.
        source: the paper or script of the rule.
        read: the rule itself.
    """

    name: str
    version: int
    source: str
    read: Callable[..., Result]

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def __call__(self, *arguments: object) -> Result:
        return self.read(*arguments)


def chosen(parsers: Mapping[str, Parser[Result]], name: str) -> Parser[Result]:
    """Return the parser of that name.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in parsers:
        raise ValueError(f"parser: expected one of {', '.join(parsers)}, found {name!r}")
    return parsers[name]


class Unparsable(TypedDict):
    """An answer that the parser could not read, in the model's words."""

    id: str
    answer: str


class Tally(TypedDict):
    """Accuracy over all questions. An unparsable answer counts as wrong; it is counted and listed as well."""

    metric: str
    parser: str
    n: int
    correct: int
    accuracy: float
    unparsable: int
    unparsable_share: float
    unparsable_answers: list[Unparsable]


def tally(rows: Iterable[tuple[str, str, str | None, str]], *, metric: str, parser: str) -> Tally:
    """Count rows of (question id, raw answer, parsed answer or None, right answer).

    Raises:
        ValueError: no rows.
    """
    n = correct = 0
    unparsable: list[Unparsable] = []
    for question, raw, parsed, right in rows:
        n += 1
        if parsed is None:
            unparsable.append({"id": question, "answer": raw})
        correct += parsed is not None and parsed == right
    if not n:
        raise ValueError(f"{metric}: expected at least one answer, found none")
    return {
        "metric": metric,
        "parser": parser,
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "unparsable": len(unparsable),
        "unparsable_share": len(unparsable) / n,
        "unparsable_answers": unparsable,
    }


def told(value: object) -> str:
    """Return a value of user data in the short, printable form for an error."""
    return one_line(repr(value), 100)


def no_duplicates(metric: str, name: str, values: Iterable[object]) -> None:
    """Raise ValueError if a value occurs twice; the message names the first one."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{metric}: {name} {told(value)}: expected once, found twice")
        seen.add(value)
