"""`maya train RECIPE --estimate`: memory per process and time of every stage, without starting it.

The models are built without weights (torch's meta device), so an 8B takes seconds. Weights,
gradients and optimizer state are counted tensor by tensor; activations are an upper estimate by
formula; time is FLOPs over an assumed part of a peak. Nothing is started or written.

What is not here may be described by files in the folder `configs` beside the recipe's file:
NAME.json is the config.json of a base or checkpoint whose name ends in NAME (others are asked for on
the Hub), RECIPE.work.json says what the groups of a stage's data are like (see `assumed_work`).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig

from modeling_maya import MayaConfig, MayaForConditionalGeneration

from ..arguments import LOGGING_STEPS
from ..common.reading import read_json_mapping
from ..common.schema import build, read_mapping
from ..model.adapters import add_adapter, bytes_saved
from ..model.flops import (
    DATA_SHEET,
    Learning,
    forward_flops,
    head_size,
    learning,
    measure_peak,
    training_flops,
    visible_pairs,
)
from ..model.freezing import Row, decided, format_table, table
from ..model.loss import TILE
from ..recipe import (
    Recipe,
    StageRecipe,
    activation_checkpointing,
    count_steps,
    find_recipe,
    load_recipe,
)
from .launch import environment, find_config
from .processes import count_processes

GIB = 2**30
# The part of a peak that a run is taken to reach.
UTILISATION = 0.4
# Groups of a stage's data that are tokenised for its lengths.
SAMPLE = 256

Sharding = Literal["none", "ddp", "fsdp", "zero2", "zero3"]


@dataclass(frozen=True)
class Device:
    """What a process runs on: peak in FLOP/s, memory in bytes, and where the peak is from."""

    name: str
    peak: float
    memory: int
    source: str


# What `args.fsdp` comes to where nothing can be sharded.
WITHOUT_FSDP: dict[Sharding, str] = {
    "none": "fsdp: left out, one process holds the whole model",
    "ddp": "fsdp: without a GPU it is DDP, every process holds the whole model",
}
GPUS = {
    key: Device(label, DATA_SHEET[name], memory, "data sheet, dense bf16")
    for key, label, name, memory in (
        ("a100", "A100 80 GB", "NVIDIA A100-SXM4-80GB", 80 * GIB),
        ("h100", "H100 SXM 80 GB", "NVIDIA H100 80GB HBM3", 80 * GIB),
        ("h200", "H200 141 GB", "NVIDIA H200", 141 * 10**9),
        ("l4", "L4 24 GB", "NVIDIA L4", 24 * GIB),
    )
}


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. `activations` is None where the length of a row is not known.

    buffers: gathered layers, bfloat16 copies of float32 weights, gradients on their way.
    """

    weights: int
    gradients: int
    optimizer: int
    buffers: int = 0
    activations: int | None = None

    @property
    def resident(self) -> int:
        """What is there all the time: weights, gradients and optimizer state, the least there is."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.resident + self.buffers + (self.activations or 0)


@dataclass(frozen=True)
class Work:
    """What a stage computes. tokens, pairs, positions, images: means over groups of a sample;
    longest: tokens of the longest group in it. assumed: where these numbers are from, if not from
    the data."""

    groups_per_epoch: int
    steps: int
    tokens: float
    pairs: float
    positions: float
    images: float
    longest: int
    assumed: str = ""


@dataclass(frozen=True)
class StageEstimate:
    """One stage.

    eval_seconds: of all evaluations of the stage's eval_data, None where it has none or that is not here.
    work, seconds: None where the data or the tokenizer is not here (`missing` says which) and
    nothing is assumed; flops_per_token is then that of the decoder's layers alone. memory is of a process, its
    activations those of a row of `row_tokens`. Where the architecture's FLOPs are not known,
    flops_per_token, seconds and activations are None, and `notes` says so.
    """

    name: str
    rows: list[Row]
    memory: Memory
    row_tokens: int | None
    sharding: Sharding
    processes: int
    device: Device
    work: Work | None
    missing: str
    flops_per_token: float | None
    seconds: float | None
    notes: list[str]
    eval_seconds: float | None = None


# ------------------------------------------------------------------------------ the whole


def estimate(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    gpu: str | None = None,
    accelerate: str | None = None,
    trust_remote_code: bool = False,
) -> list[StageEstimate]:
    """Every stage of a recipe of kind `maya`.

    Args:
        recipe, overrides: as for `run.train`.
        gpu: a key of `GPUS`; None for this machine, whose peak is then measured.
        accelerate: the config file, or name of a shipped one, that the run would be started with.

    Raises:
        ValueError, FileNotFoundError: one line naming what is wrong or not here.
    """
    path = find_recipe(recipe)
    kind = read_mapping(path, overrides).get("kind", "maya")
    if kind != "maya":
        raise ValueError(f"{path}: kind: only recipes of kind 'maya' are estimated, found {kind!r}")
    loaded = load_recipe(path, overrides)
    configs = path.resolve().parent / "configs"
    config = recipe_config(loaded, configs, trust_remote_code)
    cuda = gpu is not None or torch.cuda.is_available()
    if gpu is None:
        device = this_device(cuda)
    elif gpu in GPUS:
        device = GPUS[gpu]
    else:
        raise ValueError(f"--gpu: expected one of {', '.join(GPUS)}, found {gpu!r}")
    auto = loaded.processes == "auto" and gpu is not None and not torch.cuda.is_available()
    processes = 1 if auto else count_processes(loaded)
    found = dict(os.environ)
    if accelerate is not None:
        found = environment(find_config(accelerate), processes)
    stages = []
    for stage in loaded.stages:
        notes = ["processes is auto: taken as 1; --set processes=8 for 8"] if auto else []
        shards = sharding(stage.args, processes, found, cuda)
        if stage.args.get("fsdp") and shards in WITHOUT_FSDP:
            notes.append(WITHOUT_FSDP[shards])
        known = assumed_work(configs / f"{path.stem}.work.json", stage)
        stages.append(
            _estimate(loaded, stage, config, device, cuda, processes, shards, known, notes)
        )
    return stages


def _estimate(
    recipe: Recipe,
    stage: StageRecipe,
    config: MayaConfig,
    device: Device,
    cuda: bool,
    processes: int,
    shards: Sharding,
    known: Work | None,
    notes: list[str],
) -> StageEstimate:
    dtype = getattr(torch, recipe.model.dtype)
    mixed = bool(stage.args.get("bf16", cuda))
    checkpointing, _ = activation_checkpointing(stage.args)
    if "paged" in str(stage.args.get("optim", "")):
        notes.append("paged optimizer: its state may move to main memory when room is short")
    model, memory = stage_memory(config, stage, dtype, mixed, shards, processes)
    work, missing = known, ""
    try:
        work = measure_work(recipe, stage, config)
    except (OSError, ValueError) as error:
        missing = " ".join(str(error).split())
    row_tokens = stage.args.get("max_length")
    if work is not None:
        whole = max(work.longest, math.ceil(stage.batch_size / processes * work.tokens))
        row_tokens = min(row_tokens or whole, whole)
    result = StageEstimate(
        name=stage.name,
        rows=table(model, stage.train, stage.adapter),
        memory=memory,
        row_tokens=row_tokens,
        sharding=shards,
        processes=processes,
        device=device,
        work=work,
        missing=missing,
        flops_per_token=None,
        seconds=None,
        notes=notes,
    )
    try:
        flops = forward_flops(config)
    except ValueError as error:
        notes.append(f"neither activations nor time: {error}")
        return result
    learns = learning(
        (
            (name, parameter.shape, rate is not None)
            for name, parameter, rate in decided(model, stage.train, stage.adapter)
        ),
        config,
        flops,
    )
    if row_tokens is not None:
        activations = activation_bytes(
            config,
            learns,
            tokens=row_tokens,
            images=max(1, row_tokens // config.image_seq_length),
            width=2 if mixed else dtype.itemsize,
            stream=4 if mixed and learns.embeddings else dtype.itemsize,
            checkpointing=checkpointing,
            tile=TILE["cuda" if cuda else "cpu"],
        )
        result = replace(result, memory=replace(memory, activations=activations))
    if work is None:
        layers = training_flops(
            flops, learns, tokens=1, pairs=0, positions=0, images=0, checkpointing=checkpointing
        )
        return replace(result, flops_per_token=layers)
    group = training_flops(
        flops,
        learns,
        tokens=work.tokens,
        pairs=work.pairs,
        positions=work.positions,
        images=work.images,
        checkpointing=checkpointing,
    )
    speed = processes * UTILISATION * device.peak
    seconds = work.steps * stage.batch_size * group / speed
    result = replace(result, flops_per_token=group / work.tokens, seconds=seconds)
    if not stage.eval_data:
        return result
    try:
        held_out = measure_work(recipe, replace(stage, data=stage.eval_data), config)
    except (OSError, ValueError) as error:
        notes.append(f"evaluations are not counted: {' '.join(str(error).split())}")
        return result
    forward = flops.total(
        tokens=held_out.tokens,
        pairs=held_out.pairs,
        positions=held_out.positions,
        images=held_out.images,
    )
    times = evaluations(stage, work)
    notes.append(
        f"{times:,} evaluations of {held_out.groups_per_epoch:,} held-out groups: "
        f"{_time(times * held_out.groups_per_epoch * forward / speed)} of the time"
    )
    return replace(result, eval_seconds=times * held_out.groups_per_epoch * forward / speed)


def evaluations(stage: StageRecipe, work: Work) -> int:
    """How often a stage looks at its held-out rows: as its args say, and at its end."""
    at_first = int(bool(stage.args.get("eval_on_start")))
    if stage.args.get("eval_strategy", "steps") == "epoch":
        passes = work.steps * stage.batch_size / work.groups_per_epoch
        return at_first + math.ceil(passes)
    args = stage.args
    every = float(args.get("eval_steps") or args.get("logging_steps") or LOGGING_STEPS)
    every = math.ceil(work.steps * every) if every < 1 else every
    return at_first + math.ceil(work.steps / every)


def this_device(cuda: bool) -> Device:
    """The first GPU here, or the CPU, its peak measured."""
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        peak = measure_peak(torch.device("cuda", 0), torch.bfloat16)
        return Device(properties.name, peak, properties.total_memory, "measured here, bf16")
    import psutil

    peak = measure_peak(torch.device("cpu"), torch.float32)
    return Device("CPU", peak, psutil.virtual_memory().total, "measured here, float32")


# ------------------------------------------------------------------------------ the model


def recipe_config(recipe: Recipe, configs: Path, trust_remote_code: bool = False) -> MayaConfig:
    """The architecture that the stages of a recipe train.

    configs: the folder that may hold the config.json of bases and checkpoints that are not here.

    Raises ValueError, FileNotFoundError: one line, for what is neither a folder, nor in `configs`,
    nor on the Hub.
    """
    from ..common.revisions import split_revision
    from ..model.assemble import base_config
    from ..model.checkpoint import checkpoint_config, find_checkpoint

    model = recipe.model

    def read(name: str, described: Callable[..., Any], found: Callable[[], Any]) -> Any:
        """`described` makes the config from what `configs` says of a name, else `found` finds it."""
        file = configs / f"{Path(split_revision(name)[0]).name}.json"
        if file.is_file() and not Path(name).is_dir():
            values = _read_json(file)
            try:
                return described(values)
            except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(f"{file}: not the config.json of a model: {reason}") from None
        try:
            return found()
        except (ValueError, OSError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(
                f"{error}; to estimate without it, put its config.json into {configs}, "
                "named after the last part of its name"
            ) from None

    def base(field: Literal["vision_tower", "language_model"]) -> Any:
        name = str(getattr(model, field))
        return read(
            name,
            lambda values: AutoConfig.for_model(**values),
            lambda: base_config(name, field, trust_remote_code),
        )

    checkpoint = model.checkpoint
    if checkpoint is None:
        return maya_config(recipe, base("vision_tower"), base("language_model"))
    return read(checkpoint, MayaConfig.from_dict, lambda: checkpoint_config(find_checkpoint(model)))


def _read_json(file: Path) -> dict[str, Any]:
    """A mapping. Raises ValueError naming the file."""
    try:
        return read_json_mapping(file)
    except ValueError as error:
        raise ValueError(f"{error}; correct it") from None


def maya_config(recipe: Recipe, vision: Any, text: Any) -> MayaConfig:
    """The config of a Maya that a recipe builds from bases with these configs."""
    model = recipe.model
    assert model.projector_num_layers is not None
    assert model.vision_feature_layer is not None
    assert model.vision_feature_select_strategy is not None
    return MayaConfig(
        vision_config=getattr(vision, "vision_config", vision),
        text_config=text,
        image_token_id=0,
        projector_num_layers=model.projector_num_layers,
        vision_feature_layer=model.vision_feature_layer,
        vision_feature_select_strategy=model.vision_feature_select_strategy,
    )


# ------------------------------------------------------------------------------ memory


def sharding(
    args: Mapping[str, Any], processes: int, environment: Mapping[str, str], cuda: bool = True
) -> Sharding:
    """How a stage's state is cut, from its args and the variables that accelerate sets.

    Not cuda: accelerate takes FSDP for DDP on CPUs.
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
    """The stage's model without weights, its adapter put in, and its memory but for activations.

    What learns is float32 where `mixed`, everything else `dtype`. DeepSpeed holds all weights and
    gradients in bfloat16 then, and float32 copies of what learns beside the optimizer's state.

    buffers, by sharding: none, ddp: the bfloat16 copies that autocast makes of trained matrices;
    ddp besides a second copy of the gradients, in buckets; fsdp: two layers and the embeddings
    whole, with their gradients; zero2, zero3: DeepSpeed's defaults, buckets of 5e8 and 1e9 live
    parameters. All: the gradient of the largest trained matrix before it is added up.

    Raises ValueError as `freezing.rates` and `adapters.add_adapter`.
    """
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
        model.tie_weights()
        saved = 0
        if stage.adapter is not None:
            saved = bytes_saved(model, stage.adapter, dtype.itemsize)
            add_adapter(model, stage.adapter, stage.train)
    found = decided(model, stage.train, stage.adapter)
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
    """Bytes of an optimizer's state, counters of steps left out.

    adamw_torch*: two moments as wide as a weight (`width` bytes). bitsandbytes: float32, or with
    "8bit" a byte and a float32 constant for each 256 weights of tensors of 4,096 weights and more;
    embeddings keep 32 bits, as in Trainer. torchao's 8 and 4 bits alike, with blocks of 256 and 128.
    lion and rmsprop have one moment, ademamix three, adafactor a row and a column, sgd none. Others
    are taken as adamw_torch.
    """
    if optim == "sgd":
        return 0
    if optim == "adafactor":
        return sum(width * (sum(p.shape) if p.ndim == 2 else p.numel()) for _, p in trained)
    moments = 2
    if "lion" in optim or "rmsprop" in optim or optim == "adagrad":
        moments = 1
    elif "ademamix" in optim:
        moments = 3
    torchao = optim in ("adamw_torch_8bit", "adamw_torch_4bit")
    bitsandbytes = (
        not torchao
        and optim not in ("rmsprop", "adagrad")
        and ("8bit" in optim or "32bit" in optim or "ademamix" in optim or "rmsprop" in optim)
    )
    total = 0.0
    for name, parameter in trained:
        size = parameter.numel()
        small = size < 4096
        if torchao and not small:
            total += moments * (
                size + 4 * size / 256 if "8" in optim else size / 2 + 4 * size / 128
            )
        elif "8bit" in optim and bitsandbytes and not small and "embed_tokens" not in name:
            total += moments * (size + 4 * math.ceil(size / 256))
        else:
            total += moments * size * (4 if bitsandbytes else width)
    return int(total)


