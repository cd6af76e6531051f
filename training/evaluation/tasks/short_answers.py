"""Base class of the tasks that compare a short answer with reference answers by a published rule."""

from typing import Any, ClassVar

from ...inference.generation import Answer
from ..protocol import Request, Score, Task
from ..scoring.short_answers import METRIC, RULES
from ..scoring.short_answers import Task as RuleOwner


class ShortAnswers(Task):
    """Scores answers by a published rule of `scoring/short_answers.py` and, as a second metric, by this package's `same`.

    A request's `expected` is the reference answer, or a tuple of several.
    """

    name: ClassVar[RuleOwner]
    # Protocol -> name of its rule in RULES[name].
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
        """Return the form in which the answer is listed."""
        return text.strip().lower()

    def score(self, request: Request, answer: Answer) -> Score:
        several = isinstance(request.expected, tuple)
        gold = request.expected if several else [request.expected]
        values: dict[str, float | None] = {
            "accuracy": float(RULES[self.name][self.rule](answer.text, gold)),
            "same": float(RULES[self.name]["same"](answer.text, gold)),
        }
        return Score(values, self.parsed(answer.text) or None, not answer.text.strip())
