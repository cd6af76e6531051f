"""A local transformers model as judge: a chat model of text, or of images and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError

from ...common.files import files_sha256
from ...common.models import (
    check_report,
    check_weights,
    find_model,
    load_network,
    opening,
    read_config,
)
from ...inference.load import load
from .judge import Reply, Told
from .rubric import Case


class LocalJudge:
    """Replies to one case at a time, greedily at temperature 0, without constraining replies to a JSON schema.

    Args:
        model: a folder or Hub repository.
        revision: branch, tag or commit of a repository.
        trust_remote_code: passed on to transformers.

    Raises:
        FileNotFoundError, ValueError, MemoryError: from `load`, or if the tokenizer has no chat template.
    """

    def __init__(self, model: str, revision: str | None = None, trust_remote_code: bool = False):
        found = find_model(model, revision)
        self.sees = found.is_adapter or "vision_config" in read_config(found)
        self.network: Any
        self.processor: Any
        if self.sees:
            self.network, self.processor = load(model, trust_remote_code, revision)
        else:
            from transformers import AutoModelForCausalLM, AutoTokenizer

            check_weights(found)
            gpu = torch.cuda.is_available()
            self.network, report = load_network(
                AutoModelForCausalLM,
                found,
                dtype="auto" if gpu else torch.float32,
                trust_remote_code=trust_remote_code,
            )
            check_report(found, report)
            self.network = self.network.to("cuda" if gpu else "cpu").eval()
            with opening(found):
                self.processor = AutoTokenizer.from_pretrained(
                    found.name, trust_remote_code=trust_remote_code, **found.options
                )
        if not self.processor.chat_template:
            raise ValueError(f"--judge {model}: expected a chat model, found no chat template")
        local = found.revision is None
        self.id = found.title
        self.version = files_sha256(found.folder.glob("*.safetensors")) if local else found.revision

    def ask(self, cases: Sequence[Case], told: Told) -> None:
        for place, case in enumerate(cases):
            told(place, self._reply(case))

    def _reply(self, case: Case) -> Reply:
        if case.pictures and not self.sees:
            raise ValueError(
                f"judge {self.id}: expected a model of images and text, since the rubric {case.rubric.id} "
                "shows the picture, found a model of text: name another judge"
            )
        inputs = self._inputs(case)
        warm = case.temperature > 0
        torch.manual_seed(case.sample * 1000 + case.attempt)
        with torch.inference_mode():
            output = self.network.generate(
                **inputs,
                max_new_tokens=case.rubric.max_tokens,
                do_sample=warm,
                **({"temperature": case.temperature} if warm else {}),
            )
        asked = inputs["input_ids"].shape[1]
        text = self.processor.decode(output[0, asked:], skip_special_tokens=True)
        usage = {"prompt_tokens": asked, "completion_tokens": output.shape[1] - asked}
        return Reply(text.strip(), None, self.id, usage=usage)

    def _inputs(self, case: Case) -> Any:
        """Return the case in the model's chat template, as tensors."""
        system, pictures = case.rubric.system, len(case.pictures)
        turns = [{"role": "user", "content": self._content(pictures, case.text)}]
        try:
            before = [{"role": "system", "content": self._content(0, system)}] if system else []
            prompt = self._prompt([*before, *turns])
        except TemplateError:  # the template has no system turn
            text = f"{system}\n\n{case.text}"
            prompt = self._prompt([{"role": "user", "content": self._content(pictures, text)}])
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        # Many templates write the BOS token themselves; the tokenizer must not add a second one.
        bos = tokenizer.bos_token
        options = {
            "return_tensors": "pt",
            "add_special_tokens": not (bos and prompt.startswith(bos)),
        }
        if not self.sees:
            return self.processor(prompt, **options).to(self.network.device)
        images = [case.load()] if case.pictures else None
        inputs = self.processor(text=[prompt], images=images, **options)
        return inputs.to(self.network.device, self.network.dtype)

    def _prompt(self, turns: list[dict[str, Any]]) -> str:
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def _content(self, pictures: int, text: str) -> Any:
        if not self.sees:
            return text
        return [*[{"type": "image"}] * pictures, {"type": "text", "text": text}]
