"""The interface of a judge, a model that replies to cases; and a judge at an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from ...common.endpoint import Answer, Endpoint, EndpointError, EndpointPlan
from ...common.images import png_url
from ...common.telling import one_line
from .rubric import Case

# The newer name of `max_tokens`. A server that wants the newer name says so when it refuses the older one.
NEWER = "max_completion_tokens"


@dataclass(frozen=True)
class Reply:
    """A judge's reply to one case.

    Args:
        text: the reply; None for a call that failed.
        error: the reason why a call failed, in one line.
        served: the name of the model in the server's response.
        structured: whether the server constrained the reply to the rubric's JSON schema.
        usage: token counts.
    """

    text: str | None
    error: str | None
    served: str
    structured: bool = False
    usage: dict[str, Any] = field(default_factory=dict)


Told = Callable[[int, Reply], None]


class Judge(Protocol):
    """Replies to cases.

    Attributes:
        id: the model's name.
        version: the commit or hash of its weights, None if unknown.
    """

    id: str
    version: str | None

    def ask(self, cases: Sequence[Case], told: Told) -> None:
        """Call `told(place, reply)` once for each case, in any order; `place` is the case's index.

        Raises:
            OSError: the judge cannot be reached; `told` was called for earlier replies.
            Exception: from `told`, after `told` was called for the calls under way.
        """


class EndpointJudge:
    """A judge behind an OpenAI-compatible address.

    If a server refuses a JSON schema, later requests have none. If a server wants `max_completion_tokens`
    instead of `max_tokens`, later requests use it.

    Raises:
        ValueError: no model is named, or the key's environment variable is not set.
        OSError: no server listens at the address.
    """

    def __init__(self, plan: EndpointPlan):
        Endpoint(plan)  # checks the model's name
        plan.api_key()
        self.plan, self.id, self.version = plan, plan.model, plan.model_revision
        self._schemas, self._limit = True, "max_tokens"
        _check_listening(plan)

    def ask(self, cases: Sequence[Case], told: Told) -> None:
        asyncio.run(self._ask(cases, told))

    async def _ask(self, cases: Sequence[Case], told: Told) -> None:
        waiting = iter(enumerate(cases))
        errors: list[Exception] = []

        async def work(endpoint: Endpoint) -> None:
            # Calls under way are paid for, so they end and are reported even if another call failed.
            for place, case in waiting:
                try:
                    told(place, await self._reply(endpoint, case))
                except Exception as error:
                    errors.append(error)
                if errors:
                    return

        async with Endpoint(self.plan) as endpoint:
            workers = min(self.plan.concurrency, len(cases))
            await asyncio.gather(*(work(endpoint) for _ in range(workers)))
        if errors:
            raise errors[0]

    async def _reply(self, endpoint: Endpoint, case: Case) -> Reply:
        messages = messages_of(case)
        structured = case.rubric.schema is not None and self._schemas
        if structured:
            schema = {"name": case.rubric.name, "strict": True, "schema": case.rubric.schema}
            form = {"type": "json_schema", "json_schema": schema}
            answer = await self._complete(endpoint, case, messages, response_format=form)
            if not _refused(answer):
                return _as_reply(answer, structured)
        answer = await self._complete(endpoint, case, messages)
        if structured and not _refused(answer):
            self._schemas = False
        return _as_reply(answer, False)

    async def _complete(
        self, endpoint: Endpoint, case: Case, messages: list[dict[str, Any]], **more: Any
    ) -> Answer:
        """Return the answer; the token limit is sent under the name that the server accepts."""
        while True:
            limit = self._limit
            more |= {"temperature": case.temperature, limit: case.rubric.max_tokens}
            answer = await endpoint.complete(messages, **more)
            if limit == NEWER or not _refused(answer) or NEWER not in (answer.error or ""):
                return answer
            self._limit = NEWER
            del more[limit]


def _refused(answer: Answer) -> bool:
    """Return whether a server rejects a request as invalid, as servers without JSON schemas do."""
    return answer.error is not None and answer.error.startswith(("HTTP 400", "HTTP 422"))


def _as_reply(answer: Answer, structured: bool) -> Reply:
    return Reply(answer.text, answer.error, answer.model, structured, answer.usage)


def messages_of(case: Case) -> list[dict[str, Any]]:
    """Return a case as messages for chat completions, with pictures as PNG data URLs."""
    content: Any = case.text
    if case.pictures:
        content = [
            {"type": "image_url", "image_url": {"url": png_url(picture)}} for picture in case.load()
        ]
        content.append({"type": "text", "text": case.text})
    system = [{"role": "system", "content": case.rubric.system}] if case.rubric.system else []
    return [*system, {"role": "user", "content": content}]


def _check_listening(plan: EndpointPlan) -> None:
    """Raise EndpointError if no server listens: an early error saves the time of generating answers."""
    parts = urlsplit(plan.base_url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), plan.connect_timeout):
            pass
    except OSError as error:
        raise EndpointError(
            one_line(
                f"--judge {plan.base_url}: expected a server, found none ({error}): start the judge's server, or "
                "correct the address"
            )
        ) from None
