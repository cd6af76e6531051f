"""What the GPU's attention functions run on a CPU in tests, in any precision and with gradients.

Our own code stays as it is: only the kernels below it are replaced, by what they are documented to
compute.
"""

import itertools

import torch
import transformers.integrations.flex_attention as transformers_flex
from torch.nn.attention import flex_attention as torch_flex

import maya_vlm.training.model.attention


def varlen_by_the_book(
    query, key, value, queries, keys, most_queries, most_keys, *, scale, window_size, enable_gqa
):
    """FlashAttention over sequences, one by one; causal, aligned where both sequences end."""
    assert window_size == (-1, 0)
    assert query.dtype == key.dtype == value.dtype
    assert queries.dtype == keys.dtype == torch.int32
    assert queries[-1] == len(query)
    assert keys[-1] == len(key) == len(value)
    outputs, lengths = [], []
    for (a, b), (c, d) in zip(
        itertools.pairwise(queries.tolist()), itertools.pairwise(keys.tolist()), strict=True
    ):
        lengths.append((b - a, d - c))
        seen = torch.ones(b - a, d - c, dtype=torch.bool).tril(d - c - (b - a))
        q, k, v = (x.transpose(0, 1)[None] for x in (query[a:b], key[c:d], value[c:d]))
        out = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
        )
        outputs.append(out[0].transpose(0, 1))
    assert most_queries == max(q for q, _ in lengths)
    assert most_keys == max(k for _, k in lengths)
    return torch.cat(outputs)


def use_cpu_kernels(monkeypatch) -> None:
    """torch's own unfused flex attention, whose gradients it only refuses on a CPU; varlen as above."""
    monkeypatch.setattr(maya_vlm.training.model.attention, "varlen_attn", varlen_by_the_book)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(
        transformers_flex,
        "compile_friendly_flex_attention",
        lambda q, k, v, training=False, **kwargs: torch_flex.flex_attention(q, k, v, **kwargs),
    )
