"""Attention over shared prefixes: a token sees its own branch before it, and its group's prefix.

Two id tensors describe the rule: `group` and `branch` of every token. Branch 0 is the prefix, which all
branches of a group share; -1 is a padding token. `dense_mask` turns the ids into a mask for any decoder.
It is the reference, and slow on a long row. The other backends compute the same without a T x T mask,
on one row of whole groups without padding:

- segments: scaled_dot_product_attention over the prefixes, and over branches of similar length, which
  are cut out of the row and padded only inside attention. It runs on any device.
- flex: torch's flex attention, compiled, with a block mask from the two ids. It needs a GPU, because torch
  2.13 has no backward pass for it on a CPU.

Each backend is registered with transformers as an attention function and gets its plan through the
forward's keyword arguments; no model code changes. A row of one conversation shares nothing: every
backend then computes ordinary causal attention.

Training branches on one shared image prefix comes from Molmo (message trees) and PrefixGrouper.
"""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .flops import head_size

AttentionBackend = Literal["segments", "flex", "dense"]

# Names of the backends in transformers.
IMPLEMENTATIONS: dict[AttentionBackend, str] = {
    "segments": "maya_segments",
    "flex": "maya_flex",
    "dense": "sdpa",
}
COMPILERS = ("gcc", "clang")  # the compilers that Triton looks for


def choose_attention(
    wanted: Literal["auto"] | AttentionBackend, decoder: nn.Module, device: str
) -> AttentionBackend:
    """Return the attention backend of a run. "auto" means flex on a GPU, otherwise segments.

    Args:
        decoder: the language model.
        device: type of its device.

    Raises:
        ValueError: if flex is wanted but device or decoder do not support it.
    """
    problem = _flex_problem(decoder, device) if wanted in ("auto", "flex") else ""
    if wanted == "auto":
        return "segments" if problem else "flex"
    if problem:
        raise ValueError(f"model.attention: {wanted} {problem}: use segments, or auto")
    return wanted


def _flex_problem(decoder: Any, device: str) -> str:
    """Return why flex attention cannot be used, or an empty text."""
    config = decoder.config
    dropout = getattr(config, "attention_dropout", 0.0)
    size = head_size(config)
    if device != "cuda":
        return f"needs a CUDA GPU, but the run is on {device}"
    if dropout:
        return f"has no dropout, but the decoder's attention_dropout is {dropout:g}"
    if size < 16:
        return f"needs attention heads of size 16 or more, but the decoder's have size {size}"
    if importlib.util.find_spec("triton") is None:
        return "is compiled by Triton, which is not installed"
    if not (os.environ.get("CC") or any(map(shutil.which, COMPILERS))):
        return f"is compiled by Triton, which needs a C compiler: {', '.join(COMPILERS)} or $CC"
    return ""


def set_attention(decoder: Any, attention: AttentionBackend) -> None:
    """Make a transformers decoder use this attention backend."""
    decoder.set_attn_implementation(IMPLEMENTATIONS[attention])


# ------------------------------------------------------------------------------ the attention rule


