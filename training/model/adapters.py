"""Low-rank adapters on the decoder: add, quantize the base, save, load and merge.

After peft's injection the model is still a Maya: its forward and the names of its parts are unchanged. Only
an adapted layer `x` becomes `x.base_layer`, next to `x.lora_A.default` and `x.lora_B.default`.

A saved adapter is a folder in peft's format: the matrices, and full copies of all other trained modules
(the projector, as peft's `modules_to_save`). Checkpoints hold the same folder.
`PeftModel.from_pretrained(base, folder)` loads it, and the merged Maya is made from it.
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

# The adapter's folder inside a stage's folder, and peft's prefix of tensor names.
ADAPTER = "adapter"
PREFIX = "base_model.model."
DECODER = "model.language_model."
# Modules that are never quantized, with full names, because transformers matches those.
UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
# Names of optimizers in transformers that bitsandbytes implements.
BITSANDBYTES = re.compile(r"paged_|lion_|ademamix|rmsprop_bnb|adamw_bnb|adamw_8bit")


def decoder_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the decoder's linear layers by name. These can be adapted, and these are quantized."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.startswith(DECODER) and isinstance(module, nn.Linear)
    }


def target_layers(
    model: nn.Module, adapter: AdapterRecipe, rules: Sequence[Rule]
) -> dict[str, nn.Linear]:
    """Return the layers of `model` (without adapter yet) that get an adapter, by name.

    Raises:
        ValueError: if target_modules matches no layer, if a rule trains weights under an adapter or
            quantized weights, and as `freezing.rates`.
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
                f"train: {name} learns at {rate:g}, but its layer gets an adapter: freeze it, or "
                "leave the layer out of adapter.target_modules"
            )
        if adapter.quantize is not None and owner in layers:
            raise ValueError(
                f"train: {name} learns at {rate:g}, but its layer is quantized, and quantized weights "
                "cannot learn: freeze it, or leave adapter.quantize out"
            )
        if "embed_tokens" in name or name.startswith("lm_head"):
            raise ValueError(
                f"train: {name} learns at {rate:g}, but an adapter cannot store embeddings or head, which "
                "may be one matrix: freeze them, or train without adapter"
            )
    return found


def _no_target(wanted: str, layers: Mapping[str, nn.Linear]) -> str:
    ends = sorted({name.rpartition(".")[2] for name in layers})
    return (
        f"adapter.target_modules: expected names of linear layers of the decoder, found {wanted}: "
        f"use some of {', '.join(ends)}, named like {next(iter(layers), 'none')}"
    )


def add_adapter(
    model: PreTrainedModel, adapter: AdapterRecipe, rules: Sequence[Rule]
) -> PreTrainedModel:
    """Add new adapters to `model`, in place. A is drawn from torch's random state, and B is zero.

    Call `freezing.apply_rules` afterwards; it decides which other parameters are trained. Errors are those of
    `target_layers`.
    """
    targets = target_layers(model, adapter, rules)
    ends = sorted({name.rpartition(".")[2] for name in targets})
    # Use one pattern if it matches exactly the listed layers.
    pattern = rf"{re.escape(DECODER)}.*\.({'|'.join(map(re.escape, ends))})"
    whole = {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)}
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=pattern if whole == set(targets) else list(targets),
        use_dora=adapter.type == "dora",
        base_model_name_or_path=model.name_or_path,
        # The commit, if the base comes from a repository.
        revision=getattr(model.config, "_commit_hash", None),
    )
    # `model.add_adapter` does the same, but checks peft's version: transformers 5.24 requires a release
    # of peft that did not exist yet.
    inject_adapter_in_model(config, model)
    # Lets Trainer accept a quantized base, and lets gradient checkpointing reach the adapters' inputs.
    model._hf_peft_config_loaded = True
    return model


# ------------------------------------------------------------------------------ quantization


