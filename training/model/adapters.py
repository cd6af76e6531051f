"""Low-rank adapters on the decoder: put in, quantized under, saved, loaded, merged.

peft's injection leaves the model a Maya: its forward and the names of its parts stay, only an
adapted layer `x` becomes `x.base_layer` with `x.lora_A.default` and `x.lora_B.default` beside it.

A saved adapter is a folder of peft's format: the matrices, and every other module that learned
(the projector, as peft's `modules_to_save`), whole. The same folder is what a checkpoint holds,
what `PeftModel.from_pretrained(base, folder)` loads, and what the merged Maya is made from.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available

from modeling_maya import MayaForConditionalGeneration

from ..common.adapters import WEIGHTS, Adapter, check_tensors, find_adapter, put_on
from ..common.files import ordinary_permissions
from ..common.models import Model, check_report, find_model, load_network, opening
from ..common.telling import one_line
from ..recipe import AdapterRecipe, Rule, StageRecipe
from .freezing import rates

# The folder inside a stage's, and what peft puts before the names of tensors.
ADAPTER = "adapter"
PREFIX = "base_model.model."
DECODER = "model.language_model."
# What is never quantized: names from the root, since transformers looks for them there.
UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
# Optimizers of transformers that are bitsandbytes' own.
BITSANDBYTES = re.compile(r"paged_|lion_|ademamix|rmsprop_bnb|adamw_bnb|adamw_8bit")


def decoder_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The decoder's linear layers by name: what can be adapted, and what is quantized."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(DECODER) and isinstance(module, nn.Linear)
    }


def target_layers(
    model: nn.Module, adapter: AdapterRecipe, rules: Sequence[Rule]
) -> dict[str, nn.Linear]:
    """The layers of `model` (which holds no adapter yet) that get one, by name.

    Raises ValueError when target_modules finds none, when a rule trains what lies under an adapter or is
    quantized, and as `freezing.rates`.
    """
    layers, wanted = decoder_layers(model), adapter.target_modules
    if wanted is None:
        found = layers
    elif isinstance(wanted, str):
        found = {name: m for name, m in layers.items() if re.search(wanted, name)}
    else:
        found = {}
        for end in wanted:
            part = {name: m for name, m in layers.items() if f".{name}".endswith(f".{end}")}
            if not part:
                raise ValueError(_no_target(repr(end), layers))
            found |= part
    if not found:
        raise ValueError(_no_target(repr(wanted), layers))
    names = [name for name, _ in model.named_parameters()]
    for name, rate in zip(names, rates(names, rules, adapter), strict=True):
        owner = name.rpartition(".")[0]
        if rate is None:
            continue
        if owner in found:
            raise ValueError(
                f"train: {name} learns at {rate:g}, but its layer gets an adapter; freeze it, or "
                "leave the layer out of adapter.target_modules"
            )
        if adapter.quantize is not None and owner in layers:
            raise ValueError(
                f"train: {name} learns at {rate:g}, but its layer is quantized, and such weights "
                "cannot learn; freeze it, or leave adapter.quantize out"
            )
        if "embed_tokens" in name or name.startswith("lm_head"):
            raise ValueError(
                f"train: {name} learns at {rate:g}, but embeddings and head, which may be one "
                "matrix, cannot be kept beside an adapter; freeze them, or train without adapter"
            )
    return found


def _no_target(wanted: str, layers: Mapping[str, nn.Linear]) -> str:
    ends = sorted({name.rpartition(".")[2] for name in layers})
    return (
        f"adapter.target_modules: {wanted} finds no linear layer of the decoder; "
        f"there are {', '.join(ends)}, named like {next(iter(layers), 'none')}"
    )


def add_adapter(
    model: PreTrainedModel, adapter: AdapterRecipe, rules: Sequence[Rule]
) -> PreTrainedModel:
    """Put fresh adapters into `model`, in place; A is drawn from torch's random state, B is zero.

    What learns besides is for `freezing.apply_rules`, to be called after this. Raises as
    `target_layers`.
    """
    targets = target_layers(model, adapter, rules)
    ends = sorted({name.rpartition(".")[2] for name in targets})
    # One line, where it says the same as the list.
    pattern = rf"{re.escape(DECODER)}.*\.({'|'.join(map(re.escape, ends))})"
    whole = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=pattern if whole == set(targets) else list(targets),
        use_dora=adapter.type == "dora",
        base_model_name_or_path=model.name_or_path,
        # The commit, where the base is a repository's.
        revision=getattr(model.config, "_commit_hash", None),
    )
    # `model.add_adapter` does the same, but refuses releases of peft by a number of its own:
    # transformers 5.24 asks for a peft that was not released with it.
    inject_adapter_in_model(config, model)
    # So that Trainer takes a quantized base, and checkpointing reaches the adapters' inputs.
    model._hf_peft_config_loaded = True
    return model


# ------------------------------------------------------------------------------ quantized


def check_bitsandbytes(stage: StageRecipe) -> None:
    """Raises ValueError when a stage asks for what is in bitsandbytes, and that is not installed,
    or for quantized weights where accelerate's config shards them."""
    optimizer = str(stage.args.get("optim", ""))
    wanted = f"args.optim {optimizer}" if BITSANDBYTES.match(optimizer) else None
    if stage.adapter is not None and stage.adapter.quantize is not None:
        wanted = f"adapter.quantize {stage.adapter.quantize}"
    if wanted and not is_bitsandbytes_available():
        raise ValueError(
            f"stage {stage.name}: {wanted} needs the package bitsandbytes; "
            "pip install 'bitsandbytes>=0.50'"
        )
    for kind in ("FSDP", "DeepSpeed"):
        sharded = os.environ.get(f"ACCELERATE_USE_{kind.upper()}", "false").lower() == "true"
        if sharded and stage.adapter is not None and stage.adapter.quantize is not None:
            raise ValueError(
                f"stage {stage.name}: {wanted}: quantized weights are held whole by every process; "
                f"start without a config of {kind}, or leave quantize out"
            )


