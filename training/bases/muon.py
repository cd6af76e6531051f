"""Muon, the optimizer for the matrices of both mini base models."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalized updates: each matrix moves by the nearest orthogonal matrix.

    Keller Jordan and others, "Muon: An optimizer for hidden layers in neural networks" (2024); the three
    coefficients of the Newton-Schulz iteration come from there. Matrices of one shape are processed
    together, in float32, because bfloat16, as in torch.optim.Muon, is slow on many CPUs.

    Args:
        params: matrices.
        lr: length of a step; times sqrt(rows / columns) for a matrix with more rows than columns.
        weight_decay: decoupled, as in AdamW.
        iterations: number of Newton-Schulz iterations.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        iterations: int = 5,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults | {"iterations": iterations})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix by one step."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                moved = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros_like(parameter)
                    state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                    moved.append(parameter.grad + group["momentum"] * state["momentum"])
                update = _orthogonal(torch.stack(moved), group["iterations"])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, change in zip(parameters, update, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(change, alpha=-group["lr"] * scale)


def _orthogonal(matrices: Tensor, iterations: int) -> Tensor:
    """Move matrices, float [n, rows, columns], towards the nearest (semi-)orthogonal matrices."""
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.transpose(1, 2) if tall else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = wide @ wide.transpose(1, 2)
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        wide = torch.baddbmm(wide, gram, wide, beta=3.4445)
    return wide.transpose(1, 2) if tall else wide
