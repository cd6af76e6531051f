"""The share of each of several processes, which accelerate has started (`maya evaluate --processes`)."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

from .protocol import Request


@dataclass(frozen=True)
class Process:
    """Which of how many processes this one is."""

    rank: int = 0
    count: int = 1

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            import torch
            from accelerate import PartialState

            # One process may answer for days longer than another.
            days = datetime.timedelta(days=30)
            PartialState(cpu=not torch.cuda.is_available(), timeout=days).wait_for_everyone()

    def share(self, requests: Sequence[Request]) -> list[int]:
        """Places of this process's requests: about as many as others have, and all about the same pictures."""
        about: dict[tuple[str, ...], list[int]] = {}
        for number, request in enumerate(requests):
            about.setdefault(request.pictures, []).append(number)
        mine: list[int] = []
        given = 0
        for pictures in sorted(about):
            # Requests without a picture share nothing.
            parts = [about[pictures]] if pictures else [[number] for number in about[pictures]]
            for part in parts:
                if given * self.count // len(requests) == self.rank:
                    mine += part
                given += len(part)
        return mine


def this_process() -> Process:
    """This process, as accelerate's variables tell; on a GPU it takes its own one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    found = Process(int(os.environ.get("RANK", "0")), count)
    found.wait()
    return found
