"""Convert the original Maya's checkpoints (`llava_cohere`) to Hub-native ones, and back.

    convert("nahidalam/maya_full_ft", "maya-8b")                              a full checkpoint
    convert("mm_projector_folder", "maya", base_model="CohereForAI/aya-23-8B") only the projector
    convert("user/projector", "maya")                                          only Maya's projector
    convert("lora_folder", "maya", base_model="CohereForAI/aya-23-8B")         LoRA layers
    convert("maya-8b", "back", to="llava_cohere")                              for the original's code
    convert("maya-8b", "llava", to="llava")                                    for tools that know LLaVA
    convert("maya-8b", "gguf", to="gguf")                                      for llama.cpp

Tensors are copied from file to file in chunks, so the memory needed does not grow with the checkpoint. The
result appears under its name only when it is complete.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from processing_maya.processing_llava_cohere import MODEL_TYPE

from .headers import PROJECTOR, is_projector
from .join import plan_joined
from .origin import fetch
from .tensors import stored_dtype
from .to_gguf import plan_gguf, split_files
from .to_llava import plan_llava
from .to_maya import plan_maya
from .to_original import plan_original
from .write import check_output, describe, make_report, write

MAX_SHARD_SIZE = "5GB"
LLAVA, GGUF = "llava", "gguf"
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    base_model: str | os.PathLike | None = None,
    vision_tower: str | os.PathLike | None = None,
    tower_source: str = "checkpoint",
    to: str = "maya",
    dry_run: bool = False,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Convert a checkpoint of the original Maya into a folder that loads from the Hub, or back.

    Args:
        source: folder or Hub repository: a full `llava_cohere` checkpoint, a folder with
            `mm_projector.bin`, one with the original's LoRA files, a Maya's projector as
            `maya publish --only projector` sends it, or (to other formats than `maya`) a Maya.
        output: the folder to write; it must not exist or be empty. Not needed for `dry_run`.
        base_model: the decoder's folder or repository, for projector-only and LoRA sources; default: what
            the config of a Maya's projector names.
        vision_tower: the vision tower's folder or repository; default: what the config names.
        tower_source: which copy of the tower to write: `"checkpoint"`, the checkpoint's own copy (if it
            has one), or `"hub"`, the tower that the config or `vision_tower` names. If both are
            available, the report has the largest difference between them.
        to: `"maya"`, `"llava_cohere"` (for the original's code), or `"llava"`: transformers' own
            `LlavaForConditionalGeneration`, which needs no remote code, or `"gguf"`: two files for llama.cpp.
        dry_run: check everything and report, but write nothing.
        trust_remote_code: passed on when the tokenizer is loaded.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; default: every tensor as it is stored.
        revision: branch, tag or commit, if `source` is a repository.
        max_shard_size: largest size of a written weight file, as "5GB" or a number of bytes.
        log: receives the report, line by line.

    Returns:
        The report: `kind`, `parameters`, `tensors`, `bytes`, `shards` {file: bytes}, `parts`, `notes`.

    Raises:
        ValueError, OSError: one line that names file and key, what was expected and what was found.
            No output is left behind. A killed run leaves no folder that loads.
    """
    formats = ("maya", MODEL_TYPE, LLAVA, GGUF)
    if to not in formats:
        raise ValueError(f"to: expected one of {', '.join(formats)}, found {to!r}")
    if tower_source not in ("checkpoint", "hub"):
        raise ValueError(f"tower_source: expected 'checkpoint' or 'hub', found {tower_source!r}")
    cast = FLOATS.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and cast not in FLOATS.values():
        raise ValueError(f"dtype: expected one of {', '.join(FLOATS)}, found {dtype!r}")
    if output is None and not dry_run:
        raise ValueError("output: expected the folder to write (or dry_run), found None")

    origin = fetch(source, revision)
    tower = None if vision_tower is None else str(vision_tower)
    if output is not None:
        check_output(Path(output))
    if is_projector(origin.folder):
        if to != "maya":
            raise ValueError(
                f"{origin.name}: expected a whole Maya for --to {to}, found only {PROJECTOR}: join it with its "
                f"bases first: maya convert {source} OUTPUT"
            )
        plan = plan_joined(origin, base_model=base_model, vision_tower=tower, dtype=cast)
    elif to == "maya":
        plan = plan_maya(
            origin,
            base_model=base_model,
            vision_tower=tower,
            tower_source=tower_source,
            trust_remote_code=trust_remote_code,
            dtype=cast,
        )
    elif to == GGUF:
        plan, cast = plan_gguf(origin, cast), None
    else:
        if to == LLAVA:
            plan = plan_llava(origin)
        else:
            plan = plan_original(origin, vision_tower=tower)
        if cast is not None:
            plan.config["dtype" if to == LLAVA else "torch_dtype"] = str(cast).removeprefix(
                "torch."
            )
    if to == GGUF:
        files = split_files(plan)
    else:
        files = split_state_dict_into_shards_factory(
            plan.tensors,
            get_storage_size=lambda ref: ref.numel * stored_dtype(ref, cast).itemsize,
            get_storage_id=lambda ref: None,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        ).filename_to_tensors
    report = make_report(plan, files, cast)
    for line in describe(plan, report, output, to, dry_run):
        log(line)
    if not dry_run:
        assert output is not None
        write(plan, files, Path(output), cast)
        log(f"written: {output}")
    return report
