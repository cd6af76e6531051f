"""A stage in progress: what its parts hand to one another."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.telling import printable
from ..recipe import Recipe, StageRecipe
from .manifest import WORK


@dataclass(frozen=True)
class StageRun:
    """A stage in progress.

    previous: the folder of the stage before, None for the first. folder: where the stage's model will
    be. state: accelerate's PartialState. started: time.monotonic() when the stage began.
    """

    recipe: Recipe
    stage: StageRecipe
    previous: Path | None
    folder: Path
    trust_remote_code: bool
    state: Any
    started: float = field(default_factory=time.monotonic)

    @property
    def work(self) -> Path:
        return self.folder.parent / WORK

    def say(self, text: str) -> None:
        say(self.state, text)


def say(state: Any, text: str) -> None:
    """Print lines, from one of the processes that train together."""
    if state.is_main_process:
        print("\n".join(map(printable, text.split("\n"))), flush=True)