def activation_bytes(
    config: MayaConfig,
    learns: Learning,
    *,
    tokens: int,
    images: int,
    width: int,
    stream: int,
    checkpointing: bool,
    tile: int,
) -> int:
    """An upper estimate of what the forward pass of one row keeps for the backward pass, with what
    the largest steps need besides.

    A decoder layer, per token, at `width` bytes: 5 times the queries (before and after attention,
    keys and values repeated to as many heads), 4 times the MLP's width, each norm's output; norms
    themselves work in float32 and keep three times their input. With gradient checkpointing a layer
    keeps its input alone (`stream` bytes a value), and one layer at a time the rest. Twice a layer
    more for gradients on their way. Logits: a tile of the head, in float32 and `width` bytes. A
    frozen tower keeps its layers' outputs. A dense attention mask is counted once.

    Args:
        tokens: of the row; images: in it; tile: most logits held at once, see `head.TILE`.
    """
    # transformers types sub-configurations as what a caller may pass.
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
    patches = images * (cast(int, config.image_seq_length) + 1)
    block = (8 + 10 * width) * side + 3 * width * deep
    kept_whole = depth if learns.tower and not checkpointing else 0
    tower = (depth + 1) * width * side + (kept_whole + 2) * block
    projector = width * (side + 3 * config.projector_num_layers * wide)
    logits = min(tile, tokens * text.vocab_size) * (4 + 2 * width)
    return int(total + patches * (tower + projector) + logits)


