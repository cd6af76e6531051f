"""`maya train RECIPE --estimate`: estimate memory per process and time of every stage, without training.

memory.py computes the memory. The time is the FLOPs divided by an assumed share of the peak. No file is written.

Files in the folder `configs` next to the recipe's file can describe missing inputs: NAME.json is the
config.json of a base model or checkpoint whose name ends in NAME (without the file, the Hub is asked), and
RECIPE.work.json describes the groups of a stage's data (see `assumed_work`).
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from modeling_maya import MayaConfig

from ..common.schema import read_mapping
from ..model.flops import (
    DATA_SHEET,
    ForwardFlops,
    forward_flops,
    measure_peak,
    trainable_parts,
    training_flops,
)
from ..model.freezing import FreezeTableRow, format_table, parameter_rates, table
from ..model.loss import TILE
from ..recipe import (
    Recipe,
    StageRecipe,
    activation_checkpointing,
    find_recipe,
    load_recipe,
)
from .launch import environment, find_config
from .memory import (
    WITHOUT_FSDP,
    Memory,
    Sharding,
    activation_bytes,
    maya_config,
    sharding,
    stage_memory,
)
from .processes import count_processes
from .work import Work, assumed_work, evaluations, measure_work, read_described

GIB = 2**30
# Assumed share of the peak FLOP/s that a run reaches.
UTILISATION = 0.4


@dataclass(frozen=True)
class Device:
    """The device of a process: peak in FLOP/s, memory in bytes, and the source of the peak."""

    name: str
    peak: float
    memory: int
    source: str


@dataclass
class StageEstimate:
    """The estimate of one stage.

    memory: memory of one process; its activations are for a row of `row_tokens`.
    work, seconds: None if the data or the tokenizer is missing (`missing` names it) and no file describes it.
        Then flops_per_token covers only the decoder's layers.
    eval_seconds: time of all evaluations on the stage's eval_data; None without eval_data.
    flops_per_token, seconds, activations: None if the architecture's FLOPs are unknown (`notes` says so).
    """

    name: str
    rows: list[FreezeTableRow]
    memory: Memory
    row_tokens: int | None
    sharding: Sharding
    processes: int
    device: Device
    work: Work | None
    missing: str
    notes: list[str]
    flops_per_token: float | None = None
    seconds: float | None = None
    eval_seconds: float | None = None

    @property
    def speed(self) -> float:
        """Return the assumed FLOP/s of all processes together."""
        return self.processes * UTILISATION * self.device.peak


GPUS = {
    key: Device(label, DATA_SHEET[name], memory, "data sheet, dense bf16")
    for key, label, name, memory in (
        ("a100", "A100 80 GB", "NVIDIA A100-SXM4-80GB", 80 * GIB),
        ("h100", "H100 SXM 80 GB", "NVIDIA H100 80GB HBM3", 80 * GIB),
        ("h200", "H200 141 GB", "NVIDIA H200", 141 * 10**9),
        ("l4", "L4 24 GB", "NVIDIA L4", 24 * GIB),
    )
}


# ------------------------------------------------------------------------------ estimate


def estimate(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    gpu: str | None = None,
    accelerate: str | None = None,
    trust_remote_code: bool = False,
) -> list[StageEstimate]:
    """Estimate every stage of a recipe of kind `maya`.

    Args:
        recipe: as in `run.train`.
        overrides: as in `run.train`.
        gpu: a key of `GPUS`; None estimates for this machine, and measures its peak.
        accelerate: the run's accelerate config file, or the name of a shipped file.
        trust_remote_code: passed on to transformers.

    Raises:
        ValueError: a value is wrong; one line.
        FileNotFoundError: an input is missing; one line.
    """
    path = find_recipe(recipe)
    kind = read_mapping(path, overrides).get("kind", "maya")
    if kind != "maya":
        raise ValueError(
            f"{path}: kind: expected 'maya', the only kind with an estimate, found {kind!r}"
        )
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
        notes = ["processes is auto: 1 is assumed; use --set processes=8 for 8"] if auto else []
        shards = sharding(stage.args, processes, found, cuda)
        if stage.args.get("fsdp") and shards in WITHOUT_FSDP:
            notes.append(WITHOUT_FSDP[shards])
        known = assumed_work(configs / f"{path.stem}.work.json", stage, config.image_seq_length)
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
        notes.append("paged optimizer: its state may move to main memory if GPU memory is short")
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
        notes=notes,
    )
    try:
        flops = forward_flops(config)
    except ValueError as error:
        notes.append(f"activations and time are unknown: {error}")
        return result
    rates = parameter_rates(model, stage.train, stage.adapter)
    named = ((name, parameter.shape, rate is not None) for name, parameter, rate in rates)
    learns = trainable_parts(named, config, flops)
    if row_tokens is not None:
        activations = activation_bytes(
            config,
            learns,
            tokens=row_tokens,
            images=_images_of_a_row(row_tokens, config, work),
            width=2 if mixed else dtype.itemsize,
            stream=4 if mixed and learns.embeddings else dtype.itemsize,
            checkpointing=checkpointing,
            tile=TILE["cuda" if cuda else "cpu"],
        )
        result.memory = replace(memory, activations=activations)
    one_token: dict[str, float] = {"tokens": 1, "pairs": 0, "positions": 0, "images": 0}
    amounts = one_token if work is None else work.amounts
    group = training_flops(flops, learns, **amounts, checkpointing=checkpointing)
    result.flops_per_token = group / amounts["tokens"]
    if work is not None:
        result.seconds = work.steps * stage.batch_size * group / result.speed
        if stage.eval_data:
            _add_evaluations(result, work, recipe, stage, config, flops)
    return result


def _images_of_a_row(tokens: int, config: MayaConfig, work: Work | None) -> int:
    """Return the images in a row: those of the data, or as many as fill the row, if it is unknown."""
    if work is None or config.projector_kind != "gated_cross_attention":
        return max(1, tokens // config.image_seq_length)
    return max(1, round(tokens * work.amounts["images"] / work.amounts["tokens"]))


def _add_evaluations(
    result: StageEstimate,
    work: Work,
    recipe: Recipe,
    stage: StageRecipe,
    config: MayaConfig,
    flops: ForwardFlops,
) -> None:
    """Add the time of the evaluations to `result`, or a note if the held-out data is missing."""
    try:
        held_out = measure_work(recipe, replace(stage, data=stage.eval_data), config)
    except (OSError, ValueError) as error:
        result.notes.append(f"evaluations are not counted: {' '.join(str(error).split())}")
        return
    times = evaluations(stage, work)
    forward = flops.total(**held_out.amounts)
    result.eval_seconds = times * held_out.groups_per_epoch * forward / result.speed
    result.notes.append(
        f"{times:,} evaluations of {held_out.groups_per_epoch:,} held-out groups: "
        f"{format_time(result.eval_seconds)} of the time"
    )


def this_device(cuda: bool) -> Device:
    """Return the first GPU of this machine, or the CPU, with its measured peak."""
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        peak = measure_peak(torch.device("cuda", 0), torch.bfloat16)
        return Device(properties.name, peak, properties.total_memory, "measured here, bf16")
    import psutil

    peak = measure_peak(torch.device("cpu"), torch.float32)
    return Device("CPU", peak, psutil.virtual_memory().total, "measured here, float32")


# ------------------------------------------------------------------------------ the model


def recipe_config(recipe: Recipe, configs: Path, trust_remote_code: bool = False) -> MayaConfig:
    """Return the config of the model that the stages of a recipe train.

    Args:
        recipe: a recipe of kind `maya`.
        configs: the folder that may have the config.json of missing base models and checkpoints.
        trust_remote_code: passed on to transformers.

    Raises:
        ValueError: a config cannot be read.
        FileNotFoundError: a model is not a folder, not in `configs` and not on the Hub.
    """
    from ..common.revisions import split_revision
    from ..model.assemble import base_config
    from ..model.checkpoint import checkpoint_config, find_checkpoint

    model = recipe.model

    def read(name: str, described: Callable[..., Any], found: Callable[[], Any]) -> Any:
        """Return the config of a model: from its file in `configs` by `described`, else by `found`."""
        file = configs / f"{Path(split_revision(name)[0]).name}.json"
        if file.is_file() and not Path(name).is_dir():
            values = read_described(file)
            try:
                return described(values)
            except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{file}: expected the config.json of a model, found another file: {reason}"
                ) from None
        try:
            return found()
        except (ValueError, OSError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(
                f"{error}; to estimate without the model, put its config.json into {configs} as NAME.json, "
                "where NAME is the last part of the model's name"
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


# ------------------------------------------------------------------------------ output


def format_estimate(stages: Sequence[StageEstimate]) -> str:
    """Return the text that `--estimate` prints."""
    return "\n\n".join(_format(stage) for stage in stages)


def _format(stage: StageEstimate) -> str:
    processes = "1 process" if stage.processes == 1 else f"{stage.processes} processes"
    cut = {"none": "", "ddp": ", each with the whole model", "fsdp": ", sharded by FSDP"}
    how = cut.get(stage.sharding, f", sharded by DeepSpeed {stage.sharding}")
    device = stage.device
    lines = [
        f"stage {stage.name}: {processes} on {device.name}{how}",
        *(f"  {line}" for line in format_table(stage.rows).splitlines()),
        f"  {'memory per process':26}{'GiB':>8}",
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
        f"    {'total':24}{memory.total / GIB:8.2f}  of {device.memory / GIB:.0f}{at_least}"
    )
    if memory.activations is not None:
        lines.append(f"  activations of a row of {stage.row_tokens:,} tokens")
    elif stage.row_tokens is None:
        lines.append("  activations need args.max_length, or the data and the tokenizer")
    assumed = (
        f"assumed: {UTILISATION:.0%} of a peak of {device.peak / 1e12:,.3g} TFLOP/s "
        f"({device.source})"
    )
    if stage.work is not None:
        work = stage.work
        lines.append(
            f"  {work.steps:,} steps; an epoch is {work.groups_per_epoch:,} groups of about "
            f"{work.tokens:,.0f} tokens, {work.positions:,.0f} of them trained, "
            f"{work.images:.3g} images"
        )
        if work.assumed:
            lines.append(f"  {stage.missing}; assumed: {work.assumed}")
    if stage.seconds is not None and stage.flops_per_token is not None:
        lines.append(
            f"  time: {format_time(stage.seconds + (stage.eval_seconds or 0))}, {stage.flops_per_token / 1e9:,.3g} GFLOP per token; "
            f"{assumed}"
        )
    elif stage.work is None:
        lines.append(f"  steps and time need the data: {stage.missing}")
        if stage.flops_per_token is not None:
            tokens = stage.speed / stage.flops_per_token
            lines.append(
                f"  only the decoder's layers: {stage.flops_per_token / 1e9:,.3g} GFLOP per token, "
                f"{tokens:,.0f} tokens per second, a billion tokens in {format_time(1e9 / tokens)}; "
                f"{assumed}"
            )
    return "\n".join(lines + [f"  {note}" for note in stage.notes])


def format_time(seconds: float) -> str:
    hours = seconds / 3600
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 2:
        return f"{hours:.1f} hours"
    return f"{seconds / 60:.1f} minutes"
