"""The attention rule of shared prefixes: a token sees its own branch before it and its group's prefix.

Two id tensors say all there is to say: `group` and `branch` of every token, branch 0 being the prefix
that all branches of the group share, -1 a padding token. `dense_mask` turns them into the mask any
decoder takes; it is the reference. `segment_attention` computes the same without a T x T mask and
without padding the decoder's rows: tokens of all groups lie in one row, and only inside attention
are they cut into prefixes and branches. It is registered with transformers under `SEGMENTS`, takes
its plan through the forward's keyword arguments, and touches no model code.

The idea of training branches on one shared image prefix is Molmo's (message trees) and
PrefixGrouper's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SEGMENTS = "maya_segments"


def dense_mask(group: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """The rule as a bool mask (R, 1, T, T), True where the row's token may look.

    Args:
        group, branch: (R, T) integers; branch 0 is a group's prefix, negative is padding.
    """
    length = group.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=group.device).tril()
    same_group = group[:, :, None] == group[:, None, :]
    same_branch = branch[:, :, None] == branch[:, None, :]
    prefix = (branch == 0)[:, None, :]
    mask = before & same_group & (same_branch | prefix)
    # A padding token sees itself, so that no softmax runs over nothing.
    mask |= torch.eye(length, dtype=torch.bool, device=group.device)
    return mask[:, None]


def segment_plan(groups: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Any]:
    """How to cut one row of groups into segments.

    Args:
        groups: (prefix length, branch lengths) in row order, each group laid out as its prefix and
            then its branches.

    Returns:
        prefix (G, P): indices of the prefixes' tokens in the row, short ones filled up with 0;
        blocks: branches of about one length together, each block with `branch` (S, L) indices,
        `owner` (S,), the group of each branch, and `visible` (S or 1, 1, L, P + L), what a branch's
        token sees of its prefix and of itself; restore (N,): where each token's output lies in the
        outputs of the prefixes and of the blocks, laid end to end.
    """
    widths = [length for length, _ in groups]
    prefix_width = max(widths)
    prefix = torch.zeros(len(groups), prefix_width, dtype=torch.long)
    restore = torch.zeros(sum(w + sum(b) for w, b in groups), dtype=torch.long)
    branches = []  # (length, start, group)
    position = 0
    for g, (length, lengths) in enumerate(groups):
        prefix[g, :length] = torch.arange(position, position + length)
        restore[position : position + length] = g * prefix_width + torch.arange(length)
        position += length
        for width in lengths:
            branches.append((width, position, g))
            position += width
    known = torch.arange(prefix_width) < torch.tensor(widths)[:, None]
    offset = prefix.numel()
    blocks = []
    for block in _blocks(sorted(branches)):
        width = block[-1][0]
        branch = torch.zeros(len(block), width, dtype=torch.long)
        for i, (length, start, _) in enumerate(block):
            branch[i, :length] = torch.arange(start, start + length)
            restore[start : start + length] = offset + i * width + torch.arange(length)
        offset += branch.numel()
        owner = torch.tensor([g for _, _, g in block])
        shared = known[:1] if bool(known.all()) else known[owner]
        own = torch.ones(width, width, dtype=torch.bool).tril()
        visible = torch.cat(
            [shared[:, None].expand(-1, width, -1), own.expand(len(shared), -1, -1)], dim=-1
        )
        blocks.append({"branch": branch, "owner": owner, "visible": visible[:, None]})
    return {"prefix": prefix, "blocks": blocks, "restore": restore}


def _blocks(
    branches: list[tuple[int, int, int]], most: int = 3
) -> list[list[tuple[int, int, int]]]:
    """Cut sorted branches where it saves the most filling, into at most `most` blocks."""
    if not branches:
        return []
    blocks = [branches]
    while len(blocks) < most:
        best = (0, 0, 0)  # tokens of filling saved, block, cut
        for b, block in enumerate(blocks):
            for cut in range(1, len(block)):
                saved = cut * (block[-1][0] - block[cut - 1][0])
                best = max(best, (saved, b, cut))
        saved, b, cut = best
        # A block of its own costs a few calls a layer: not worth it for a handful of tokens.
        if saved < 256:
            break
        blocks[b : b + 1] = [blocks[b][:cut], blocks[b][cut:]]
    return blocks


def segment_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over one row of groups; ordinary sdpa attention when no plan is given.

    Args:
        query, key, value: (1, heads, N, head dim), key and value maybe with fewer heads.
        segments: what `segment_plan` returned.

    Raises:
        ValueError: for a decoder whose attention window is shorter than a conversation.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    prefix, blocks = segments["prefix"], segments["blocks"]
    longest = prefix.shape[1] + max((b["branch"].shape[1] for b in blocks), default=0)
    window = kwargs.get("sliding_window")
    if window is not None and window < longest:
        raise ValueError(
            f"a conversation has {longest} tokens, more than the decoder's attention window of "
            f"{window}; use group_size 1 or shorter conversations"
        )
    heads = query.shape[1]
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, dim)

    def cut(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:  # (segments, heads, width, dim)
        return x.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any) -> torch.Tensor:
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=mask is None,
            enable_gqa=k.shape[1] != heads,
        )
        return out.transpose(1, 2).flatten(0, 1)  # (segments * width, heads, dim)

    prefix_key, prefix_value = cut(key, prefix), cut(value, prefix)
    # Short segments are filled up behind their last token, which causal attention never sees.
    outputs = [attend(cut(query, prefix), prefix_key, prefix_value, None)]
    for block in blocks:
        branch, owner = block["branch"], block["owner"]
        branch_key = torch.cat([prefix_key[owner], cut(key, branch)], dim=2)
        branch_value = torch.cat([prefix_value[owner], cut(value, branch)], dim=2)
        outputs.append(attend(cut(query, branch), branch_key, branch_value, block["visible"]))
    return torch.cat(outputs).index_select(0, segments["restore"])[None], None


def register() -> None:
    """Make `SEGMENTS` known to transformers as an attention implementation."""
    AttentionInterface.register(SEGMENTS, segment_attention)
    AttentionMaskInterface.register(SEGMENTS, sdpa_mask)


register()
