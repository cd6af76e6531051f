"""Puts the requests of tasks to one model, and tells how far it is."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL.Image import Image

from ..common.telling import one_line
from ..inference.generation import Answer, Question, answer
from .protocol import Loaded, Pictures, Request


class Asking:
    """Puts requests to one model.

    Args:
        network, processor: as `model.load` gives them.
        batch_size: requests answered together.
    """

    def __init__(self, network: Any, processor: Any, batch_size: int):
        self.network, self.processor, self.batch_size = network, processor, batch_size
        # A small model on CPU answers faster as one thread a core than with all cores on one batch.
        small = sum(p.numel() for p in network.parameters()) < 200_000_000
        self.workers = min(os.cpu_count() or 1, 8) if small and network.device.type == "cpu" else 1
        if self.workers > 1:
            torch.set_num_threads(1)

    def __call__(
        self, requests: Sequence[Request], pictures: Pictures, progress: Callable[[int], None]
    ) -> list[Answer]:
        """Answers in the order of the requests."""
        keys = sorted({key for request in requests for key in request.pictures})
        place = {key: number for number, key in enumerate(keys)}
        questions = [
            Question(
                place[request.pictures[0]] if request.pictures else None,
                request.text,
                request.max_new_tokens,
            )
            for request in requests
        ]
        asked = _InOrder(pictures, keys)
        with self._naming_pictures(asked):
            return answer(
                self.network,
                self.processor,
                asked,
                questions,
                batch_size=self.batch_size,
                workers=self.workers,
                progress=progress,
            )

    @contextlib.contextmanager
    def _naming_pictures(self, asked: "_InOrder") -> Iterator[None]:
        """Name the picture in the error of one that the processor does not take."""
        try:
            yield
        except ValueError:
            read: Any = getattr(self.processor, "image_processor", None)
            for place, key in enumerate(asked.keys) if read else ():
                picture = asked[place]
                try:
                    read(picture, return_tensors="pt")
                except ValueError as error:
                    raise ValueError(one_line(f"picture {key!r}: {error}")) from None
            raise

    def try_out(self, parts: Iterable[Loaded], blind: bool) -> None:
        """Ask about each task's first picture for one token, to see whether the model can be asked so."""
        question = "What is this?"
        for part in parts:
            keys = next((r.pictures for r in part.requests if r.pictures), ())
            if keys:
                asked = _InOrder(part.pictures, keys[:1])
                with self._naming_pictures(asked):
                    answer(self.network, self.processor, asked, [Question(0, question, 1)])
        if blind:
            answer(self.network, self.processor, [], [Question(None, question, 1)])


class _InOrder:
    """Pictures by their place in a list of keys, read when they are asked for."""

    def __init__(self, pictures: Pictures, keys: Sequence[str]):
        self.pictures, self.keys = pictures, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> Image:
        return self.pictures.load(self.keys[place])


class Progress:
    """Prints how far a run is, at most every five seconds."""

    def __init__(self, name: str, total: int):
        self.name, self.total = name, total
        self.began = self.printed = time.perf_counter()

    def __call__(self, done: int) -> None:
        now = time.perf_counter()
        if now - self.printed > 5:
            self.printed = now
            rate = done / (now - self.began)
            print(
                f"{self.name}: {done:,} of {self.total:,} answers, {rate:,.0f} a second", flush=True
            )
