"""What tasks of short answers share: an answer is held against the right ones by a published rule."""

from typing import Any, ClassVar

from ...inference.generation import Answer
from ..protocol import Request, Score, Task
from ..scoring.short_answers import METRIC, RULES
from ..scoring.short_answers import Task as RuleOwner


class ShortAnswers(Task):
    """Scores by a rule of `scoring/short_answers.py`, and beside it by this package's own, `same`.

    A request's `expected` is the right answer, or a tuple of several.
    """

    name: ClassVar[RuleOwner]
    # Protocol -> its rule, among RULES of the task's name.
    rules: ClassVar[dict[str, str]]
    metrics = {
        "accuracy": {"title": "right answers", "higher_is_better": True, "percent": True},
        "same": {
            "title": "equal after removal of marks around",
            "higher_is_better": True,
            "percent": True,
        },
    }

    @property
    def rule(self) -> str:
        return self.rules[self.protocol]

    def describe(self) -> dict[str, Any]:
        return {"metric": f"{METRIC} {self.rule}"}

    def parsed(self, text: str) -> str:
        """What an answer is listed as."""
        return text.strip().lower()

    def score(self, request: Request, answer: Answer) -> Score:
        several = isinstance(request.expected, tuple)
        gold = request.expected if several else [request.expected]
        values: dict[str, float | None] = {
            "accuracy": float(RULES[self.name][self.rule](answer.text, gold)),
            "same": float(RULES[self.name]["same"](answer.text, gold)),
        }
        return Score(values, self.parsed(answer.text) or None, not answer.text.strip())
