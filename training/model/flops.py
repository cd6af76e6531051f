"""Count a Maya's arithmetic, for the model FLOP utilization in logs and for `--estimate`.

Matrix products are counted; a multiplication and its addition count as two. As usual, norms, activations,
softmax, rotary embeddings, embedding lookups and the optimizer's step are not counted. Attention counts
once per layer and per pair of tokens that attend (causal attention covers half of a square).
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modeling_maya.configuration_maya import CLASS_TOKENS

from .freezing import LAYER

# Decoders whose layers are query, key, value and output projections and a gated MLP.
DECODERS = ("cohere", "cohere2", "llama", "mistral", "qwen2", "qwen3")
# FLOP/s of dense bfloat16 matrix products, by CUDA's device name, from NVIDIA's data sheets. These state
# twice as much, with sparsity (H100 SXM and H200 1,979 TFLOPS, H100 PCIe 1,513, A100 624, L4 242).
DATA_SHEET = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
    "NVIDIA L4": 121e12,
}


def head_size(config: Any) -> int:
    """Return the size of a decoder's attention heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass. `layer`, `last` and `pair` are for one decoder layer.

    layer: matrices of a layer, per token.
    last: the last product of a layer, per token; part of `layer`.
    pair: attention in a layer, per pair of an attending and an attended token.
    head: per predicting position.
    tower: per image, up to the feature layer.
    tower_first: the tower's patch embedding.
    tower_last: the last products of the tower's layers.
    projector: per image.
    projector_first: the projector's first layer.
    gated: blocks of gated cross-attention, per token.
    """

    layers: int
    layer: float
    last: float
    pair: float
    head: float
    tower: float
    tower_first: float
    tower_last: float
    projector: float
    projector_first: float
    gated: float = 0.0

    def total(self, *, tokens: float, pairs: float, positions: float, images: float) -> float:
        """Return the FLOPs of a forward pass; see `training_flops` for the arguments."""
        decoder = self.layers * (self.layer * tokens + self.pair * pairs)
        decoder += self.gated * tokens
        return decoder + self.head * positions + (self.tower + self.projector) * images


@dataclass(frozen=True)
class TrainableParts:
    """Which parts of a model learn. Tower and projector count as learning completely or not at all.

    layers: per decoder layer, the share of its matrices' weights that learn, 0 to 1.
    adapters: per decoder layer, the number of weights in its low-rank matrices, which all learn.
    head: whether the output matrix learns; it may be the embeddings' matrix.
    """

    tower: bool
    projector: bool
    embeddings: bool
    layers: tuple[float, ...]
    adapters: tuple[int, ...]
    head: bool


def forward_flops(config: Any) -> ForwardFlops:
    """Compute the FLOPs of a forward pass from a MayaConfig.

    A decoder layer: 2 d h (2 H + 2 K) + 6 d f per token (width d, H heads and K key-value heads of
    size h, MLP width f) and 4 H h per pair. Head: 2 d V. A tower layer: S (8 w^2 + 4 w f) + 4 w S^2 per
    image of S patches (width w); the patch embedding: 2 w times the values of all patches. Projector:
    2 S (w d + (n - 1) d^2). A block of gated cross-attention: 20 d^2 + 4 S d per token. Attention windows do not count, because `segment_attention` refuses
    conversations longer than a window. Pooling heads of full towers do not count.

    Raises:
        ValueError: if decoder or tower are of another kind.
    """
    text, vision = config.text_config, config.vision_config
    if text.model_type not in DECODERS:
        raise ValueError(
            f"FLOPs: expected a decoder of a known type, found {text.model_type!r}: "
            f"known are {', '.join(DECODERS)}"
        )
    if vision.model_type not in CLASS_TOKENS:
        raise ValueError(
            f"FLOPs: expected a vision tower of a known type, found {vision.model_type!r}: "
            f"known are {', '.join(CLASS_TOKENS)}"
        )
    width, inner = text.hidden_size, text.intermediate_size
    heads = text.num_attention_heads
    size = head_size(text)
    attention = 2 * width * size * (2 * heads + 2 * text.num_key_value_heads)

    kept_whole = config.vision_keep_unused_weights
    depth = vision.num_hidden_layers if kept_whole else config.vision_layers_used
    wide, deep = vision.hidden_size, vision.intermediate_size
    height, length = config.vision_image_size
    patches = (height // vision.patch_size) * (length // vision.patch_size)
    seen = patches + CLASS_TOKENS[vision.model_type]
    first = 2 * wide * vision.num_channels * vision.patch_size**2 * patches
    projector, projector_first = _projector_flops(config)
    return ForwardFlops(
        layers=text.num_hidden_layers,
        layer=attention + 6 * width * inner,
        last=2 * width * inner,
        pair=4 * heads * size,
        head=2 * width * text.vocab_size,
        tower=first + depth * (seen * (8 * wide**2 + 4 * wide * deep) + 4 * wide * seen**2),
        tower_first=first,
        tower_last=depth * seen * 2 * wide * deep,
        projector=projector,
        projector_first=projector_first,
        gated=gated_blocks(config) * (20 * width**2 + 4 * (config.tower_seq_length() or 0) * width),
    )


def gated_blocks(config: Any) -> int:
    """Return the number of blocks of gated cross-attention, 0 for other projectors."""
    if config.projector_kind != "gated_cross_attention":
        return 0
    return -(-config.text_config.num_hidden_layers // config.cross_attention_interval)


def _projector_flops(config: Any) -> tuple[float, float]:
    """Return the FLOPs of the projector per image, and those of the matrices that read the tower's features."""
    wide, width = config.vision_config.hidden_size, config.text_config.hidden_size
    features, layers = config.image_seq_length, config.projector_num_layers
    patches = config.tower_seq_length()
    if config.projector_kind == "q_former":
        # Keys and values of each layer; queries, outputs and self-attention; scores; an MLP of 4 widths.
        read = layers * 4 * patches * wide**2
        own = layers * (28 * features * wide**2 + 4 * features * wide * (features + patches))
        return read + own + 2 * features * wide * width, read
    if config.projector_kind == "gated_cross_attention":
        first = 2 * patches * wide * width
        deeper = (layers - 1) + 2 * gated_blocks(config)  # and keys and values of each block
        return first + deeper * 2 * patches * width**2, first
    joined = config.projector_shuffle**2 if config.projector_kind == "pixel_shuffle" else 1
    first = 2 * features * joined * wide * width
    return first + (layers - 1) * 2 * features * width**2, first


