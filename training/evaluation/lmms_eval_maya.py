"""Adapter for lmms-eval: `--model maya` runs lmms-eval's tasks on a Maya.

    python3 -m venv .lmms-eval
    .lmms-eval/bin/pip install lmms-eval==0.7.3 "filelock<4" -e .
    .lmms-eval/bin/python -m lmms_eval --model maya --model_args pretrained=runs/mini --tasks pope \\
        --batch_size 32 --log_samples --output_path results

lmms-eval needs older releases of filelock and protobuf than constraints.txt has, so it needs its own environment.
If torch there is a CPU build, run `pip uninstall torchvision`: the ordinary build of torchvision does not
match it. lmms-eval finds this module by the entry point `lmms_eval.models`; nothing else imports the module. The
interface is that of lmms-eval 0.7.3 (api/model.py, models/registry_v2.py). The requests take the same path as
those of `maya evaluate`, so the answers are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from loguru import logger
from PIL import Image
from tqdm import tqdm

from ..common.images import to_rgb
from ..inference.generation import Answer
from ..inference.load import load
from .asking import Asking
from .protocol import Picture, Request

# lmms-eval gives this stop text to every task without one. It would cut long answers at their first blank
# line, so it is ignored, as in lmms-eval's own chat models.
DEFAULT_STOP = ["\n\n"]


def manifest() -> ModelManifest:
    """Return the manifest that the entry point gives to lmms-eval."""
    return ModelManifest("maya", chat_class_path=f"{__name__}.{Maya.__name__}")


class Maya(lmms):
    """A Maya, an adapter of one, or another image-text-to-text model that `maya evaluate` accepts.

    Args:
        pretrained: a folder or Hub repository (`user/name@revision` too).
        batch_size: number of requests in a batch.
        device: such as cpu or cuda:1; None: a GPU if there is one.
        revision: branch, tag or commit of the repository.
        trust_remote_code: passed on to transformers, for models other than Maya.
        max_new_tokens: the limit for tasks that set none.

    Raises:
        ValueError, OSError, MemoryError: in one line, as `maya evaluate` does.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        max_new_tokens: int = 128,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size: expected a number of at least 1, found {batch_size!r}")
        if "WORLD_SIZE" in os.environ and torch.cuda.is_available() and device in (None, "cuda"):
            # One process for each GPU. lmms-eval divides the requests and sets rank and world size.
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        network, processor = load(pretrained, trust_remote_code, revision)
        if device is not None:
            network = network.to(device)
        self.device = network.device
        self.max_new_tokens = max_new_tokens
        self.asking = Asking(network, processor, int(batch_size))

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Return greedy answers in the order of the requests.

        Raises:
            ValueError: a request has several turns, a video or a sound.
        """
        pictures = _Pictures(self, requests)
        asked = [self.request(number, request, pictures) for number, request in enumerate(requests)]
        found: dict[int, Answer] = {}
        with tqdm(total=len(asked), desc="maya", disable=self.rank != 0) as bar:

            def done(place: int, given: Answer) -> None:
                found[place] = given
                bar.update()

            self.asking.ask(asked, pictures, done)
        answers = [found[place] for place in range(len(asked))]
        return [GenerationResult(one.text, TokenCounts(None, one.tokens)) for one in answers]

    def request(self, number: int, request: Any, pictures: _Pictures) -> Request:
        """Convert a request of lmms-eval to one of this package."""
        _, _, options, doc, task, _ = request.args
        place = f"lmms-eval task {task!r}, document {doc}"
        messages = pictures.messages(number)
        turns = {turn["role"]: turn["content"] for turn in messages}
        roles = [turn["role"] for turn in messages]
        if roles not in (["user"], ["system", "user"]):
            raise ValueError(
                f"{place}: expected one user turn, found {', '.join(roles)}: set num_fewshot: 0"
            )
        content: list[str | Picture] = []
        for part in turns["user"]:
            if part["type"] == "text":
                content.append(part["text"])
            elif part["type"] == "image":
                content.append(Picture(pictures.name(number, part["url"])))
            else:
                raise ValueError(f"{place}: expected texts and images, found {part['type']!r}")
        system = "".join(part["text"] for part in turns.get("system", ()))
        return Request(
            id=f"{task}/{doc}",
            language="und",
            content=tuple(content),
            max_new_tokens=int(options.get("max_new_tokens") or self.max_new_tokens),
            item=str(doc),
            system=system or None,
            stop=_stop(options, task),
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError(
            "maya: expected a task with output_type generate_until, found loglikelihood: choose the "
            "generating form of the task"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError(
            "maya: expected a task with output_type generate_until, found generate_until_multi_round"
        )


class _Pictures:
    """Pictures of lmms-eval's documents, decoded on access; equal pictures share a name."""

    def __init__(self, model: Maya, requests: Sequence[Any]):
        self.model, self.requests = model, requests
        self.places: dict[str, int] = {}

    def messages(self, number: int) -> list[dict[str, Any]]:
        """Return the turns of a request: role, and content as parts with a type."""
        _, make, _, doc, task, split = self.requests[number].args
        return make(self.model.task_dict[task][split][doc])

    def name(self, number: int, picture: Image.Image) -> str:
        """Return a picture's name, which is a hash of its pixels."""
        name = hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
        self.places.setdefault(name.hexdigest(), number)
        return name.hexdigest()

    def load(self, key: str) -> Image.Image:
        number = self.places[key]
        for turn in self.messages(number):
            for part in turn["content"]:
                if part["type"] == "image" and self.name(number, part["url"]) == key:
                    return to_rgb(part["url"])
        raise ValueError(f"picture {key}: the document changed while it was asked about")


def _stop(options: Mapping[str, Any], task: str) -> tuple[str, ...]:
    """Return the stop texts of a task; warn if the task wants sampling or beams, since answers here are greedy."""
    if options.get("do_sample") or (options.get("temperature") or 0) > 0:
        logger.warning(f"{task}: the task asks for sampling, but maya answers greedily")
    if (options.get("num_beams") or 1) > 1:
        logger.warning(f"{task}: asks for {options['num_beams']} beams, but maya answers greedily")
    stop = options.get("until") or []
    stop = [stop] if isinstance(stop, str) else list(stop)
    return () if stop == DEFAULT_STOP else tuple(text for text in stop if text)
