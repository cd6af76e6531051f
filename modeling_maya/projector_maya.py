"""What leads from a vision tower's features to the decoder: one class for each `projector_kind`.

Shapes below: I images, S = image_seq_length placeholders of an image, D decoder width, B rows, T tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Cache
from transformers.activations import ACT2FN
from transformers.cache_utils import DynamicLayer

from .configuration_maya import MayaConfig

# Attention of serving engines, which run a decoder with a cache of their own.
ENGINES = ("vllm", "sglang")


class MayaProjector(nn.Module):
    """`projector_num_layers` linear layers (at even indices of `layers`) with an activation between them.

    (..., features * vision width) -> (..., D), where `features` of an image are one input.
    """

    def __init__(self, config: MayaConfig, features: int = 1):
        super().__init__()
        width = config.text_config.hidden_size
        layers: list[nn.Module] = [nn.Linear(features * config.vision_config.hidden_size, width)]
        for _ in range(config.projector_num_layers - 1):
            layers += [ACT2FN[config.projector_hidden_act], nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.layers(image_features)


class MayaPixelShuffleProjector(MayaProjector):
    """An MLP over squares of neighbouring patches, whose features are joined (InternVL, arXiv 2404.16821).

    (I, patches, vision width) -> (I, S, D); patches and features are in reading order.
    """

    def __init__(self, config: MayaConfig):
        super().__init__(config, config.projector_shuffle**2)
        self.factor, self.grid = config.projector_shuffle, config.vision_grid

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        factor, (rows, columns) = self.factor, self.grid
        squares = image_features.unflatten(1, (rows // factor, factor, columns // factor, factor))
        return self.layers(squares.transpose(2, 3).flatten(3).flatten(1, 2))


class MayaQueryHeads(nn.Module):
    """Attention with as many heads as the tower's: (I, Q, width), (I, K, width) -> (I, Q, width).

    It is always torch's fused attention. transformers looks for `class ...Attention` in a model's file, and
    would no longer let anybody set the attention of tower and decoder if it found one.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        # A bias of keys would change no attention.
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        parts = (self.q_proj(queries), self.k_proj(memory), self.v_proj(memory))
        heads = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = nn.functional.scaled_dot_product_attention(*heads)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MayaQueryLayer(nn.Module):
    """One layer of a Q-Former: queries attend to each other, then to the features, then pass an MLP."""

    def __init__(self, config: MayaConfig):
        super().__init__()
        vision = config.vision_config
        width, eps = vision.hidden_size, vision.layer_norm_eps
        self.self_attn = MayaQueryHeads(width, vision.num_attention_heads)
        self.cross_attn = MayaQueryHeads(width, vision.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.layer_norm3 = nn.LayerNorm(width, eps=eps)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACT2FN[config.projector_hidden_act]

    def forward(self, queries: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        normed = self.layer_norm1(queries)
        queries = queries + self.self_attn(normed, normed)
        queries = queries + self.cross_attn(self.layer_norm2(queries), features)
        return queries + self.fc2(self.activation(self.fc1(self.layer_norm3(queries))))


class MayaQFormerProjector(nn.Module):
    """A Q-Former (BLIP-2, arXiv 2301.12597) without its text: learned queries read the image's features.

    (I, features, vision width) -> (I, S, D)
    """

    def __init__(self, config: MayaConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        self.queries = nn.Embedding(config.image_seq_length, width)
        self.feature_norm = nn.LayerNorm(width, eps=config.vision_config.layer_norm_eps)
        self.layers = nn.ModuleList(
            MayaQueryLayer(config) for _ in range(config.projector_num_layers)
        )
        self.out_norm = nn.LayerNorm(width, eps=config.vision_config.layer_norm_eps)
        self.out_proj = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        features = self.feature_norm(image_features)
        queries = self.queries.weight.repeat(len(features), 1, 1)
        for layer in self.layers:
            queries = layer(queries, features)
        return self.out_proj(self.out_norm(queries))


# ------------------------------------------------------------------------------ gated cross-attention


def last_image(is_image: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Return for every token which image of its row it reads: the last one that it sees, -1 for none.

    A token sees an earlier one of its row if no position between them falls back to that of the earlier one or
    before it. That is causal attention in a row of one conversation; where conversations are packed, positions
    start again, and where they share a prefix, each goes on from the end of the prefix.

    Args:
        is_image: (B, T) bool, the placeholders, one for each image.
        position_ids: (B, T).

    Returns:
        (B, T) int64.
    """
    rows, length = is_image.shape
    most = int(is_image.sum(-1).max()) if length else 0
    if most == 0:
        return torch.full((rows, length), -1, device=is_image.device)
    # The columns of each row's images, `length` where a row has fewer; (B, most).
    columns = torch.arange(length, device=is_image.device)
    at = torch.where(is_image, columns, length).sort(-1).values[:, :most]
    own = position_ids.gather(-1, at.clamp(max=length - 1))
    behind = columns > at[..., None]
    lowest = position_ids[:, None].masked_fill(~behind, torch.iinfo(torch.int64).max)
    sees = behind & (lowest.cummin(-1).values > own[..., None])
    sees |= columns == at[..., None]
    numbers = torch.arange(1, most + 1, device=is_image.device)[None, :, None]
    return (sees * numbers).amax(1) - 1


class MayaImageLayer(DynamicLayer):
    """The image that each row reads, as one more layer of a key-value cache: it follows every change of rows.

    keys: (B, blocks * 2 * heads, features, head dim), keys and values of all blocks; zeros without an image.
    values: (B, 1, 1, 1), one where a row has an image.
    """

    # A cache is masked as a static one only if each of its layers says that it can be compiled.
    is_compileable = True

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def crop(self, *_: Any, **__: Any) -> None:
        """Keep the image: only tokens are taken back, never a prompt's image."""


@dataclass
class MayaImages:
    """What the tokens of one forward read in the gated blocks.

    blocks: the blocks, as many as `keys_values`.
    keys_values: of each block, its keys and values, both (B, heads, images of a row * features, head dim).
    reads: (B, 1, T, images of a row * features) bool, None if every token reads all of them.
    seen: (B, T, 1), one where a token reads an image; its hidden states stay as they are where it is zero.
    rows: what `MayaImageLayer` holds after this forward.
    """

    blocks: nn.ModuleList
    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    reads: torch.Tensor | None
    seen: torch.Tensor
    rows: tuple[torch.Tensor, torch.Tensor]

    def read(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states (B, T, D) after a block, which may be on another device than the decoder's layer."""
        keys, values = self.keys_values[number]
        result = self.blocks[number](hidden.to(keys.device), keys, values, self.reads, self.seen)
        return result.to(hidden.device)

    def keep(self, cache: Cache | None) -> None:
        """Put the image that each row reads into its cache, for the steps that follow."""
        if cache is None:
            return
        if cache.layers and isinstance(cache.layers[-1], MayaImageLayer):
            cache.layers[-1].keys, cache.layers[-1].values = self.rows
        else:
            cache.layers.append(MayaImageLayer(*self.rows))


class MayaGatedBlock(nn.Module):
    """Tokens attend to the image's features, then pass an MLP; both are added behind a gate that starts at zero."""

    def __init__(self, config: MayaConfig):
        super().__init__()
        width, self.heads = config.text_config.hidden_size, config.text_config.num_attention_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)
        self.activation = ACT2FN[config.projector_hidden_act]
        self.attention_gate, self.mlp_gate = (
            nn.Parameter(torch.zeros(1)),
            nn.Parameter(torch.zeros(1)),
        )

    def keys_values(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(I, features, D) -> keys and values, both (I, heads, features, head dim)."""
        parts = (self.k_proj(features), self.v_proj(features))
        keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        return keys, values

    def forward(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        reads: torch.Tensor | None,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        queries = self.q_proj(self.norm1(hidden)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=reads
        )
        attended = self.out_proj(attended.transpose(1, 2).flatten(2))
        hidden = hidden + self.attention_gate.tanh() * seen * attended
        return hidden + self.mlp_gate.tanh() * seen * self.fc2(
            self.activation(self.fc1(self.norm2(hidden)))
        )


class MayaGatedProjector(MayaProjector):
    """Gated cross-attention (Flamingo, arXiv 2204.14198): blocks before the decoder's layers read the image.

    An image has one placeholder, whose embedding is learned. A token reads the last image that it sees. As in
    Flamingo, a block's MLP has four times the decoder's width, and gates start at zero: before training the
    answers are the decoder's. Other than in Flamingo, the features are those of all patches through an MLP,
    not those of a resampler, and a token that sees no image also skips the blocks' MLP.

    (I, features, vision width) -> (I, 1, features * D): what an image's one placeholder stands for.
    """

    def __init__(self, config: MayaConfig):
        super().__init__(config)
        self.interval = config.cross_attention_interval
        count = -(-config.text_config.num_hidden_layers // self.interval)
        self.placeholder = nn.Embedding(1, config.text_config.hidden_size)
        self.feature_norm = nn.LayerNorm(config.text_config.hidden_size)
        self.blocks = nn.ModuleList(MayaGatedBlock(config) for _ in range(count))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.feature_norm(self.layers(image_features)).flatten(1).unsqueeze(1)

    def attach(self, decoder: nn.Module) -> None:
        """Make a decoder's layers run the blocks. The blocks come with each forward, as `gated_images`."""
        layers = getattr(decoder, "layers", None)
        engine = getattr(getattr(decoder, "config", None), "_attn_implementation", None)
        if engine in ENGINES:
            raise ValueError(
                f"projector_kind: expected 'mlp', 'pixel_shuffle' or 'q_former' in {engine}, whose cache holds no "
                "images, found 'gated_cross_attention': use transformers"
            )
        if not isinstance(layers, nn.ModuleList):
            raise ValueError(
                f"projector_kind: expected 'mlp', 'pixel_shuffle' or 'q_former' for {type(decoder).__name__}, which "
                "has no list `layers`, found 'gated_cross_attention'"
            )
        for number, layer in enumerate(layers):
            if not hasattr(layer, "gated_block"):
                layer.gated_block = number // self.interval if number % self.interval == 0 else None
                layer.register_forward_pre_hook(_read_images, with_kwargs=True)

    def images(
        self,
        features: torch.Tensor,
        is_image: torch.Tensor,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        dtype: torch.dtype,
    ) -> MayaImages | None:
        """Return what the tokens of a forward read, None if no row has had an image.

        Args:
            features: (I, features * D) of the images of this forward, in reading order; I may be 0.
            is_image: (B, T) bool, their placeholders. In training it may have none: the blocks then change nothing.
            position_ids: (B or 1, T); None means one conversation a row.
            cache: may hold the image that each row read before.
        """
        layer = cache.layers[-1] if cache is not None and cache.layers else None
        before = layer if isinstance(layer, MayaImageLayer) else None
        rows, length = is_image.shape
        if len(features) == 0:
            if before is None:
                return None
            seen = before.values[:, 0].expand(rows, length, 1).to(dtype)
            parts = before.keys.chunk(2 * len(self.blocks), 1)
            pairs = list(zip(parts[::2], parts[1::2], strict=True))
            return MayaImages(self.blocks, pairs, None, seen, (before.keys, before.values))

        # ---- Which image each token reads.
        features = features.unflatten(-1, (-1, self.placeholder.embedding_dim))
        if position_ids is None:
            position_ids = torch.arange(length, device=is_image.device)[None]
        reads = last_image(is_image, position_ids.expand(rows, length))
        counts = is_image.sum(-1)
        most = max(1, int(counts.max()))
        # The images of each row; a row with fewer repeats others, which no token reads.
        first = counts.cumsum(0) - counts
        chosen = (first[:, None] + torch.arange(most, device=first.device)).clamp(
            max=len(features) - 1
        )
        pairs, kept = [], []
        last = (counts - 1).clamp(min=0)
        for block in self.blocks:
            for part in block.keys_values(features):
                of_rows = part[chosen]  # (B, most, heads, features, head dim)
                kept.append(of_rows[torch.arange(rows, device=last.device), last])
                pairs.append(of_rows.transpose(1, 2).flatten(2, 3))

        # ---- The image that a row read before comes first.
        own = (counts > 0)[:, None, None, None]
        state = torch.cat(kept, 1) * own
        known = own.to(dtype)
        if before is not None:
            state, known = torch.where(own, state, before.keys), torch.maximum(known, before.values)
            parts = before.keys.chunk(2 * len(self.blocks), 1)
            pairs = [torch.cat(pair, 2) for pair in zip(parts, pairs, strict=True)]
            reads = reads + 1
            seen = torch.where(
                reads[..., None] > 0, torch.ones_like(known[:, 0]), before.values[:, 0]
            )
            most += 1
        else:
            seen = reads[..., None] >= 0
        numbers = torch.arange(most, device=reads.device).repeat_interleave(features.shape[1])
        # A token without an image reads the first one, and `seen` takes it back: an empty softmax is not a number.
        mask = (reads.clamp(min=0)[..., None] == numbers)[:, None]
        return MayaImages(
            self.blocks,
            list(zip(pairs[::2], pairs[1::2], strict=True)),
            None if most == 1 else mask,
            seen.to(dtype),
            (state, known),
        )


def _read_images(
    layer: nn.Module, given: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Before a decoder layer: run its block on the hidden states, and take `gated_images` from its arguments."""
    kwargs = dict(kwargs)
    images = kwargs.pop("gated_images", None)
    if images is None or layer.gated_block is None:
        return given, kwargs
    if given:
        return (images.read(layer.gated_block, given[0]), *given[1:]), kwargs
    kwargs["hidden_states"] = images.read(layer.gated_block, kwargs["hidden_states"])
    return given, kwargs


def build_projector(config: MayaConfig) -> nn.Module:
    """Return the projector of `config.projector_kind`: (I, features, vision width) -> (I, S, D).

    For `"gated_cross_attention"` the result is (I, 1, features * D).
    """
    kinds = {
        "mlp": MayaProjector,
        "pixel_shuffle": MayaPixelShuffleProjector,
        "q_former": MayaQFormerProjector,
        "gated_cross_attention": MayaGatedProjector,
    }
    return kinds[config.projector_kind](config)