def quantization(adapter: AdapterRecipe, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How `from_pretrained` quantizes the decoder's linear layers; they compute in `dtype`."""
    if adapter.quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=adapter.double_quant,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=UNQUANTIZED,
    )


def bytes_saved(model: nn.Module, adapter: AdapterRecipe, width: int) -> int:
    """How many bytes less the quantized layers take than at `width` bytes a weight.

    nf4: half a byte, and a float32 constant for each 64 weights; with double_quant that constant
    takes one byte, and a float32 for each 256 of them. int8: a byte, and a float32 for each row.
    """
    if adapter.quantize is None:
        return 0
    saved = 0.0
    for layer in decoder_layers(model).values():
        size = layer.weight.numel()
        if adapter.quantize == "int8":
            taken = size + 4.0 * layer.out_features
        else:
            constants = size / 64
            taken = size / 2 + constants * (1 + 4 / 256 if adapter.double_quant else 4)
        saved += size * width - taken
    return int(saved)


# ------------------------------------------------------------------------------ saved, loaded


def trained_modules(model: nn.Module) -> list[str]:
    """The modules outside of adapters that learn, by name: the outermost that learn whole, and
    those that hold single tensors that do."""
    adapted = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    found: list[str] = []
    for name, module in model.named_modules():
        inside = tuple(f"{n}." for n in found)
        # peft keeps no bare lists of modules; their items come next.
        if not name or f"{name}.".startswith(adapted + inside) or type(module) is nn.ModuleList:
            continue
        learn = [parameter.requires_grad for parameter in module.parameters()]
        own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
        holds_adapter = any(a.startswith(f"{name}.") for a in adapted)
        if any(own) or (learn and all(learn) and not holds_adapter):
            found.append(name)
    return found


def adapter_state(
    model: PreTrainedModel, state: Mapping[str, torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """What a saved adapter holds, by peft's names.

    state: the model's gathered state dict, where a process holds only its shard of it.
    """
    if state is None:
        state = model.state_dict()
    tensors = get_peft_model_state_dict(
        model, state_dict=dict(state), adapter_name="default", save_embedding_layers=False
    )
    whole = tuple(f"{name}." for name in trained_modules(model))
    if whole:
        tensors |= {name: value for name, value in state.items() if name.startswith(whole)}
    return {PREFIX + name: value.detach() for name, value in tensors.items()}


def save_adapter(
    model: PreTrainedModel, folder: Path, state: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Write adapter_config.json and adapter_model.safetensors into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: v.cpu().contiguous() for n, v in adapter_state(model, state).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    ordinary_permissions(folder / WEIGHTS)
    config = copy.copy(model.peft_config["default"])
    config.modules_to_save = trained_modules(model) or None
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_adapter(model: PreTrainedModel, folder: Path, more: bool = False) -> None:
    """Put the values of a saved adapter into a model made ready by the same recipe.

    more: whether modules outside of the adapter may learn that did not when it was saved; they keep
    the values that they have.

    Raises ValueError when the two do not hold the same tensors.
    """
    expected = adapter_state(model)
    whole = tuple(PREFIX + name for name in trained_modules(model)) if more else ()
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    check_tensors(folder / WEIGHTS, shapes, may_lack=whole)
    with opening(folder / WEIGHTS):
        state = load_file(folder / WEIGHTS)
    set_peft_model_state_dict(model, {n.removeprefix(PREFIX): v for n, v in state.items()})


def check_continued(adapter: Adapter, recipe: AdapterRecipe) -> None:
    """Raise ValueError unless a stage's adapter has the form of the saved one that it is to continue."""
    # What the stage asks for, and what peft takes where a saved adapter says nothing.
    expected: dict[str, tuple[Any, Any]] = {
        "peft_type": ("LORA", None),
        "r": (recipe.r, 8),
        "lora_alpha": (recipe.alpha, 8),
        "use_dora": (recipe.type == "dora", False),
        "use_rslora": (False, False),
        "bias": ("none", "none"),
        "rank_pattern": ({}, {}),
        "alpha_pattern": ({}, {}),
    }
    for name, (wanted, default) in expected.items():
        found = adapter.settings.get(name)
        if (default if found is None else found) != wanted:
            raise ValueError(
                f"model.checkpoint: {adapter.model}: the adapter that is to be continued has {name} "
                f"{one_line(repr(found), 40)}, the stage's {wanted!r}: give the stage's adapter the same, or "
                "start from the merged model (maya merge)"
            )


def merge_adapter(
    base: str | Model, folder: Path, dtype: torch.dtype = torch.float32
) -> MayaForConditionalGeneration:
    """A plain Maya: the base with the adapter in `folder` added into its weights, on the CPU.

    The base is loaded in `dtype` and never quantized: an adapter that learned beside quantized weights is
    added to the exact ones, so that its merged model differs from the one that trained by the rounding.

    Raises ValueError when base and adapter do not fit, or a merged weight is not finite.
    """
    adapter = find_adapter(find_model(str(folder)), base)
    network, report = load_network(MayaForConditionalGeneration, adapter.base, dtype=dtype)
    check_report(adapter.base, report)
    return put_on(network, adapter)
