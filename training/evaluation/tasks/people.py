"""Base class of the tasks that compare an answer with those of ten annotators: VQAv2, TextVQA and VizWiz."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...inference.generation import Answer
from ..protocol import Request, Score, Scored, Task
from ..public import Split, export_json
from ..scoring.vqa import METRIC, Protocol, accuracy, processed

# Only the server has these splits' answers. Their questions are asked and exported, without a score.
HIDDEN = ("test", "testdev")


class PeoplesAnswers(Task):
    """Scores answers by VQA accuracy. A request's `expected` holds the annotators' answers; it is empty if they are hidden."""

    metrics = {"accuracy": {"title": "VQA accuracy", "higher_is_better": True, "percent": True}}

    @property
    def rule(self) -> Protocol:
        """Return how answers are normalised before they are compared."""
        return "evalai"

    def describe(self) -> dict[str, Any]:
        return {"metric": f"{METRIC} {self.rule}"}

    def score(self, request: Request, answer: Answer) -> Score:
        said = processed(answer.text, request.expected, self.rule)
        value = accuracy(answer.text, request.expected, self.rule) if request.expected else None
        return Score({"accuracy": value}, said or None, not answer.text.strip())

    @abstractmethod
    def entry(self, request: Request, text: str) -> dict[str, Any]:
        """Return one entry of the server's file; `text` is the answer after EvalAI's processing."""

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write a JSON list for EvalAI. The server needs every question of the split: export a whole run."""
        entries = [
            self.entry(one.request, processed(one.answer.text, (), "evalai")) for one in scored
        ]
        return [export_json(folder, self.key, entries)]


def peoples_answers(
    split: Split, number: int, found: Sequence[str | None] | None, name: str
) -> tuple[str, ...]:
    """Return the annotators' answers of a row of the split `name`.

    Raises:
        ValueError: some or all answers are missing, in one line that names the row.
    """
    answers = tuple(text for text in found or () if text is not None)
    if len(answers) != len(found or ()) or not (answers or name in HIDDEN):
        raise ValueError(
            f"{split.place}: row {number}: answers: expected a list of annotators' answers, found {found!r}"
        )
    # A dataset may write a hidden answer as an empty text.
    return answers if any(answers) or name not in HIDDEN else ()
