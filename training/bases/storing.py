"""Save the state of a base model's run and the finished model folder, each complete or not at all."""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..common.files import atomic, ordinary_permissions, remove_temporaries


def save_state(path: Path, tensors: Mapping[str, Tensor], notes: dict[str, str]) -> None:
    """Replace a run's state file by these tensors, with `notes` as its metadata."""
    remove_temporaries(path)
    copies = {name: value.contiguous().clone() for name, value in tensors.items()}
    with atomic(path) as temporary:
        safetensors.torch.save_file(copies, temporary, metadata=notes)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and notes that `save_state` wrote."""
    with safetensors.safe_open(path, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return tensors, stored.metadata() or {}


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `part` and a dot, without that prefix."""
    start = f"{part}."
    return {n.removeprefix(start): value for n, value in tensors.items() if n.startswith(start)}


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the states of several optimizers: `optimizer.NUMBER.PARAMETER.NAME` -> tensor."""
    return {
        f"optimizer.{number}.{place}.{name}": value
        for number, optimizer in enumerate(optimizers)
        for place, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the optimizer states that `optimizer_tensors` returned."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, value in part_of(tensors, f"optimizer.{number}").items():
            place, name = key.split(".")
            state[int(place)][name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})


@contextmanager
def complete_folder(folder: Path, part: Path, last: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield `part` to save a model into; move its files to `folder` when the block ends.

    Files for which `last` is true are moved last, so their presence means that the folder is complete.
    """
    shutil.rmtree(part, ignore_errors=True)
    yield part
    ordinary_permissions(part / "model.safetensors")
    for file in sorted(part.iterdir(), key=last):
        os.replace(file, folder / file.name)
    part.rmdir()


def set_rates(
    optimizers: Iterable[torch.optim.Optimizer], peaks: Iterable[float], factor: float
) -> None:
    """Set the learning rates of optimizers to `factor` times their peaks."""
    for optimizer, peak in zip(optimizers, peaks, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
