"""What tasks share whose answers are compared with those of ten people: VQAv2, TextVQA and VizWiz."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...inference.generation import Answer
from ..protocol import Request, Score, Scored, Task
from ..public import Split, export_json
from ..scoring.vqa import METRIC, Protocol, accuracy, processed

# Splits whose answers only the server has. Questions are asked and exported there, without a score.
HIDDEN = ("test", "testdev")


class PeoplesAnswers(Task):
    """Scores by VQA accuracy. A request's `expected` is the answers, none where they are hidden."""

    metrics = {"accuracy": {"title": "VQA accuracy", "higher_is_better": True, "percent": True}}

    @property
    def rule(self) -> Protocol:
        """How answers are processed before they are compared."""
        return "evalai"

    def describe(self) -> dict[str, Any]:
        return {"metric": f"{METRIC} {self.rule}"}

    def score(self, request: Request, answer: Answer) -> Score:
        said = processed(answer.text, request.expected, self.rule)
        value = accuracy(answer.text, request.expected, self.rule) if request.expected else None
        return Score({"accuracy": value}, said or None, not answer.text.strip())

    @abstractmethod
    def entry(self, request: Request, text: str) -> dict[str, Any]:
        """An answer of the file that the server takes, its text as EvalAI processes it."""

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """A JSON list for EvalAI. The server wants every question of the split: export a whole one."""
        entries = [
            self.entry(one.request, processed(one.answer.text, (), "evalai")) for one in scored
        ]
        return [export_json(folder, self.key, entries)]


def peoples_answers(
    split: Split, number: int, found: Sequence[str | None] | None, name: str
) -> tuple[str, ...]:
    """The answers of a row of the split `name`. Raises ValueError, naming the row, where some or all miss."""
    answers = tuple(text for text in found or () if text is not None)
    if len(answers) != len(found or ()) or not (answers or name in HIDDEN):
        raise ValueError(
            f"{split.place}: row {number}: answers: expected those of people, found {found!r}"
        )
    # A hidden answer may be written as an empty one.
    return answers if any(answers) or name not in HIDDEN else ()
