"""torch.compile for packed rows: every decoder layer by itself, for rows of any length.

A decoder's layers are alike, so the first one compiled serves all. What differs between rows, lengths
and the attention's plan, is dynamic; a new graph is made only when the plan has another form (a row
of one conversation, of one group, of several; as many blocks of branches), which a run has seen after
a few rows. The tower, the projector and the head stay as they are: together a few per cent of the
work, and the head has its own form for every number of labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Fields of transformers' TrainingArguments, which would compile the whole model and all its lengths.
ARGUMENTS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
# Forms that a plan can have, with room; past it torch computes without compiling.
GRAPHS = 64


def compile_layers(decoder: Any, args: Mapping[str, Any], attention: str = "segments") -> None:
    """Compile the decoder's layers in place where `args` asks for it.

    Args:
        args: a stage's. torch_compile; torch_compile_backend (inductor) and torch_compile_mode, each
            of which asks for it too, as in TrainingArguments.
        attention: the decoder's; flex compiles its own part, also where nothing else is.

    Raises:
        ValueError: for a backend or mode that torch does not have, modes that record CUDA graphs, and
            max-autotune with tf32.
    """
    wanted, backend, mode = (args.get(name) for name in ARGUMENTS)
    asked = wanted or backend or mode
    if asked or attention == "flex":
        torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    if not asked:
        return
    backend = backend or "inductor"
    modes = torch._inductor.list_mode_options()
    for name, value, known in (
        ("torch_compile_backend", backend, torch.compiler.list_backends(exclude_tags=())),
        ("torch_compile_mode", mode, modes),
    ):
        if value is not None and value not in known:
            raise ValueError(f"args.{name}: expected one of {', '.join(known)}, found {value!r}")
    if mode is not None and mode.startswith("max-autotune") and args.get("tf32"):
        raise ValueError(
            f"args.torch_compile_mode: {mode!r} reads torch's older setting of tf32, which the newer one "
            "that args.tf32 makes forbids; remove tf32, or leave the mode out"
        )
    if mode is not None and modes[mode].get("triton.cudagraphs"):
        raise ValueError(
            f"args.torch_compile_mode: {mode!r} records a CUDA graph for every length, and rows have many; "
            "expected max-autotune-no-cudagraphs or default"
        )
    # DDP would cut compiled layers where its buckets end, and compile the pieces for every length.
    torch._dynamo.config.optimize_ddp = False
    layer: nn.Module
    for layer in decoder.layers:
        layer.compile(backend=backend, mode=mode, dynamic=True)
