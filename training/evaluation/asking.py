"""Ask a model in this process the requests of tasks, and show the progress of an evaluation."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from PIL.Image import Image
from tqdm import tqdm

from ..common.telling import one_line
from ..inference.generation import Answer, Question, answers
from .protocol import Loaded, Picture, Pictures, Request, blind

# Called with a request's index and its answer, as soon as the answer exists.
Done = Callable[[int, Answer], None]


class Asked(Protocol):
    """A model that answers requests."""

    def ask(self, requests: Sequence[Request], pictures: Pictures, done: Done) -> None:
        """Answer every request; `done` is called in this thread, in any order.

        Raises:
            ValueError, OSError: in one line: a picture cannot be read, or requests have no answer.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which the model is asked, for the results."""


class Asking:
    """A model in this process that answers requests.

    Args:
        network, processor: as returned by `model.load`.
        batch_size: number of requests in a batch.
        processes: number of processes that share this machine's cores.
    """

    def __init__(self, network: Any, processor: Any, batch_size: int, processes: int = 1):
        self.network, self.processor, self.batch_size = network, processor, batch_size
        # On a CPU, a small model is faster with one thread for each core than with all cores on one batch.
        small = sum(p.numel() for p in network.parameters()) < 200_000_000
        cores = max(1, min(os.cpu_count() or 1, 8) // processes)
        self.workers = cores if small and network.device.type == "cpu" else 1
        if self.workers > 1:
            torch.set_num_threads(1)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with which the model is asked, for the results."""
        return {"batch_size": self.batch_size, "workers": self.workers}

    def ask(self, requests: Sequence[Request], pictures: Pictures, done: Done) -> None:
        """Answer every request, see `Asked.ask`."""
        keys = sorted({key for request in requests for key in request.pictures})
        place = {key: number for number, key in enumerate(keys)}
        questions = [
            Question(
                tuple(
                    place[part.key] if isinstance(part, Picture) else part
                    for part in request.content
                ),
                request.max_new_tokens,
                request.system,
                request.stop,
            )
            for request in requests
        ]
        asked = _InOrder(pictures, keys)
        with self._naming_pictures(asked):
            for number, given in answers(
                self.network,
                self.processor,
                asked,
                questions,
                batch_size=self.batch_size,
                workers=self.workers,
            ):
                done(number, given)

    @contextlib.contextmanager
    def _naming_pictures(self, asked: "_InOrder") -> Iterator[None]:
        """Name the picture in the error if the processor does not accept it."""
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

    def try_out(self, parts: Iterable[Loaded], without_pictures: bool) -> None:
        """Generate one token for one request of each kind of every task, to test that the model accepts it.

        Kinds differ in the number of pictures and in the presence of a system turn.
        """
        for part in parts:
            kinds: dict[tuple[int, bool], Request] = {}
            for request in part.requests:
                kind = len(request.pictures), request.system is not None
                kinds.setdefault(kind, request)
            tried = [replace(request, max_new_tokens=1) for request in kinds.values()]
            tried += [blind(request) for request in tried[:1]] if without_pictures else []
            self.ask(tried, part.pictures, lambda place, given: None)


class _InOrder:
    """Pictures by their index in a list of keys, read on access."""

    def __init__(self, pictures: Pictures, keys: Sequence[str]):
        self.pictures, self.keys = pictures, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, place: int) -> Image:
        return self.pictures.load(self.keys[place])


class Progress:
    """The progress over all tasks: the number of answers (or another `unit`) and the time left.

    A terminal shows a bar; other outputs get a line at most every `every` seconds. Without `shown`, nothing is printed.
    """

    def __init__(self, total: int, every: float = 10.0, shown: bool = True, unit: str = "answers"):
        bar = shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, unit=f" {unit}", disable=not bar)
        self.lines = shown and not bar
        self.total, self.every, self.count, self.name = total, every, 0, ""
        self.unit = unit
        self.began = self.printed = time.perf_counter()

    def start(self, name: str) -> None:
        """Set the name of the current task."""
        self.name = name
        self.bar.set_description(name)

    def add(self) -> None:
        """Count one more answer."""
        self.count += 1
        self.bar.update()
        now = time.perf_counter()
        if self.lines and now - self.printed > self.every:
            self.printed = now
            rate = self.count / (now - self.began)
            left = tqdm.format_interval((self.total - self.count) / rate)
            print(
                f"{self.name}: {self.count:,} of {self.total:,} {self.unit}, {rate:,.1f} a second, {left} left",
                flush=True,
            )

    def close(self) -> None:
        """End the line in the terminal."""
        self.bar.close()
