"""The head's loss and gradients, ours beside others: seconds and peak memory of one call, on a CPU.

    python tests/benchmarks/heads.py [--cases large_frozen ...] [--rounds 5] [--quick]

All get the same inputs: hidden states of the supervised positions, the output matrix, labels, Cohere's logit scale.
All return the loss and its gradients, including the matrix's if it is trained (in finetune; in pretrain it is
frozen).

- `maya`: `maya_vlm.training.model.loss.token_losses`: tiles, with gradients computed in the forward pass.
- `recomputed`: the same tiles with autograd and checkpointing, which recomputes them in the backward pass.
- `whole`: all logits of the supervised positions at once.
- `trl`: TRL's fused head as `SFTTrainer` calls it, with entropy and top-1. It is a Triton kernel on a GPU, and
  its torch fallback on a CPU.
- `torch`: torch's `linear_cross_entropy`, in chunks. Unlike the others, it returns no top-1.

Liger's and Apple's (cut cross entropy) heads are Triton kernels, which do not run on a CPU; `maya` uses Liger's
method of computing gradients in the forward pass.

The heads alternate in one process. Before the rounds, losses and gradients are compared with those of `whole`, and
the command fails if they differ. A ratio is the median over rounds of the ratio of two times in one round. Peak
memory is measured in one process per head, relative to the memory before the call.

Results go to results/heads.json.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear_cross_entropy
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

ROOT = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).parent / "results" / "heads.json"
sys.path.insert(0, str(ROOT))

from maya_vlm.training.common.files import write_json  # noqa: E402
from maya_vlm.training.model.loss import TILE, token_losses  # noqa: E402
from tests.benchmarks.memory import in_own_processes, memory_of  # noqa: E402
from tests.benchmarks.workload import environment  # noqa: E402

SCALE = 0.0625  # Cohere's logit scale
TRL_CHUNK = 32768  # vocabulary rows per tile in `SFTTrainer`
TOLERANCE = 1e-3  # largest relative difference of a gradient


@dataclass(frozen=True)
class Case:
    """A head of (vocabulary, width) at `positions` supervised tokens, and whether its matrix is trained."""

    width: int
    vocabulary: int
    positions: int
    learns: bool


CASES = {
    "mini_frozen": Case(160, 6080, 2048, False),  # the mini language model
    "mini_learns": Case(160, 6080, 2048, True),
    "large_frozen": Case(1024, 256_000, 256, False),  # Aya's vocabulary, a quarter of its width
    "large_learns": Case(1024, 256_000, 256, True),
}
QUICK = {"frozen": Case(16, 300, 40, False), "learns": Case(16, 300, 40, True)}


# ------------------------------------------------------------------------------ heads

Loss = Callable[[torch.Tensor, torch.nn.Linear, torch.Tensor], torch.Tensor]


def maya(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    return token_losses(hidden, head, labels, SCALE)[0]


def whole(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    logits = head(hidden) * SCALE
    logits.detach().argmax(-1)
    return cross_entropy(logits, labels, reduction="sum")


def recomputed(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    rows = max(1, TILE["cpu"] // head.out_features)
    tiles = zip(hidden.split(rows), labels.split(rows), strict=True)
    parts = [checkpoint(whole, h, head, y, use_reentrant=False) for h, y in tiles]
    return torch.stack(parts).sum()


def trl(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    found = ChunkedLogProbFunction.apply(
        hidden, head.weight, None, labels, 1.0, TRL_CHUNK, None, SCALE, ("entropy", "is_top1")
    )
    return -found[0].sum()


def torch_own(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return linear_cross_entropy(
        hidden * SCALE, head.weight, labels, reduction="sum", options=options
    )


HEADS: dict[str, Loss] = {
    "maya": maya,
    "recomputed": recomputed,
    "whole": whole,
    "trl": trl,
    "torch": torch_own,
}


# ------------------------------------------------------------------------------ measuring


def inputs(case: Case) -> tuple[torch.Tensor, torch.nn.Linear, torch.Tensor]:
    """Return hidden states like those after a final norm, the matrix and labels, always the same."""
    torch.manual_seed(0)
    head = torch.nn.Linear(case.width, case.vocabulary, bias=False)
    head.weight.data.normal_(std=0.02 / SCALE / 4)
    head.requires_grad_(case.learns)
    hidden = torch.randn(case.positions, case.width, requires_grad=True)
    return hidden, head, torch.randint(0, case.vocabulary, (case.positions,))


def run(name: str, case: Case, parts: Any) -> tuple[float, float]:
    """Return the seconds of forward and backward, and the mean loss; gradients stay on the tensors."""
    hidden, head, labels = parts
    hidden.grad = head.weight.grad = None
    start = time.perf_counter()
    loss = HEADS[name](hidden, head, labels) / case.positions
    loss.backward()
    return time.perf_counter() - start, float(loss.detach())


def differences(case: Case, parts: Any) -> dict[str, dict[str, float]]:
    """Return for every head the relative differences from `whole`: loss and largest gradient difference."""
    hidden, head, _ = parts
    _, expected = run("whole", case, parts)
    right = [g.clone() for g in (hidden.grad, head.weight.grad) if g is not None]
    found = {}
    for name in HEADS:
        _, loss = run(name, case, parts)
        gradients = [g for g in (hidden.grad, head.weight.grad) if g is not None]
        apart = [float((g - r).norm() / r.norm()) for g, r in zip(gradients, right, strict=True)]
        found[name] = {"loss": abs(loss / expected - 1), "gradient": max(apart)}
    return found


def extra_memory(name: str, case: Case) -> int:
    """Return the peak bytes of this process during one call, above its bytes before."""
    # A small first call initializes the libraries.
    small = Case(case.width, 512, 8, case.learns)
    run(name, small, inputs(small))
    parts = inputs(case)
    return memory_of(lambda: run(name, case, parts))["extra"]


def measure_memory(case: Case) -> dict[str, int] | None:
    """Return the extra memory of every head, or None as in `in_own_processes`."""
    return in_own_processes(extra_memory, HEADS, case)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Measure one case without its memory. Raise ValueError if the heads' results differ."""
    parts = inputs(case)
    apart = differences(case, parts)
    worst = max(apart, key=lambda n: apart[n]["gradient"])
    if not apart[worst]["gradient"] < TOLERANCE:
        raise ValueError(
            f"{worst} differs from the whole logits by {apart[worst]}; expected less than {TOLERANCE}"
        )
    seconds: dict[str, list[float]] = {name: [] for name in HEADS}
    order = list(HEADS)
    for number in range(rounds):
        # The first one in a round finds other cache contents, so the order rotates.
        for place in range(len(order)):
            name = order[(place + number) % len(order)]
            seconds[name].append(run(name, case, parts)[0])
        print(
            f"  round {number + 1}: " + ", ".join(f"{n} {s[-1]:.2f}" for n, s in seconds.items()),
            flush=True,
        )
    slower = {
        name: statistics.median(t / o for t, o in zip(seconds[name], seconds["maya"], strict=True))
        for name in order
    }
    return {
        **asdict(case),
        "tile_logits": TILE["cpu"],
        "relative_difference": apart,
        "seconds": {n: {"median": statistics.median(s), "rounds": s} for n, s in seconds.items()},
        "times_slower_than_maya": slower,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    if args.quick and args.output == RESULT:
        parser.error("--quick measures nothing worth keeping: give it another --output")
    kept = json.loads(args.output.read_text())["cases"] if args.output.is_file() else {}
    chosen = QUICK if args.quick else {name: CASES[name] for name in args.cases}
    memories = {}
    for name, case in chosen.items():
        memories[name] = measure_memory(case)
        print(f"{name}: memory measured", flush=True)
    for name, case in chosen.items():
        print(name, flush=True)
        found = {**measure(case, args.rounds), "extra_bytes": memories[name]}
        kept[name] = {**found, "rounds": args.rounds, **environment()}
        write_json(args.output, {"what": __doc__.split("\n")[0], "cases": kept})
        for head in HEADS:
            memory = memories[name]
            print(
                f"  {head:12}{kept[name]['seconds'][head]['median']:8.2f} s"
                f"{kept[name]['times_slower_than_maya'][head]:7.2f} x"
                + (f"{memory[head] / 2**20:9.0f} MiB" if memory else "")
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
