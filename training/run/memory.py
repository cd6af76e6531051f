"""Memory of one process: weights, gradients and optimizer state per tensor, activations by a formula.

The models are built without weights (on torch's meta device), so an 8B model takes seconds.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from modeling_maya import MayaConfig, MayaForConditionalGeneration

from ..model.adapters import add_adapter, bytes_saved
from ..model.flops import TrainableParts, gated_blocks, head_size
from ..model.freezing import parameter_rates, table
from ..recipe import Recipe, StageRecipe

# Part of an optimizer's name -> moments per weight; other optimizers keep two, like Adam.
MOMENTS = {"sgd": 0, "lion": 1, "rmsprop": 1, "adagrad": 1, "ademamix": 3}
# Bytes per weight of one moment of torchao's optimizers, including the constants of its blocks.
TORCHAO = {"adamw_torch_8bit": 1 + 4 / 256, "adamw_torch_4bit": 1 / 2 + 4 / 128}
# Parts of the names of bitsandbytes' optimizers. Their moments are float32 unless they have 8 bits.
BITSANDBYTES = ("8bit", "32bit", "ademamix", "rmsprop_bnb")
Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]
# Notes for the user where `args.fsdp` cannot shard.
WITHOUT_FSDP: dict[Sharding, str] = {
    "none": "fsdp: left out, one process holds the whole model",
    "ddp": "fsdp: without a GPU it is DDP, every process holds the whole model",
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one process.

    buffers: gathered layers, bfloat16 copies of float32 weights, temporary gradients.
    activations: None if the length of a row is unknown.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int = 0
    activations: int | None = None

    @property
    def resident(self) -> int:
        """Return the bytes that are allocated during the whole training."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.resident + self.buffers + (self.activations or 0)


def maya_config(recipe: Recipe, vision: Any, text: Any) -> MayaConfig:
    """Return the config of the Maya that a recipe builds from base models.

    Args:
        recipe: the recipe.
        vision: config of the vision tower.
        text: config of the language model.
    """
    model = recipe.model
    assert model.projector_num_layers is not None
    assert model.vision_feature_layer is not None
    assert model.vision_feature_select_strategy is not None
    return MayaConfig(
        vision_config=getattr(vision, "vision_config", vision),
        text_config=text,
        image_token_id=0,
        projector_kind=model.projector_kind or "mlp",
        projector_num_layers=model.projector_num_layers,
        image_seq_length=model.image_seq_length,
        cross_attention_interval=model.cross_attention_interval or 4,
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy=model.vision_feature_select_strategy,
    )


def sharding(
    args: Mapping[str, Any], processes: int, environment: Mapping[str, str], cuda: bool = True
) -> Sharding:
    """Return how a stage's state is sharded.

    Args:
        args: the stage's args.
        processes: number of processes.
        environment: the variables that accelerate sets.
        cuda: whether the processes use GPUs. On CPUs, accelerate replaces FSDP by DDP.
    """
    if environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        stage = int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", 2))
        return "zero3" if stage == 3 else "zero2"
    if args.get("fsdp") or environment.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        return ("fsdp" if cuda else "ddp") if processes > 1 else "none"
    return "ddp" if processes > 1 else "none"