def trainable_parts(
    parameters: Iterable[tuple[str, Sequence[int], bool]], config: Any, flops: ForwardFlops
) -> TrainableParts:
    """Return which parts learn, from (name, shape, learns) of all parameters, adapters included."""
    weights, adapters = [0] * flops.layers, [0] * flops.layers
    names = set()
    for name, shape, learns in parameters:
        if not learns:
            continue
        names.add(name)
        layer = LAYER.search(name)
        if layer and len(shape) == 2:
            into = adapters if ".lora_" in name else weights
            into[int(layer[1])] += shape[0] * shape[1]
    embeddings = any("embed_tokens" in name for name in names)
    return TrainableParts(
        tower=any("vision_tower." in name for name in names),
        projector=any("multi_modal_projector." in name for name in names),
        embeddings=embeddings,
        layers=tuple(2 * count / flops.layer for count in weights),
        adapters=tuple(adapters),
        head=any("lm_head" in name for name in names)
        or (embeddings and bool(config.tie_word_embeddings)),
    )


def training_flops(
    flops: ForwardFlops,
    learns: TrainableParts,
    *,
    tokens: float,
    pairs: float,
    positions: float,
    images: float,
    checkpointing: bool = False,
) -> float:
    """Return the FLOPs of forward and backward over one batch.

    From the first part that learns on, the backward pass costs one forward pass for the gradients of
    inputs, and another for the gradients of weights that learn; attention costs two forward passes. A
    frozen tower has no backward pass. Recomputation is not a model FLOP: for a utilization, keep
    checkpointing=False.

    Args:
        tokens: tokens through the decoder.
        pairs: see `visible_pairs`.
        positions: positions that predict.
        images: images through the tower.
        checkpointing: add the second forward of gradient checkpointing, which covers everything but a
            layer's last product. The whole decoder then takes part in the backward pass, whatever learns.

    Two inaccuracies: input gradients of the first trained layer are counted even if nothing below it
    learns; DoRA's norms (of the adapted matrices, per step) are not counted.
    """
    total = flops.total(tokens=tokens, pairs=pairs, positions=positions, images=images)
    below = learns.tower
    if below:
        again = flops.tower - flops.tower_first - flops.tower_last if checkpointing else 0.0
        total += images * (2 * flops.tower - flops.tower_first + again)
    if below or learns.projector:
        inputs = flops.projector - (0.0 if below else flops.projector_first)
        total += images * (inputs + flops.projector * learns.projector)
    if below or learns.projector or learns.embeddings or checkpointing:
        again = 1 if checkpointing else 0
        total += flops.gated * tokens * (1 + learns.projector + again)
    below = below or learns.projector or learns.embeddings or checkpointing
    for share, extra in zip(learns.layers, learns.adapters, strict=True):
        adapter = 2.0 * extra * tokens
        total += adapter
        below = below or share > 0 or extra > 0
        if below:
            matrices, attention = flops.layer * tokens, flops.pair * pairs
            total += matrices * (1 + share) + 2 * attention + 2 * adapter
            if checkpointing:
                total += matrices - flops.last * tokens + attention + adapter
    return total + positions * flops.head * (bool(below) + learns.head)


def visible_pairs(prefix: int, branches: Sequence[int] = ()) -> int:
    """Return the number of pairs of a token and one it sees, itself included.

    All branches see the `prefix` tokens; each branch sees only itself. One conversation is all prefix.
    """
    return prefix * (prefix + 1) // 2 + sum(b * prefix + b * (b + 1) // 2 for b in branches)


def device_peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Return the peak FLOP/s of matrix products on `device`, and the source of the number.

    The source is the data sheet of a known GPU, or a measurement of 0.1 seconds.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        if name in DATA_SHEET:
            return DATA_SHEET[name], f"{name}, data sheet, dense bfloat16"
    found = measure_peak(device, dtype, seconds=0.1)
    return found, f"{device.type}, measured, {str(dtype).removeprefix('torch.')}"


def measure_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Measure FLOP/s: the fastest of repeated large matrix products on `device`, in about `seconds`."""
    size = 8192 if device.type == "cuda" else 768
    # A separate generator leaves the run's random state unchanged.
    own = torch.Generator(device).manual_seed(0)
    a = torch.randn(size, size, device=device, dtype=dtype, generator=own)
    best, until = 0.0, time.perf_counter() + seconds
    product = a @ a  # the first call initializes libraries
    while not best or time.perf_counter() < until:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        torch.mm(a, a, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
