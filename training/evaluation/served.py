"""Ask a model behind an OpenAI-compatible server the requests of tasks: vLLM, SGLang, `transformers serve`."""

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
    """A model behind a server, asked greedily (temperature 0) with `plan.concurrency` requests at a time.

    Pictures are sent as PNG in base64 data URLs. The server applies its own chat template.
    """

    def __init__(self, plan: EndpointPlan):
        self.plan = plan

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which the model is asked, for the results."""
        return {"server": "OpenAI-compatible", "concurrency": self.plan.concurrency}

    @property
    def info(self) -> ModelInfo:
        """Return the model's info for the results. A server reports no weights, sizes or dtype, so they are None."""
        info = known_by_name(self.plan.model)
        info["revision"] = self.plan.model_revision
        return info

    @property
    def identity(self) -> str:
        """Return a hash of everything known of the model: the server's address, the model's name and revision."""
        return sha256_text(json.dumps([self.plan.url, self.plan.model, self.plan.model_revision]))

    def ask(self, requests: Sequence[Request], pictures: Pictures, done: Done) -> None:
        """Answer every request, see `Asked.ask`.

        Raises:
            EndpointError: the server refuses all requests, or no server listens.
            OSError: some requests got no answer; the other answers were passed to `done`.
        """
        failed = asyncio.run(self._ask(requests, pictures, done))
        if failed:
            raise OSError(
                f"{self.plan.url}: {len(failed):,} of {len(requests):,} requests got no answer, the first "
                f"{failed[0]}: the same command asks only these again"
            )

    async def _ask(self, requests: Sequence[Request], pictures: Pictures, done: Done) -> list[str]:
        """Ask, and return one line for each request without an answer."""
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

        # A message is built only when a worker is free, so that few pictures are in memory at a time.
        try:
            async with Endpoint(self.plan) as endpoint, asyncio.TaskGroup() as group:
                for _ in range(min(self.plan.concurrency, len(requests))):
                    group.create_task(work(endpoint))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return failed


def _messages(request: Request, pictures: Pictures) -> list[dict[str, Any]]:
    """Return the request as chat messages for the server."""
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
