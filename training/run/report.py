"""The estimate of a stage, and how `maya train --estimate` prints it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.freezing import Row, format_table
from .memory import Memory, Sharding
from .work import Work

GIB = 2**30
# The part of a peak that a run is taken to reach.
UTILISATION = 0.4


@dataclass(frozen=True)
class Device:
    """What a process runs on: peak in FLOP/s, memory in bytes, and where the peak is from."""

    name: str
    peak: float
    memory: int
    source: str


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
            f"  time: {format_time(stage.seconds + (stage.eval_seconds or 0))}, {stage.flops_per_token / 1e9:,.3g} GFLOP a token; "
            f"{assumed}"
        )
    elif stage.work is None:
        lines.append(f"  steps and time need the data: {stage.missing}")
        if stage.flops_per_token is not None:
            tokens = stage.processes * speed / stage.flops_per_token
            lines.append(
                f"  the decoder's layers alone: {stage.flops_per_token / 1e9:,.3g} GFLOP a token, "
                f"{tokens:,.0f} tokens a second, a billion tokens in {format_time(1e9 / tokens)}; "
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
