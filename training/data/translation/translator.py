"""Where answers come from: an endpoint, or a model in this process."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from ...common.endpoint import Answer, Endpoint
from .plan import TranslatorPlan
from .prompts import Prompt


class Translator(Protocol):
    """Where answers come from: an endpoint, or a model in this process."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(self, *error: Any) -> Any: ...

    async def answers(
        self, texts: Sequence[str], prompt: Prompt | None, parameters: dict[str, Any]
    ) -> list[Answer]: ...


class EndpointTranslator(Endpoint):
    """An endpoint as a translator: one request a text, all at once."""

    async def answers(
        self, texts: Sequence[str], prompt: Prompt | None, parameters: dict[str, Any]
    ) -> list[Answer]:
        assert prompt is not None
        found = await asyncio.gather(
            *(self.complete(prompt.messages(text), **parameters) for text in texts),
            return_exceptions=True,
        )
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in found if isinstance(answer, Answer)]


def make_translator(
    plan: TranslatorPlan, source: str, target: str, trust_remote_code: bool = False
) -> Translator:
    """The translator of a plan for one direction, not yet opened."""
    if plan.endpoint is not None:
        return EndpointTranslator(plan.endpoint)
    assert plan.local is not None
    from .local_models import LocalModel  # loads torch

    return LocalModel(plan.local, source, target, trust_remote_code)
