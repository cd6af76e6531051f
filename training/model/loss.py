"""The output matrix and the cross entropy, for the positions that predict, without all their logits.

A row of 4,096 tokens and a vocabulary of 256,000 would have 4 GB of logits, and as much again for
their gradient. Here a tile of at most `TILE` logits exists at a time, and its gradient with respect
to hidden states and weights is taken at once, in the forward pass, as Liger's fused cross entropy
does (arXiv 2410.10989, section 3.2): nothing is computed twice, and the backward pass needs neither
logits nor weights, which may be cut among ranks. tests/benchmarks/heads.py measures it beside TRL's
head and torch's own.
"""

from typing import Any

import torch
from torch.nn.functional import linear

# Logits that are held at once, (position, vocabulary) pairs. On a GPU a tile must have some hundred
# positions, or the time goes into reading the weights.
TILE = {"cpu": 1 << 25, "cuda": 1 << 27}


def token_losses(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cross entropy and whether the best guess is right, per supervised position.

    Args:
        hidden: (M, D), only the positions that predict; labels: (M,).
        head: its weight (V, D) and bias (V,) are used, its forward is not called.
        scale: the decoder's logit scale.

    Returns:
        (sum of the losses in nats, (M,) losses, (M,) correct). Only the sum has a gradient, once.
        Losses are float32, or float64 where `hidden` is; products are of `hidden`'s dtype, or of
        autocast's.
    """
    device = hidden.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
    with torch.autocast(device, enabled=False):
        return _TiledHead.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, labels, scale, dtype, torch.is_grad_enabled()
        )


class _TiledHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        scale: float,
        dtype: torch.dtype,
        learning: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wanted = [learning and needed for needed in ctx.needs_input_grad[:3]]
        # Sums over tiles are of the weights' own precision, as sums over rows are.
        inputs = (hidden, weight, bias)
        ctx.gradients = [
            torch.zeros_like(x) if want and x is not None else None
            for x, want in zip(inputs, wanted, strict=True)
        ]
        to_hidden, to_weight, to_bias = ctx.gradients
        matrix = weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        precise = torch.promote_types(dtype, torch.float32)
        losses = torch.empty(len(labels), dtype=precise, device=hidden.device)
        correct = torch.empty(len(labels), dtype=torch.bool, device=hidden.device)
        device = "cpu" if hidden.device.type == "cpu" else "cuda"
        rows = max(1, TILE[device] // len(weight))
        logits: Any = None
        gradient: Any = None
        for start in range(0, len(labels), rows):
            del logits, gradient  # or two tiles would be held
            part = slice(start, start + rows)
            tile, target = hidden[part].to(dtype), labels[part, None]
            logits = linear(tile, matrix, offset).to(precise)  # (rows, V)
            if scale != 1.0:
                logits *= scale
            best, guess = logits.max(dim=-1, keepdim=True)
            correct[part] = (guess == target)[:, 0]
            logits -= best
            chosen = logits.gather(-1, target)
            total = logits.exp_().sum(dim=-1, keepdim=True)
            losses[part] = (total.log() - chosen)[:, 0]
            gradient = None
            if not any(wanted):
                continue
            # In place to the gradient of the product: scale * (softmax - one-hot).
            logits *= scale / total
            logits.scatter_add_(-1, target, torch.full_like(chosen, -scale))
            if to_bias is not None:
                to_bias += logits.sum(dim=0).to(to_bias.dtype)
            gradient = logits.to(dtype)
            if to_hidden is not None:
                to_hidden[part] = (gradient @ matrix).to(to_hidden.dtype)
            if to_weight is not None:
                if to_weight.dtype == dtype:
                    to_weight.addmm_(gradient.T, tile)
                else:
                    to_weight += gradient.T @ tile
        ctx.mark_non_differentiable(losses, correct)
        return losses.sum(), losses, correct

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss of token_losses can be differentiated only once")
        # Held by nobody else now: scaled in place, and taken over as the parameter's gradient.
        scaled = [None if g is None else g.mul_(outer[0].to(g.dtype)) for g in gradients]
        return (*scaled, None, None, None, None)
