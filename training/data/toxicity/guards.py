"""Judges that write their verdict as text: guard models behind an endpoint or in this process.

A protocol (`protocols.py`) defines the prompt of a model and the parser of its answers. A chat runs the model:
`EndpointChat`, or `LocalChat` for a transformers model. Decoding is greedy.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...common.endpoint import Answer, Endpoint, EndpointPlan
from ...common.schema import digest
from .classifiers import local_revision
from .protocols import GuardProtocol
from .verdicts import ImageRef, Judgement

VERSION = 1
TOP_LOGPROBS = 20  # the maximum of vLLM and OpenAI


class EndpointChat(Endpoint):
    """A guard behind an OpenAI-compatible endpoint.

    logprobs: request log probabilities of the tokens, from which the score is computed. If a server returns
        none, there is no score.
    """

    def __init__(self, plan: EndpointPlan, *, logprobs: bool = True) -> None:
        super().__init__(plan)
        self.logprobs = logprobs

    @staticmethod
    def image_part(image: ImageRef) -> dict:
        """Return the image as a content part of a message."""
        data = base64.b64encode(image.data).decode()
        return {"type": "image_url", "image_url": {"url": f"data:{image.media_type};base64,{data}"}}

    async def complete_all(self, chats: Sequence[list[dict]], max_tokens: int) -> list[Answer]:
        """Return one answer per chat, in order."""
        parameters: dict[str, Any] = {"temperature": 0, "max_tokens": max_tokens}
        if self.logprobs:
            parameters |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return list(await asyncio.gather(*(self.complete(chat, **parameters) for chat in chats)))


@dataclass
class LocalChat:
    """A guard in this process: a transformers causal model, or an image-text-to-text model.

    The chats of one call form one padded batch.
    """

    model: str
    images: bool
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    _model: Any = field(default=None, init=False)
    _reader: Any = field(default=None, init=False)

    async def __aenter__(self) -> LocalChat:
        await asyncio.to_thread(self._load)
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._model = self._reader = None

    @staticmethod
    def image_part(image: ImageRef) -> dict:
        return {"type": "image", "image": image.picture}

    async def complete_all(self, chats: Sequence[list[dict]], max_tokens: int) -> list[Answer]:
        return await asyncio.to_thread(self._generate, chats, max_tokens)

    def _load(self) -> None:
        import torch
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            AutoProcessor,
            AutoTokenizer,
        )

        common = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        auto = AutoModelForImageTextToText if self.images else AutoModelForCausalLM
        self._model = auto.from_pretrained(self.model, dtype=self.dtype or "auto", **common).eval()
        reader = AutoProcessor if self.images else AutoTokenizer
        self._reader = reader.from_pretrained(self.model, **common)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self.device or default)
        tokenizer = self._tokenizer
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @property
    def _tokenizer(self) -> Any:
        return self._reader.tokenizer if self.images else self._reader

    def _generate(self, chats: Sequence[list[dict]], max_tokens: int) -> list[Answer]:
        import torch

        inputs = self._reader.apply_chat_template(
            list(chats),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            **({"processor_kwargs": {"padding": True}} if self.images else {"padding": True}),
        ).to(self._model.device)
        if self.images:
            inputs = inputs.to(self._model.dtype)
        with torch.inference_mode():
            found = self._model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                return_dict_in_generate=True,
                output_logits=True,
            )
        width = inputs["input_ids"].shape[1]
        logprobs = [step.float().log_softmax(-1) for step in found.logits]  # (batch, vocabulary)
        ends = self._model.generation_config.eos_token_id
        stop = set(ends) if isinstance(ends, list) else {ends}
        return [
            self._answer(ids[width:].tolist(), [step[n] for step in logprobs], stop)
            for n, ids in enumerate(found.sequences)
        ]

    def _answer(self, ids: list[int], steps: list[Any], stop: set) -> Answer:
        length = next((n for n, token in enumerate(ids) if token in stop), len(ids))
        decode = self._tokenizer.decode
        content = []
        for token, step in zip(ids[:length], steps, strict=False):
            best = step.topk(min(TOP_LOGPROBS, step.numel()))
            top = [
                {"token": decode([int(i)]), "logprob": float(value)}
                for value, i in zip(best.values, best.indices, strict=True)
            ]
            item = {"token": decode([token]), "logprob": float(step[token]), "top_logprobs": top}
            content.append(item)
        return Answer(
            text=decode(ids[:length], skip_special_tokens=True),
            finish_reason="stop" if length < len(ids) else "length",
            attempts=1,
            error=None,
            model=self.model,
            logprobs=content,
        )


class GuardJudge:
    """A guard model with its protocol, as a judge of texts, images or rationales.

    prompt: replaces the protocol's prompt.
    """

    def __init__(
        self,
        protocol: GuardProtocol,
        chat: EndpointChat | LocalChat,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        batch_size: int = 1,
    ) -> None:
        self.protocol, self.chat = protocol, chat
        self.prompt = protocol.prompt if prompt is None else prompt
        self.max_tokens = max_tokens or protocol.max_tokens
        self.policy_sha = digest([self.prompt])
        if isinstance(chat, EndpointChat):
            plan = chat.plan
            self.batch_rows, self.concurrency = 1, plan.concurrency
            self.model_revision = plan.model_revision or "unknown"
            where = ["endpoint", plan.model, chat.logprobs]
        else:
            self.batch_rows, self.concurrency = batch_size, 1
            self.model_revision = local_revision(chat.model) or chat.revision or "main"
            where = ["transformers", chat.model, chat.dtype]
        self.key = digest(
            {
                "guard": VERSION,
                "protocol": [protocol.name, protocol.version, self.prompt, self.max_tokens],
                "model": [*where, self.model_revision],
            }
        )

    async def __aenter__(self) -> GuardJudge:
        await self.chat.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.chat.__aexit__(*error)

    async def judge(self, items: Sequence[tuple[str, str]] | Sequence[ImageRef]) -> list[Judgement]:
        chats = []
        for item in items:
            if isinstance(item, ImageRef):
                parts = [self.chat.image_part(item), {"type": "text", "text": self.prompt}]
                chats.append([{"role": "user", "content": parts}])
            else:
                chats.append(self.protocol.messages(self.prompt, item[0]))
        answers = await self.chat.complete_all(chats, self.max_tokens)
        return [self._read(answer) for answer in answers]

    def _read(self, answer: Answer) -> Judgement:
        if answer.text is None:
            return Judgement.unreadable(None, answer.error or "no answer")
        if answer.finish_reason not in (None, "stop"):
            # An answer that was cut off is not a verdict, whatever it says so far.
            why = f"the verdict was cut off (finish_reason {answer.finish_reason!r})"
            return Judgement.unreadable(answer.text, why)
        return self.protocol.read(answer.text, answer.logprobs)
