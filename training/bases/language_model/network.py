"""The decoder: new weights, and a forward pass that is fast on a CPU."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM

from ..text_codes import concept_codes
from .corpus import Batch, Corpus
from .recipe import LanguageModelRecipe


def build_language_model(recipe: LanguageModelRecipe, end_of_turn: int) -> CohereForCausalLM:
    """Build a CohereForCausalLM with new weights, seeded by the recipe."""
    torch.manual_seed(recipe.seed)
    config = CohereConfig(
        vocab_size=recipe.embedding_rows,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        num_key_value_heads=recipe.num_key_value_heads,
        max_position_embeddings=recipe.max_position_embeddings,
        logit_scale=recipe.logit_scale,
        initializer_range=recipe.initializer_range,
        # State Aya-23's value: CohereConfig's default is 500,000.
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        pad_token_id=0,
        bos_token_id=5,
        eos_token_id=end_of_turn,
        tie_word_embeddings=True,
    )
    model = CohereForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(recipe.output_initializer_scale)
            layer.mlp.down_proj.weight.mul_(recipe.output_initializer_scale)
    return model


def group_attention(segment: Tensor) -> Tensor:
    """Return (R, 1, L, L) bool, True where a position may attend: earlier in its segment, or the context."""
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment.device).tril()
    own = segment[:, :, None] == segment[:, None, :]
    context = segment[:, None, :] == 0
    return (causal & (own | context))[:, None]


@dataclass
class States:
    """Result of `hidden_states`."""

    last: Tensor  # (R, L, D) hidden states after the last layer
    middle: Tensor  # (R, L, D) hidden states after half of the layers
    looks: (
        Tensor  # (K, L) attention scores of the next layer's first head, over each position's row
    )


def hidden_states(
    model: CohereForCausalLM,
    x: Tensor,
    positions: Tensor,
    mask: Tensor,
    look_at: Tensor | None = None,
) -> States:
    """Compute the decoder's hidden states.

    `last` equals `model.model(inputs_embeds=..., position_ids=..., attention_mask=...)`. Query, key,
    value, gate and up are one product here, and norms are fused: on a CPU, a small model spends a third of
    the library's own forward in element-wise steps.

    Args:
        x: embeddings (R, L, D).
        mask: result of `group_attention`.
        look_at: (K,) positions, into R*L, for `States.looks`.
    """
    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    angle = positions[..., None].float() * model.model.rotary_emb.inv_freq
    turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]  # (R, L, 1, size / 2)
    rows, length, width = x.shape
    splits = [heads * size, kv_heads * size, kv_heads * size, *[config.intermediate_size] * 2]
    middle, looks = x, x.new_zeros(0, length)
    half = (len(model.model.layers) + 1) // 2
    for number, layer in enumerate(model.model.layers):
        if number == half:
            middle = x
        attn, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        h = F.layer_norm(x, (width,), norm.weight, None, norm.variance_epsilon)
        weight = torch.cat(
            [
                attn.q_proj.weight,
                attn.k_proj.weight,
                attn.v_proj.weight,
                mlp.gate_proj.weight,
                mlp.up_proj.weight,
            ]
        )
        q, k, v, gate, up = F.linear(h, weight).split(splits, dim=-1)
        q = _rotate(q.reshape(rows, length, heads, size), turn)
        k = _rotate(k.reshape(rows, length, kv_heads, size), turn)
        v = v.reshape(rows, length, kv_heads, size).transpose(1, 2)
        if kv_heads != heads:
            k = k.repeat_interleave(heads // kv_heads, dim=1)
            v = v.repeat_interleave(heads // kv_heads, dim=1)
        if number == half and look_at is not None:
            row, place = look_at // length, look_at % length
            looks = (k[row, 0] @ q[row, 0, place, :, None])[..., 0] / math.sqrt(size)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        a = a.transpose(1, 2).reshape(rows, length, heads * size)
        x = x + attn.o_proj(a) + mlp.down_proj(F.silu(gate) * up)
    norm = model.model.norm
    last = F.layer_norm(x, (width,), norm.weight, None, norm.variance_epsilon)
    return States(last, middle, looks)


def _rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Apply Cohere's interleaved rotary embedding as a complex product: (R, L, H, S) to (R, H, L, S)."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).transpose(1, 2)


def embed(model: CohereForCausalLM, batch: Batch, soft: Tensor, prefix: int, seed: int) -> Tensor:
    """Embed a batch, with the vectors of soft contexts in place of their tokens.

    Args:
        soft: codes of the concepts, (C, D), from which soft contexts are mixed.
        prefix: number of tokens before a context.
        seed: seed of the noise.

    Returns:
        (R, L, D).
    """
    x = model.model.embed_tokens(batch.ids)
    rows = len(batch.soft_rows)
    if not rows:
        return x
    slots = batch.soft_weights.shape[1]
    size = soft.pow(2).mean().sqrt()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, slots + 1, soft.shape[1], generator=generator)
    noise = noise * batch.soft_noise[:, :, None] * size
    laid = batch.soft_weights @ soft[batch.soft_concepts] + noise[:, :slots] + noise[:, slots:]
    places = torch.arange(prefix, prefix + slots)
    return x.index_put((batch.soft_rows[:, None], places[None]), laid)


def soft_contexts(corpus: Corpus) -> Tensor:
    """Return the codes of the concepts, (C, D), scaled as in soft contexts."""
    concepts, recipe = corpus.concepts, corpus.recipe
    names: list[list[str | None]] = [
        [concepts.names[lang][i] for lang in recipe.languages] for i in range(len(concepts))
    ]
    return concept_codes(names, concepts.category, recipe.hidden_size) * recipe.soft_scale


def answer_loss(
    model: CohereForCausalLM, corpus: Corpus, batch: Batch, soft: Tensor, seed: int
) -> tuple[Tensor, Tensor, States]:
    """Compute the loss of the answers.

    Returns:
        The weighted mean loss over answer tokens, the logits (N, V) of these tokens, and the states.
    """
    x = embed(model, batch, soft, len(corpus.prefix), seed)
    mask = group_attention(batch.segment)
    states = hidden_states(model, x, batch.positions, mask, look_at=batch.claim_at)
    h = states.last.reshape(-1, states.last.shape[-1])[batch.at]
    logits = F.linear(h, model.model.embed_tokens.weight) * model.config.logit_scale
    losses = F.cross_entropy(logits, batch.target, reduction="none")
    return (losses * batch.weight).sum() / batch.weight.sum(), logits, states
