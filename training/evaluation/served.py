"""Puts the requests of tasks to a model behind an OpenAI-compatible server: vLLM, SGLang, `transformers serve`."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from ..common.endpoint import Endpoint, EndpointPlan
from ..common.files import sha256_text
from ..common.images import png_url
from ..inference.generation import Answer
from .asking import Done
from .protocol import Picture, Pictures, Request
from .results import ModelInfo, known_by_name


class Served:
    """Puts requests to a server, `plan.concurrency` at a time, greedily (temperature 0).

    Pictures are sent as PNG in base64 data URLs. The server's own chat template is used.
    """

    def __init__(self, plan: EndpointPlan):
        self.plan = plan

    @property
    def settings(self) -> dict[str, Any]:
        """How it is asked, for results."""
        return {"server": "OpenAI-compatible", "concurrency": self.plan.concurrency}

    @property
    def info(self) -> ModelInfo:
        """What results say of the model. A server does not tell its weights, sizes or dtype: None."""
        info = known_by_name(self.plan.model)
        info["revision"] = self.plan.model_revision
        return info

    @property
    def identity(self) -> str:
        """A hash over all that is known of the model: the server's address, its name, its revision."""
        return sha256_text(json.dumps([self.plan.url, self.plan.model, self.plan.model_revision]))

    def ask(self, requests: Sequence[Request], pictures: Pictures, done: Done) -> None:
        """See `Asked.ask`.

        Raises:
            EndpointError: the server refuses everyone, or nobody is there.
            OSError: some requests got no answer; the others were given to `done`.
        """
        failed = asyncio.run(self._ask(requests, pictures, done))
        if failed:
            raise OSError(
                f"{self.plan.url}: {len(failed):,} of {len(requests):,} requests got no answer, the first "
                f"{failed[0]}: run the same command again, which asks only these"
            )

    async def _ask(self, requests: Sequence[Request], pictures: Pictures, done: Done) -> list[str]:
        """What went wrong with requests that got no answer, a line each."""
        failed: list[str] = []
        waiting = iter(enumerate(requests))

        async def work(endpoint: Endpoint) -> None:
            for place, request in waiting:
                messages = await asyncio.to_thread(_messages, request, pictures)
                stop = {"stop": list(request.stop)} if request.stop else {}
                found = await endpoint.complete(
                    messages, temperature=0, max_tokens=request.max_new_tokens, **stop
                )
                if found.text is None:
                    failed.append(f"{request.id!r}: {found.error}")
                    continue
                tokens = found.usage.get("completion_tokens")
                ended = found.finish_reason != "length"
                known = tokens if isinstance(tokens, int) else None
                done(place, Answer(found.text.strip(), known, ended))

        # Each request is made when there is a place for it, so that few pictures are held at once.
        try:
            async with Endpoint(self.plan) as endpoint, asyncio.TaskGroup() as group:
                for _ in range(min(self.plan.concurrency, len(requests))):
                    group.create_task(work(endpoint))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return failed


def _messages(request: Request, pictures: Pictures) -> list[dict[str, Any]]:
    """The conversation as servers take it."""
    content = [
        {"type": "image_url", "image_url": {"url": png_url(pictures.load(part.key))}}
        if isinstance(part, Picture)
        else {"type": "text", "text": part}
        for part in request.content
    ]
    turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if request.system is not None:
        turns.insert(0, {"role": "system", "content": request.system})
    return turns
