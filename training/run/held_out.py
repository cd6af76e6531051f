"""Held-out rows of a stage: loss, accuracy and bits per byte while it trains, nothing learned from them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..batches.collator import GroupCollator


class HeldOut:
    """The rows of a stage's eval_data, cut into shares of as many groups as a training step has.

    Args:
        collator: over the held-out rows and their plan. languages: of those rows.
    """

    def __init__(self, collator: GroupCollator, languages: list[str]):
        self.collator, self.languages = collator, languages
        self.steps = -(-len(collator.plan) // collator.batch_size)

    def shares(self, rank: int, workers: int) -> Iterator[dict[str, Any]]:
        """A rank's share of each step, as the collator returns it."""
        loader: DataLoader = DataLoader(
            [{"step": step, "rank": rank} for step in range(self.steps)],  # type: ignore[arg-type]
            batch_size=1,
            collate_fn=self.collator,
            num_workers=workers,
            # Its own, as a loader draws a number: training's random state stays what it is.
            generator=torch.Generator(),
        )
        for share in loader:
            if "error" in share:
                raise share["error"]
            yield share