def dense_mask(group: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Return the rule as a bool mask (R, 1, T, T), True where a token may attend.

    Args:
        group, branch: (R, T) integers; branch 0 is a group's prefix, negative is padding.
    """
    length = group.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=group.device).tril()
    same_group = group[:, :, None] == group[:, None, :]
    same_branch = branch[:, :, None] == branch[:, None, :]
    prefix = (branch == 0)[:, None, :]
    mask = before & same_group & (same_branch | prefix)
    # A padding token sees itself, so that no softmax is empty.
    mask |= torch.eye(length, dtype=torch.bool, device=group.device)
    return mask[:, None]


def block_mask(group: torch.Tensor, branch: torch.Tensor) -> BlockMask:
    """Return the rule as flex attention's block mask, for rows without padding; see `dense_mask`.

    Building it takes a few temporary T x T bool masks; the result is small.
    """

    def visible(row: Any, head: Any, query: Any, key: Any) -> torch.Tensor:
        same_branch = branch[row, query] == branch[row, key]
        own_or_prefix = same_branch | (branch[row, key] == 0)
        return (query >= key) & (group[row, query] == group[row, key]) & own_or_prefix

    rows, length = group.shape
    return create_block_mask(visible, rows, None, length, length, device=group.device)


def row_plan(
    groups: Sequence[tuple[int, Sequence[int]]], attention: AttentionBackend
) -> dict[str, Any]:
    """Return the attention function's input about one row of groups.

    Args:
        groups: (prefix length, branch lengths) in row order; each group is its prefix followed by its
            branches.

    Returns:
        longest: tokens of the longest conversation; and, unless the row is a single conversation,
        the result of `segment_plan` or `flex_plan`.
    """
    longest = max(prefix + max(branches, default=0) for prefix, branches in groups)
    attention_plan: dict[str, Any] = {"longest": longest}
    if len(groups) > 1 or groups[0][1]:
        attention_plan.update(
            segment_plan(groups) if attention == "segments" else flex_plan(groups)
        )
    return attention_plan


# ------------------------------------------------------------------------------ segments


def segment_plan(groups: Sequence[tuple[int, Sequence[int]]]) -> dict[str, Any]:
    """Plan how to cut one row of groups, given as to `row_plan`, into segments.

    Returns:
        prefix: (G, P), indices of the prefixes' tokens in the row, short ones padded with 0.
        blocks: branches of similar length; each block has `branch` (S, L), their token indices,
            `owner` (S,), the group of each branch, and `visible` (S or 1, 1, L, P + L), what a token
            of a branch sees of its prefix and of the branch.
        restore: (N,), the position of each token's output in the concatenated outputs of prefixes
            and blocks.
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
    """Cut sorted branches into at most `most` blocks, where it saves the most padding."""
    if not branches:
        return []
    blocks = [branches]
    while len(blocks) < most:
        best = (0, 0, 0)  # tokens of padding saved, block, cut
        for b, block in enumerate(blocks):
            for cut in range(1, len(block)):
                saved = cut * (block[-1][0] - block[cut - 1][0])
                best = max(best, (saved, b, cut))
        saved, b, cut = best
        # Each block costs a few more calls per layer, which a handful of tokens does not repay.
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
    attention_plan: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention over one row of groups; ordinary sdpa attention without a plan.

    Args:
        query, key, value: (1, heads, N, head dim); key and value may have fewer heads.
        attention_plan: result of `row_plan`.

    Raises:
        ValueError: if the decoder's attention window is shorter than a conversation.
    """
    if attention_plan is None or "restore" not in attention_plan:
        return _ordinary(
            module, query, key, value, attention_mask, attention_plan, scaling, dropout, **kwargs
        )
    _check_window(attention_plan, kwargs)
    prefix, blocks = attention_plan["prefix"], attention_plan["blocks"]
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
    # Padding comes after a segment's last token, so causal attention never sees it.
    outputs = [attend(cut(query, prefix), prefix_key, prefix_value, None)]
    for block in blocks:
        branch, owner = block["branch"], block["owner"]
        branch_key = torch.cat([prefix_key[owner], cut(key, branch)], dim=2)
        branch_value = torch.cat([prefix_value[owner], cut(value, branch)], dim=2)
        outputs.append(attend(cut(query, branch), branch_key, branch_value, block["visible"]))
    return torch.cat(outputs).index_select(0, attention_plan["restore"])[None], None


# ------------------------------------------------------------------------------ flex


def flex_plan(groups: Sequence[tuple[int, Sequence[int]]]) -> dict[str, torch.Tensor]:
    """Return the row's two id tensors, `group` and `branch` (1, N), for `flex_inputs`."""
    widths = [torch.tensor([prefix, *branches]) for prefix, branches in groups]
    sizes = torch.tensor([int(w.sum()) for w in widths])
    branch = torch.cat([torch.arange(len(w)).repeat_interleave(w) for w in widths])
    return {
        "group": torch.arange(len(groups)).repeat_interleave(sizes)[None],
        "branch": branch[None],
    }


def flex_inputs(attention_plan: dict[str, Any]) -> dict[str, Any]:
    """Return the model inputs of a row whose plan has the ids; the block mask serves all layers."""
    mask = block_mask(attention_plan["group"], attention_plan["branch"])
    return {"attention_mask": mask, "attention_plan": {"longest": attention_plan["longest"]}}


def flex_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    attention_plan: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute `segment_attention` by flex attention if `attention_mask` is a block mask; no dropout."""
    if not isinstance(attention_mask, BlockMask):
        return _ordinary(
            module, query, key, value, attention_mask, attention_plan, scaling, dropout, **kwargs
        )
    if attention_plan is not None:
        _check_window(attention_plan, kwargs)
    # For rows under 128 tokens flex would choose its decoding kernel, which in torch 2.13 does not
    # support many of their lengths with grouped heads.
    out, _ = flex_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        scaling=scaling,
        dropout=dropout,
        kernel_options={"BACKEND": "TRITON"},
    )
    return out, None


# ------------------------------------------------------------------------------ shared by both


def _ordinary(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    attention_plan: dict[str, Any] | None,
    scaling: float | None,
    dropout: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Call transformers' sdpa attention; a row of one conversation is causal and needs no mask."""
    if attention_plan is not None:
        _check_window(attention_plan, kwargs)
        attention_mask = None
    out, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return out, None


def _check_window(attention_plan: dict[str, Any], kwargs: dict[str, Any]) -> None:
    window = kwargs.get("sliding_window")
    if window is not None and window < attention_plan["longest"]:
        raise ValueError(
            f"expected conversations of at most {window} tokens, the decoder's attention window, found "
            f"{attention_plan['longest']} tokens: use group_size 1 or shorter conversations"
        )


AttentionInterface.register(IMPLEMENTATIONS["segments"], segment_attention)
AttentionInterface.register(IMPLEMENTATIONS["flex"], flex_attention)
for _name in (IMPLEMENTATIONS["segments"], IMPLEMENTATIONS["flex"]):
    AttentionMaskInterface.register(_name, sdpa_mask)