def check_bitsandbytes(stage: StageRecipe) -> None:
    """Raise ValueError if a stage needs bitsandbytes and it is not installed, or if accelerate's config
    shards quantized weights."""
    optimizer = str(stage.args.get("optim", ""))
    wanted = f"args.optim {optimizer}" if BITSANDBYTES.match(optimizer) else None
    if stage.adapter is not None and stage.adapter.quantize is not None:
        wanted = f"adapter.quantize {stage.adapter.quantize}"
    if wanted and not is_bitsandbytes_available():
        raise ValueError(
            f"stage {stage.name}: {wanted} needs the package bitsandbytes: "
            "pip install 'bitsandbytes>=0.50'"
        )
    for kind in ("FSDP", "DeepSpeed"):
        sharded = os.environ.get(f"ACCELERATE_USE_{kind.upper()}", "false").lower() == "true"
        if sharded and stage.adapter is not None and stage.adapter.quantize is not None:
            raise ValueError(
                f"stage {stage.name}: {wanted}: every process must hold quantized weights unsharded: "
                f"start without a config of {kind}, or leave quantize out"
            )


def quantization(adapter: AdapterRecipe, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the quantization config for the decoder's linear layers, which compute in `dtype`."""
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
    """Return how many bytes quantization saves compared to `width` bytes per weight.

    nf4: half a byte per weight, and a float32 constant per 64 weights; with double_quant one byte per
    constant, and a float32 per 256 constants. int8: one byte per weight, and a float32 per row.
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


# ------------------------------------------------------------------------------ saving, loading


def trained_modules(model: nn.Module) -> list[str]:
    """Return the names of modules outside of adapters that learn: the outermost modules that learn
    completely, and those that own single tensors that learn."""
    adapted = tuple(f"{n}." for n, m in model.named_modules() if isinstance(m, BaseTunerLayer))
    found: list[str] = []
    for name, module in model.named_modules():
        inside = tuple(f"{n}." for n in found)
        # peft cannot save a bare ModuleList; its items are visited next.
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
    """Return the tensors of a saved adapter, by peft's names.

    Args:
        state: the model's gathered state dict, if a process holds only its shard of it.
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
    """Write adapter_config.json and adapter_model.safetensors to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {n: v.cpu().contiguous() for n, v in adapter_state(model, state).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    ordinary_permissions(folder / WEIGHTS)
    config = copy.copy(model.peft_config["default"])
    config.modules_to_save = trained_modules(model) or None
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_adapter(model: PreTrainedModel, folder: Path, more: bool = False) -> None:
    """Load the values of a saved adapter into a model that the same recipe prepared.

    Args:
        more: whether the model may have additional trained modules outside the adapter, which were frozen
            when the adapter was saved. They keep their values.

    Raises:
        ValueError: if adapter and model do not have the same tensors.
    """
    expected = adapter_state(model)
    whole = tuple(PREFIX + name for name in trained_modules(model)) if more else ()
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    check_tensors(folder / WEIGHTS, shapes, may_lack=whole)
    with opening(folder / WEIGHTS):
        state = load_file(folder / WEIGHTS)
    set_peft_model_state_dict(model, {n.removeprefix(PREFIX): v for n, v in state.items()})


def check_continued(adapter: Adapter, recipe: AdapterRecipe) -> None:
    """Raise ValueError unless a stage's adapter has the same form as the saved one that it continues."""
    # Setting -> (the stage's value, peft's default if the saved adapter does not state it).
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
                f"model.checkpoint: {adapter.model}: the adapter to continue has {name} "
                f"{one_line(repr(found), 40)}, the stage's has {wanted!r}: use the saved value in the stage, or "
                "start from the merged model (maya merge)"
            )


def merge_adapter(
    base: str | Model, folder: Path, dtype: torch.dtype = torch.float32
) -> MayaForConditionalGeneration:
    """Return a plain Maya: the base with the adapter in `folder` merged into its weights, on the CPU.

    The base is loaded in `dtype`, never quantized. An adapter trained on quantized weights is added to the
    exact weights, so the merged model differs from the trained one by the quantization error.

    Raises:
        ValueError: if base and adapter do not fit, or a merged weight is not finite.
    """
    adapter = find_adapter(find_model(str(folder)), base)
    network, report = load_network(MayaForConditionalGeneration, adapter.base, dtype=dtype)
    check_report(adapter.base, report)
    return put_on(network, adapter)
