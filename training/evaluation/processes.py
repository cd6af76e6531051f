"""Divide requests among processes that accelerate has started (`maya evaluate --processes`)."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

from .protocol import Request


@dataclass(frozen=True)
class Process:
    """The rank of this process, and the number of processes."""

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            import torch
            from accelerate import PartialState

            # One process may take days longer than another.
            days = datetime.timedelta(days=30)
            PartialState(cpu=not torch.cuda.is_available(), timeout=days).wait_for_everyone()

    def share(self, requests: Sequence[Request]) -> list[int]:
        """Return the indices of this process's equal share of requests; requests about one picture stay together."""
        about: dict[tuple[str, ...], list[int]] = {}
        for number, request in enumerate(requests):
            about.setdefault(request.pictures, []).append(number)
        mine: list[int] = []
        given = 0
        for pictures in sorted(about):
            # Requests without a picture are divided one by one.
            parts = [about[pictures]] if pictures else [[number] for number in about[pictures]]
            for part in parts:
                if given * self.count // len(requests) == self.rank:
                    mine += part
                given += len(part)
        return mine


def this_process() -> Process:
    """Return this process from accelerate's environment variables, and select its GPU if there is one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    found = Process(int(os.environ.get("RANK", "0")), count)
    found.wait()
    return found