# ------------------------------------------------------------------------------ the data


def measure_work(recipe: Recipe, stage: StageRecipe, config: MayaConfig) -> Work:
    """Groups, steps, and lengths from a sample of a stage's data.

    Raises FileNotFoundError or ValueError, in one line, where data or tokenizer is not here: nothing
    is downloaded for it but a tokenizer.
    """
    from ..batches.collator import GroupCollator, pack_group
    from ..batches.open import open_groups

    for source in stage.data:
        if not Path(source.path).exists():
            raise FileNotFoundError(f"no {source.path} here")
    processor = _processor(recipe, config)
    data = open_groups(stage, recipe.seed)
    shuffled = stage.order == "shuffled"
    plan = data.plan(None, stage.group_size, recipe.seed, shuffled=shuffled)
    collator = GroupCollator(data, processor, max_length=stage.args.get("max_length"))
    count = tokens = pairs = positions = images = longest = 0
    for number in range(0, len(plan), max(1, len(plan) // SAMPLE)):
        _, part = plan[number]
        try:
            encoded = [collator.encode(index) for index in part.tolist()]
        except ValueError:
            continue  # bad and long rows are for the run's own policy
        count += 1
        trees = pack_group(encoded, collator.image_token, collator.max_length)
        longest = max(longest, sum(len(tree) for tree in trees))
        images += len({key for item in encoded for key in item.images})
        positions += sum(int(item.trained.sum()) for item in encoded)
        for tree in trees:
            tokens += len(tree)
            pairs += visible_pairs(len(tree.prefix), [len(b) for b in tree.branches])
    if not count:
        raise ValueError(f"stage {stage.name}: no row of a sample of its data can be used")
    return Work(
        len(plan),
        _steps(stage, len(plan)),
        tokens / count,
        pairs / count,
        positions / count,
        images / count,
        longest,
    )


@dataclass(frozen=True)
class _Said:
    """prefix and branches: tokens of an image and of each of its conversations, which are learned;
    source: where this is from."""

    images_per_epoch: int
    prefix: int
    branches: list[int]
    source: str


def assumed_work(file: Path, stage: StageRecipe) -> Work | None:
    """What `file` says of a stage's data, for when that is not here; None if it says nothing.

    By the stage's name, what `_Said` holds; an image's conversations become near-equal groups of at
    most the stage's group_size. Raises ValueError naming the file and key.
    """
    if not file.is_file():
        return None
    values = _read_json(file).get(stage.name)
    if values is None:
        return None
    said = build(_Said, values, str(file), stage.name)
    if not said.branches:
        raise ValueError(f"{file}: {stage.name}.branches: expected at least one, found none")
    parts = -(-len(said.branches) // stage.group_size)
    groups = [part.tolist() for part in np.array_split(said.branches, parts)]
    count = said.images_per_epoch * parts
    return Work(
        groups_per_epoch=count,
        steps=_steps(stage, count),
        tokens=said.prefix + sum(said.branches) / parts,
        pairs=sum(visible_pairs(said.prefix, group) for group in groups) / parts,
        positions=sum(said.branches) / parts,
        images=1.0,
        longest=said.prefix + max(map(sum, groups)),
        assumed=said.source,
    )


def _steps(stage: StageRecipe, groups_per_epoch: int) -> int:
    return count_steps(
        int(stage.args.get("max_steps", 0)),
        float(stage.args.get("num_train_epochs", 1.0)),
        stage.batch_size,
        groups_per_epoch,
    )


def _processor(recipe: Recipe, config: MayaConfig) -> Any:
    """The processor a recipe trains with, from what its bases or checkpoint hold."""
    from processing_maya import MayaImageProcessor, MayaProcessor

    from ..model.assemble import IMAGE, add_placeholder, find_base, open_tokenizer
    from ..model.checkpoint import find_checkpoint, open_processor
    from ..model.templates import find_template

    model = recipe.model
    try:
        if model.checkpoint is not None:
            return open_processor(find_checkpoint(model), model)
        language = find_base(str(model.language_model), "language_model")
        tokenizer = open_tokenizer(language, config.get_text_config().vocab_size)
    except OSError:
        name = model.checkpoint or model.language_model
        raise ValueError(f"no tokenizer of {name} here") from None
    image_token = model.image_token or IMAGE
    add_placeholder(tokenizer, image_token, config.get_text_config().vocab_size)
    height, width = config.vision_image_size
    template = find_template(str(model.chat_template), tokenizer, image_token)
    return MayaProcessor(
        image_processor=MayaImageProcessor(size={"height": height, "width": width}),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=template.text,
        image_token=image_token,
    )


# ------------------------------------------------------------------------------ printed


def format_estimate(stages: Sequence[StageEstimate]) -> str:
    """What `--estimate` prints."""
    return "\n\n".join(_format(stage) for stage in stages)


def _format(stage: StageEstimate) -> str:
    processes = "1 process" if stage.processes == 1 else f"{stage.processes} processes"
    cut = {"none": "", "ddp": ", each with the whole model", "fsdp": ", sharded by FSDP"}
    how = cut.get(stage.sharding, f", sharded by DeepSpeed {stage.sharding}")
    device = stage.device
    lines = [
        f"stage {stage.name}: {processes} on {device.name}{how}",
        *(f"  {line}" for line in format_table(stage.rows).splitlines()),
        f"  {'memory of a process':26}{'GiB':>8}",
    ]
    memory = stage.memory
    parts: list[tuple[str, int | None]] = [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer state", memory.optimizer),
        ("buffers, at most", memory.buffers),
        ("activations, at most", memory.activations),
    ]
    for name, size in parts:
        lines.append(f"    {name:24}" + ("       ?" if size is None else f"{size / GIB:8.2f}"))
    at_least = " without activations" if memory.activations is None else ""
    lines.append(
        f"    {'in all':24}{memory.total / GIB:8.2f}  of {device.memory / GIB:.0f}{at_least}"
    )
    if memory.activations is not None:
        lines.append(f"  activations of a row of {stage.row_tokens:,} tokens")
    elif stage.row_tokens is None:
        lines.append("  activations need args.max_length, or the data and the tokenizer")
    speed = UTILISATION * device.peak
    assumed = (
        f"assumed: {UTILISATION:.0%} of a peak of {device.peak / 1e12:,.3g} TFLOP/s "
        f"({device.source})"
    )
    if stage.work is not None:
        work = stage.work
        lines.append(
            f"  {work.steps:,} steps; an epoch is {work.groups_per_epoch:,} groups of about "
            f"{work.tokens:,.0f} tokens, {work.positions:,.0f} of them learned, "
            f"{work.images:.3g} images"
        )
        if work.assumed:
            lines.append(f"  {stage.missing}; assumed: {work.assumed}")
    if stage.seconds is not None and stage.flops_per_token is not None:
        lines.append(
            f"  time: {_time(stage.seconds + (stage.eval_seconds or 0))}, {stage.flops_per_token / 1e9:,.3g} GFLOP a token; "
            f"{assumed}"
        )
    elif stage.work is None:
        lines.append(f"  steps and time need the data: {stage.missing}")
        if stage.flops_per_token is not None:
            tokens = stage.processes * speed / stage.flops_per_token
            lines.append(
                f"  the decoder's layers alone: {stage.flops_per_token / 1e9:,.3g} GFLOP a token, "
                f"{tokens:,.0f} tokens a second, a billion tokens in {_time(1e9 / tokens)}; "
                f"{assumed}"
            )
    return "\n".join(lines + [f"  {note}" for note in stage.notes])


def _time(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{seconds / 60:.1f} minutes"
