"""Translate in this process with transformers, for small models: NLLB, M2M-100, a chat model.

A model has the interface of an endpoint: texts in, `Answer`s out, with the same parameter names.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

from ...common.endpoint import Answer
from .plan import LocalPlan
from .prompts import Prompt

# Parameter of an OpenAI-compatible server -> parameter of `generate`.
_RENAMED = {"max_tokens": "max_new_tokens"}


class LocalModel:
    """A translation or chat model of transformers; use it as an async context manager.

    Raises:
        ValueError: the model has no code or token for a language, or the tokenizer of a causal model has
            no chat template.
    """

    def __init__(self, plan: LocalPlan, source: str, target: str, trust_remote_code: bool = False):
        self.plan = plan
        self._trust = trust_remote_code
        self._source = self._target = None
        if plan.codes:
            for lang in (source, target):
                if lang not in plan.codes:
                    raise ValueError(
                        f"{plan.model}: codes: expected a code for {lang!r}, found codes for "
                        f"{', '.join(plan.codes)}"
                    )
            self._source, self._target = plan.codes[source], plan.codes[target]

    async def __aenter__(self) -> "LocalModel":
        await asyncio.to_thread(self._load)
        return self

    async def __aexit__(self, *_: object) -> None:
        del self.model, self.tokenizer

    def _load(self) -> None:
        options: dict[str, Any] = {
            "revision": self.plan.revision or "main",
            "trust_remote_code": self._trust,
        }
        config = AutoConfig.from_pretrained(self.plan.model, **options)
        seq2seq = config.is_encoder_decoder
        kind = self.plan.kind or ("seq2seq" if seq2seq else "causal")
        if (kind == "seq2seq") != seq2seq:
            raise ValueError(
                f"{self.plan.model}: kind: expected a kind that fits the model, found {kind}: the model "
                f"{'has' if seq2seq else 'does not have'} an encoder"
            )
        device = self.plan.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self.plan.dtype or ("float32" if device == "cpu" else "auto")
        auto = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
        self.model: PreTrainedModel = auto.from_pretrained(self.plan.model, dtype=dtype, **options)
        self.model.to(device).eval()
        extra = {"src_lang": self._source} if seq2seq and self._source else {}
        # Causal models continue after the last token, so padding goes before the first.
        side = {} if seq2seq else {"padding_side": "left"}
        self.tokenizer = AutoTokenizer.from_pretrained(self.plan.model, **options, **extra, **side)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self._forced: dict[str, int] = {}
        if not seq2seq:
            if self.tokenizer.chat_template is None:
                raise ValueError(
                    f"{self.plan.model}: expected a chat template, found none: use an instruct model"
                )
        elif self._target:
            token = self.plan.language_token.format(code=self._target)
            number = self.tokenizer.convert_tokens_to_ids(token)
            if number is None or number == self.tokenizer.unk_token_id:
                raise ValueError(
                    f"{self.plan.model}: expected the token {token!r} in the vocabulary, found none: correct "
                    "codes or language_token"
                )
            self._forced = {"forced_bos_token_id": number}

    async def answers(
        self, texts: Sequence[str], prompt: Prompt | None, parameters: dict[str, Any]
    ) -> list[Answer]:
        """Return one answer per text, in order, generated in batches of `batch_size`.

        Raises:
            ValueError: a seq2seq model got a prompt, or a causal model got none.
        """
        if (prompt is None) != self.model.config.is_encoder_decoder:
            expected = '"preamble"' if prompt is None else '"none"'
            raise ValueError(f"{self.plan.model}: prompt: expected {expected} for such a model")
        found: list[Answer] = []
        for start in range(0, len(texts), self.plan.batch_size):
            batch = texts[start : start + self.plan.batch_size]
            # Use a thread: journals are written while the model generates.
            found += await asyncio.to_thread(self._generate, batch, prompt, parameters)
        return found

    @torch.inference_mode()
    def _generate(
        self, texts: Sequence[str], prompt: Prompt | None, parameters: dict[str, Any]
    ) -> list[Answer]:
        seq2seq = self.model.config.is_encoder_decoder
        if seq2seq:
            inputs = self.tokenizer(list(texts), padding=True, return_tensors="pt")
        else:
            assert prompt is not None
            inputs = self.tokenizer.apply_chat_template(
                [prompt.messages(text) for text in texts],
                add_generation_prompt=True,
                tokenize=True,
                padding=True,
                return_dict=True,
                return_tensors="pt",
            )
        options = {_RENAMED.get(name, name): value for name, value in parameters.items()}
        seed = options.pop("seed", None)
        options["do_sample"] = bool(options.get("temperature"))
        if not options["do_sample"]:
            options.pop("temperature", None)
            options.pop("top_p", None)
        elif seed is not None:
            torch.manual_seed(seed)
        output = self.model.generate(
            **inputs.to(self.model.device),
            **self._forced,
            **options,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        if not seq2seq:
            output = output[:, inputs["input_ids"].shape[1] :]
        ends = self.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        answers = []
        # Skip the start token of a seq2seq model, which may equal the end token (NLLB).
        for tokens in (output[:, 1:] if seq2seq else output).tolist():
            answers.append(
                Answer(
                    text=self.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
                    finish_reason="stop" if ends & set(tokens) else "length",
                    attempts=1,
                    error=None,
                    model=self.plan.model,
                )
            )
        return answers