def stage_memory(
    config: MayaConfig,
    stage: StageRecipe,
    dtype: torch.dtype,
    mixed: bool,
    shards: Sharding = "none",
    processes: int = 1,
) -> tuple[MayaForConditionalGeneration, Memory]:
    """Return the stage's model without weights, with its adapter, and its memory without activations.

    With `mixed`, trained weights are float32 and all others `dtype`. DeepSpeed then keeps all weights and
    gradients in bfloat16, and float32 copies of the trained weights next to the optimizer's state.

    Buffers, by sharding. none, ddp: autocast's bfloat16 copies of trained matrices; ddp also has a second
    copy of the gradients, in buckets. fsdp: two unsharded layers and the unsharded embeddings, with their
    gradients. zero2, zero3: DeepSpeed's defaults, buckets of 5e8 and 1e9 live parameters. All: the gradient
    of the largest trained matrix before it is accumulated.

    Args:
        config: the model's config.
        stage: the stage.
        dtype: dtype of frozen weights.
        mixed: whether the stage trains in bfloat16 mixed precision.
        shards: how the state is sharded.
        processes: number of processes.

    Raises:
        ValueError: as in `freezing.rates` and `adapters.add_adapter`.
    """
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
        model.tie_weights()
        saved = 0
        if stage.adapter is not None:
            saved = bytes_saved(model, stage.adapter, dtype.itemsize)
            add_adapter(model, stage.adapter, stage.train)
    found = parameter_rates(model, stage.train, stage.adapter)
    trained = [(name, parameter) for name, parameter, rate in found if rate is not None]
    count = sum(p.numel() for _, p in trained)
    whole = sum(p.numel() for _, p, _ in found)
    width, learned = dtype.itemsize, 4 if mixed else dtype.itemsize
    optim = str(stage.args.get("optim", "adamw_torch_fused"))
    optimizer = optimizer_bytes(optim, trained, learned)
    if shards in ("zero2", "zero3") and mixed:
        weights, gradients, optimizer = 2 * whole - saved, 2 * count, optimizer + 4 * count
    else:
        weights = (whole - count) * width + count * learned - saved
        gradients = count * learned
    matrices = [p.numel() for _, p in trained if p.ndim > 1]
    compute = 2 if mixed else width
    buffers = max(matrices, default=0) * (compute + (learned if mixed else 0))
    if shards in ("none", "ddp"):
        buffers += 2 * sum(matrices) if mixed else 0
        buffers += gradients if shards == "ddp" else 0
    elif shards == "fsdp":
        layer = list(model.model.language_model.layers[-1].parameters())
        ends = list({model.get_input_embeddings().weight, model.get_output_embeddings().weight})
        learning_now = {id(p) for _, p in trained}.intersection(map(id, layer + ends))
        buffers += compute * sum(p.numel() for p in 2 * layer + ends)
        buffers += (compute + learned) * sum(
            p.numel() for p in layer + ends if id(p) in learning_now
        )
    elif shards == "zero3":
        buffers += 2 * min(whole, 10**9)
    else:
        buffers += 2 * 2 * min(count, 5 * 10**8)
    if shards in ("fsdp", "zero3"):
        weights //= processes
    if shards in ("fsdp", "zero2", "zero3"):
        gradients, optimizer = gradients // processes, optimizer // processes
    return model, Memory(weights, gradients, optimizer, buffers)


def optimizer_bytes(optim: str, trained: Sequence[tuple[str, nn.Parameter]], width: int) -> int:
    """Return the bytes of an optimizer's state, without its step counters.

    adamw_torch*: two moments of `width` bytes per weight. bitsandbytes: float32 moments; with "8bit", one
    byte per weight and a float32 constant per 256 weights, for tensors of at least 4,096 weights; embeddings
    keep 32 bits, as in Trainer. torchao's 8 and 4 bits: the same, with blocks of 256 and 128. adafactor: one
    row and one column per matrix.

    Args:
        optim: name of the optimizer, as in SFTConfig.
        trained: (name, parameter) of the trained parameters.
        width: bytes per trained weight.
    """
    if optim == "adafactor":
        return sum(width * (sum(p.shape) if p.ndim == 2 else p.numel()) for _, p in trained)
    moments = next((count for part, count in MOMENTS.items() if part in optim), 2)
    torchao = TORCHAO.get(optim)
    bitsandbytes = torchao is None and any(part in optim for part in BITSANDBYTES)
    total = 0.0
    for name, parameter in trained:
        size = parameter.numel()
        if torchao is not None and size >= 4096:
            total += moments * size * torchao
        elif bitsandbytes and "8bit" in optim and size >= 4096 and "embed_tokens" not in name:
            total += moments * (size + 4 * math.ceil(size / 256))
        else:
            total += moments * size * (4 if bitsandbytes else width)
    return int(total)


