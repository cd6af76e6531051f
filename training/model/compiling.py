"""torch.compile for packed rows: each decoder layer is compiled alone, for rows of any length.

The decoder's layers are alike, so one compiled layer serves all. Lengths and the attention plan, which
differ between rows, are dynamic. A new graph is compiled only for a plan of another form (one conversation,
one group, several groups; the number of blocks of branches); a run has seen all forms after a few rows.
Tower, projector and head are not compiled: they are a few percent of the work, and the head would need a
graph for every number of labels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Fields of TrainingArguments. Trainer would compile the whole model, for every length.
ARGUMENTS = ("torch_compile", "torch_compile_backend", "torch_compile_mode")
# Limit on graphs, more than the forms of plans; beyond it torch runs without compiling.
GRAPHS = 64


def compile_layers(decoder: Any, args: Mapping[str, Any], attention: str = "segments") -> None:
    """Compile the decoder's layers in place if `args` asks for it.

    Args:
        args: arguments of a stage: torch_compile; also torch_compile_backend (default inductor) or
            torch_compile_mode, which imply it, as in TrainingArguments.
        attention: the decoder's backend. flex always compiles its own kernel, even if layers are not.

    Raises:
        ValueError: if torch does not have the backend or mode, if the mode records CUDA graphs, or for
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
            f"args.torch_compile_mode: {mode!r} reads torch's old tf32 setting, which conflicts with the new "
            "one that args.tf32 sets: remove tf32, or leave the mode out"
        )
    if mode is not None and modes[mode].get("triton.cudagraphs"):
        raise ValueError(
            f"args.torch_compile_mode: expected max-autotune-no-cudagraphs or default, found {mode!r}, which "
            "records a CUDA graph for every length: rows have many lengths"
        )
    # DDP's optimizer would split compiled layers at bucket ends, and compile the pieces for every length.
    torch._dynamo.config.optimize_ddp = False
    layer: nn.Module
    for layer in decoder.layers:
        layer.compile(backend=backend, mode=mode, dynamic=True)
