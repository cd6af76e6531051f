"""Head and cross entropy at the predicting positions, without holding all their logits.

A row of 4,096 tokens with a vocabulary of 256,000 would have 4 GB of logits, and as much again for their
gradient. Here at most `TILE` logits exist at a time. Their gradient with respect to hidden states and
weights is computed in the forward pass, as in Liger's fused cross entropy (arXiv 2410.10989, section
3.2): nothing is computed twice, and the backward pass needs neither logits nor weights, which may be
sharded. tests/benchmarks/heads.py compares it with TRL's head and torch's own.
"""

from typing import Any

import torch
from torch.nn.functional import linear

# Logits held at a time, (position, vocabulary) pairs. On a GPU a tile needs some hundred positions,
# otherwise reading the weights dominates the time.
TILE = {"cpu": 1 << 25, "cuda": 1 << 27}


def token_losses(
    hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the cross entropy per predicting position, and whether the best guess is right.

    Args:
        hidden: (M, D), hidden states of the predicting positions only.
        head: its weight (V, D) and bias (V,) are used; its forward is not called.
        labels: (M,).
        scale: the decoder's logit scale.

    Returns:
        (sum of losses in nats, (M,) losses, (M,) correct). Only the sum has a gradient, once. Losses are
        float32, or float64 for float64 `hidden`; products have the dtype of `hidden`, or autocast's.
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
        # Sums over tiles use the weights' precision, as sums over rows do.
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
            del logits, gradient  # otherwise two tiles would be held
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
            # Turn logits in place into the gradient of the product: scale * (softmax - one-hot).
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
        # No other reference is left: scale in place and hand over as the parameter's gradient.
        scaled = [None if g is None else g.mul_(outer[0].to(g.dtype)) for g in gradients]
        return (*scaled, None, None, None, None)
