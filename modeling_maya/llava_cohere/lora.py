"""Merge the original's LoRA layers into the decoder they were trained on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .files import read_json
from .tensors import TensorRef, read_pickle, read_safetensors


def merge_lora(
    folder: Path, tensors: dict[str, TensorRef], notes: list[str]
) -> dict[str, TensorRef]:
    """Replace the tensors that were trained whole, and add each LoRA product to its matrix.

    Args:
        folder: has adapter_config.json, adapter_model and non_lora_trainables.
        tensors: of the base model.
        notes: receives one line about the merged matrices.

    Returns:
        The merged tensors, under the original's names.

    Raises:
        ValueError, FileNotFoundError: name the file and the tensor or setting.
    """
    where = folder / "adapter_config.json"
    settings = read_json(where)
    _check_settings(settings, where)
    merged = dict(tensors)
    whole = _read_some(folder, "non_lora_trainables")
    for key, ref in whole.items():
        # peft's wrapper adds "base_model.", and "model." for the causal model inside it.
        bare = key.removeprefix("base_model.")
        bare = bare.removeprefix("model.") if bare.startswith("model.model.") else bare
        merged[bare] = ref
    if not any(key.startswith("model.mm_projector.") for key in merged):
        raise ValueError(
            f"{folder}: non_lora_trainables: expected tensors mm_projector.*, found none"
        )
    pairs = _read_pairs(folder)
    for module, pair in pairs.items():
        target = f"{module}.weight"
        if target not in merged:
            raise ValueError(
                f"{pair['A'].file}: {module}: expected {target} in the base model, found LoRA weights only"
            )
        base, down, up = merged[target], pair["A"], pair["B"]
        rank, alpha = _rank_and_alpha(settings, module, where)
        if (
            down.shape != (rank, *base.shape[1:])
            or up.shape != (*base.shape[:1], rank)
            or len(base.shape) != 2
        ):
            raise ValueError(
                f"{down.file}: {module}: expected lora_A [{rank}, {base.shape[-1]}] and lora_B "
                f"[{base.shape[0]}, {rank}] for {target} of shape {list(base.shape)}, found {list(down.shape)} "
                f"and {list(up.shape)}"
            )
        scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
        merged[target] = _with_lora(base, down.load(), up.load(), scale)
    notes.append(f"LoRA: {len(pairs)} matrices merged in float32, {len(whole)} tensors taken whole")
    return merged


def _check_settings(settings: dict[str, Any], where: Path) -> None:
    if settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{where}: peft_type: expected 'LORA', found {settings['peft_type']!r}")
    for name in ("use_dora", "fan_in_fan_out", "lora_bias"):
        if settings.get(name):
            raise ValueError(
                f"{where}: {name}: expected false (anything else is not supported), found {settings[name]!r}"
            )
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{where}: bias: expected 'none', found {settings['bias']!r}")


def _read_some(folder: Path, stem: str) -> dict[str, TensorRef]:
    for name, read in ((f"{stem}.safetensors", read_safetensors), (f"{stem}.bin", read_pickle)):
        if (folder / name).is_file():
            return read(folder / name)
    raise FileNotFoundError(
        f"{folder}: expected {stem}.safetensors or {stem}.bin beside adapter_config.json, found neither"
    )


def _read_pairs(folder: Path) -> dict[str, dict[str, TensorRef]]:
    """Return module -> {"A": its lora_A, "B": its lora_B}."""
    pairs: dict[str, dict[str, TensorRef]] = {}
    for key, ref in _read_some(folder, "adapter_model").items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", key)
        if not match:
            raise ValueError(
                f"{ref.file}: {key}: expected only lora_A and lora_B weights, found a tensor of shape "
                f"{list(ref.shape)}"
            )
        pairs.setdefault(match.group(1), {})[match.group(2)] = ref
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            found = next(iter(pair.values()))
            raise ValueError(
                f"{found.file}: {module}: expected lora_A and lora_B, found only lora_{next(iter(pair))}"
            )
    return pairs


def _rank_and_alpha(settings: dict[str, Any], module: str, where: Path) -> tuple[int, float]:
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    for pattern, value in (settings.get("rank_pattern") or {}).items():
        rank = value if re.search(rf"(^|\.)({pattern})$", module) else rank
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        alpha = value if re.search(rf"(^|\.)({pattern})$", module) else alpha
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(
            f"{where}: r, lora_alpha: expected a positive integer and a number, found {rank!r}, {alpha!r}"
        )
    return rank, alpha


def _with_lora(base: TensorRef, down: torch.Tensor, up: torch.Tensor, scale: float) -> TensorRef:
    """Return `base` + `scale` * `up` @ `down`, computed chunk by chunk in float32 when it is read."""
    columns = base.shape[1]

    def read() -> Iterator[torch.Tensor]:
        position = 0
        for chunk in base.chunks():
            first, last = position // columns, -(-(position + chunk.numel()) // columns)
            delta = (up[first:last].float() @ down.float()).mul_(scale).reshape(-1)
            start = position - first * columns
            yield chunk.float().add_(delta[start : start + chunk.numel()]).to(base.dtype)
            position += chunk.numel()

    return TensorRef(base.key, base.file, base.dtype, base.shape, read)