def activation_bytes(
    config: MayaConfig,
    learns: TrainableParts,
    *,
    tokens: int,
    images: int,
    width: int,
    stream: int,
    checkpointing: bool,
    tile: int,
) -> int:
    """Return an upper estimate of the bytes that one row's forward pass keeps for the backward pass.

    The temporary tensors of the largest operations are included.

    A decoder layer keeps per token, at `width` bytes: 5 times the queries (before and after attention,
    with keys and values repeated to all heads), 4 times the MLP's width, and each norm's output. Norms
    compute in float32 and keep three times their input. With gradient checkpointing a layer keeps only its
    input (`stream` bytes per value), and one layer at a time keeps everything. Temporary gradients add two
    layers. Logits: one tile of the head, in float32 and `width` bytes. A frozen tower keeps its layers'
    outputs. A dense attention mask is counted once.

    Args:
        config: the model's config.
        learns: the trained parts of the model.
        tokens: number of tokens in the row.
        images: number of images in the row.
        width: bytes per activation.
        stream: bytes per value of the residual stream.
        checkpointing: whether gradient checkpointing is on.
        tile: largest number of logits held at once; see `loss.TILE`.
    """
    # transformers types sub-configs by the arguments that callers may pass.
    text: Any = config.text_config
    vision: Any = config.vision_config
    wide, heads = text.hidden_size, text.num_attention_heads
    size = head_size(text)
    norms = 1 if text.model_type.startswith("cohere") else 2
    layer = norms * (12 + width) * wide + width * (5 * heads * size + 4 * text.intermediate_size)
    if getattr(text, "use_qk_norm", False) or text.model_type == "qwen3":
        layer += 12 * size * (heads + text.num_key_value_heads)
    kept = text.num_hidden_layers
    if not (checkpointing or learns.tower or learns.projector or learns.embeddings):
        lowest = [i for i in range(kept) if learns.layers[i] or learns.adapters[i]]
        kept -= min(lowest, default=kept)
    decoder = kept * stream * wide + 2 * layer if checkpointing else (kept + 2) * layer
    ends = (12 + 5 * stream) * wide
    total = tokens * (decoder + ends) + (1 + width) * tokens**2

    side, deep = vision.hidden_size, vision.intermediate_size
    depth = config.vision_layers_used
    features = images * cast(int, config.image_seq_length)
    patches = images * ((config.tower_seq_length() or cast(int, config.image_seq_length)) + 1)
    block = (8 + 10 * width) * side + 3 * width * deep
    kept_whole = depth if learns.tower and not checkpointing else 0
    tower = (depth + 1) * width * side + (kept_whole + 2) * block
    layers = config.projector_num_layers
    if config.projector_kind == "gated_cross_attention":
        # Per token of a block: norms, queries, what they read, and an MLP of 4 widths. Per patch: the MLP
        # before the blocks, keys and values.
        blocks = gated_blocks(config)
        kept = blocks if learns.projector and not checkpointing else 1
        projector = (
            tokens * kept * (8 + 13 * width) * wide
            + patches * width * (3 * layers + 1 + 2 * blocks) * wide
        )
    elif config.projector_kind == "q_former":
        # Per query: 13 widths a layer besides its scores. Per patch: keys, values and the normed features.
        projector = (
            features * width * layers * 13 * side + patches * width * (2 * layers + 1) * side
        )
    else:
        projector = patches * width * side + (features + images) * width * 3 * layers * wide
    logits = min(tile, tokens * text.vocab_size) * (4 + 2 * width)
    return int(total + patches * tower + projector + logits)


# ------------------------------------------------------------------------------ check


def check_memory(
    recipe: Recipe, stage: StageRecipe, previous: Path | None, state: Any, trust: bool
) -> list[str]:
    """Check that a stage's weights, gradients and optimizer state fit in the free memory.

    Args:
        recipe: the run's recipe.
        stage: the stage.
        previous: the folder of the previous stage, or None.
        state: accelerate's PartialState.
        trust: trust_remote_code for the base models' configs.

    Returns:
        Notes for the user.

    Raises:
        MemoryError: they do not fit; one line.
    """
    import psutil

    from ..model.assemble import base_config
    from ..model.checkpoint import checkpoint_config, find_checkpoint

    source = recipe.model
    if previous is None and source.checkpoint is None:
        vision = base_config(str(source.vision_tower), "vision_tower", trust)
        text = base_config(str(source.language_model), "language_model", trust)
        config = maya_config(recipe, vision, text)
    else:
        config = checkpoint_config(find_checkpoint(source, previous))
    dtype, count = getattr(torch, source.dtype), state.num_processes
    mixed = bool(stage.args.get("bf16", torch.cuda.is_available()))
    shards = sharding(stage.args, count, os.environ, torch.cuda.is_available())
    model, memory = stage_memory(config, stage, dtype, mixed, shards, count)
    needed, rows = memory.resident, table(model, stage.train, stage.adapter)
    total = sum(row.parameters for row in rows)
    trained = sum(row.parameters for row in rows if row.rate is not None)
    if torch.cuda.is_available():
        free, place = torch.cuda.mem_get_info(state.local_process_index)[0], "GPU memory"
    else:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        free, place = psutil.virtual_memory().available // max(1, local), "memory"
    if needed > free:
        raise MemoryError(
            f"stage {stage.name}: too little {place}: weights, gradients and optimizer state of "
            f"{total:,} parameters ({trained:,} trained) take {needed / 2**30:.1f} GiB per process, "
            f"{free / 2**30:.1f} GiB are free: train fewer parts, use dtype bfloat16, an adapter, "
            "quantized weights, an 8-bit optimizer or fsdp, or a larger machine"
        )
    return [WITHOUT_FSDP[shards]] if stage.args.get("fsdp") and shards in WITHOUT_FSDP else []
