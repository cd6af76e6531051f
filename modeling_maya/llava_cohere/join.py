"""Join a projector with its two bases: plan the whole Maya of a folder that holds only the projector.

A projector-only folder has PROJECTOR, the config.json of its Maya, and the processor. The key `bases` of the
config names the decoder and the tower that the projector was trained with, the dtype that their tensors were
cast to, and the digest of these.
"""

import functools
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.dynamic_module_utils import custom_object_save

from processing_maya import MayaProcessor

from ..configuration_maya import AUTO_MAP, MayaConfig
from ..modeling_maya import MayaForConditionalGeneration
from .files import read_json, reading, write_json
from .headers import PROJECTOR
from .loading import native_shapes
from .origin import Origin, fetch
from .tensors import (
    DTYPE_NAMES,
    TensorRef,
    check_shapes,
    read_safetensors,
    read_weights,
    stored_dtype,
)
from .write import PARTIAL_CONFIG, ConversionPlan, versions

PROJECTOR_PREFIX = "model.multi_modal_projector."
BASES = "bases"
# Key of a recipe's bases -> the prefixes of its tensors in a Maya, and the option that names it.
PARTS: dict[str, tuple[tuple[str, ...], str]] = {
    "language_model": (("model.language_model.", "lm_head."), "--base-model"),
    "vision_tower": (("model.vision_tower.",), "--vision-tower"),
}
# Prefixes of a base's own tensor names, which a Maya replaces by its own.
_OWN_PREFIX = re.compile(r"^(model\.|transformer\.|gpt_neox\.|vision_model\.)")
# Files that a joined folder has in common with its projector's.
SHARED_FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "recipe.yaml",
    "training_log.json",
)


def plan_joined(
    origin: Origin,
    *,
    base_model: str | os.PathLike | None,
    vision_tower: str | os.PathLike | None,
    dtype: torch.dtype | None,
) -> ConversionPlan:
    """Check projector and bases, and plan the whole Maya. For the arguments see `convert`.

    Raises:
        ValueError: a tensor is missing or of another shape, or a base has other values than the base that the
            projector was trained with.
    """
    folder = origin.folder
    where = folder / "config.json"
    raw = read_json(where)
    if raw.get("model_type") != MayaConfig.model_type:
        raise ValueError(
            f"{where}: model_type: expected {MayaConfig.model_type!r} beside {PROJECTOR}, found "
            f"{raw.get('model_type')!r}"
        )
    recorded = _recorded(raw.pop(BASES, None), where)
    config = open_config(raw, where)
    expected = native_shapes(config)
    projector = read_safetensors(folder / PROJECTOR)
    check_shapes(
        projector,
        {key: shape for key, shape in expected.items() if key.startswith(PROJECTOR_PREFIX)},
        str(folder / PROJECTOR),
    )

    # The bases, compared with the digests of those that the projector was trained with.
    notes, found, tensors = [], {}, dict(projector)
    for part, given in (("language_model", base_model), ("vision_tower", vision_tower)):
        base = _base(part, given, recorded, where)
        kept = recorded[part]["dtype"] if part in recorded else raw.get("dtype")
        own = base_tensors(base, part, expected, getattr(torch, str(kept), None))
        if part not in recorded:
            notes.append(f"{part}: {BASES} of {where.name} does not name it; shapes were compared")
        elif (sha256 := digest(own)) != recorded[part]["sha256"]:
            raise ValueError(
                f"{base.name}: {part}: expected the values of {_title(recorded[part])}, with which the projector "
                f"was trained (SHA-256 {recorded[part]['sha256'][:12]}), found others (SHA-256 {sha256[:12]}): "
                f"leave {PARTS[part][1]} out, or give a copy of that base"
            )
        tensors |= own
        found[part] = base
        notes.append(f"{part}: {_title(vars(base))}, {len(own)} tensors")
    tensors = {key: tensors[key] for key in sorted(tensors)}
    check_shapes(tensors, expected, str(folder))
    written = dict(raw)
    if dtype is not None:
        written["dtype"] = str(dtype).removeprefix("torch.")

    def finish(target: Path) -> None:
        _write_small_files(folder, target, config)
        # The map names the code that is written, and never code of the projector's repository.
        auto_map = dict(sorted(AUTO_MAP.items()))
        write_json(target / PARTIAL_CONFIG, {**written, "auto_map": auto_map})

    record = {
        "format": 1,
        "converted_from": {
            "name": origin.name,
            "commit": origin.commit,
            "kind": "projector only",
            "base_model": _name_and_commit(found["language_model"]),
            "vision_tower": _name_and_commit(found["vision_tower"]),
        },
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "versions": versions(),
    }
    return ConversionPlan(
        kind="projector only",
        tensors=tensors,
        config=written,
        record=record,
        sources=sorted({ref.file for ref in tensors.values()} | {where}),
        finish=finish,
        notes=notes,
    )


def open_config(raw: Mapping[str, Any], where: Path) -> MayaConfig:
    """Return the config of a Maya's config.json. Raises ValueError if no model can be built from it."""
    with reading(where):
        config = MayaConfig.from_dict(dict(raw))
        native_shapes(config)
    return config


def base_tensors(
    base: Origin,
    part: str,
    expected: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype | None,
) -> dict[str, TensorRef]:
    """Return the tensors of one base under the names of the Maya that has it.

    Args:
        base: the decoder or the vision tower.
        part: "language_model" or "vision_tower".
        expected: name -> shape of all tensors of the Maya.
        dtype: floating-point tensors are cast to it; None casts nothing.

    Raises:
        FileNotFoundError, ValueError: the base has no safetensors weights, lacks a tensor, or has one of
            another shape.
    """
    prefixes = PARTS[part][0]
    stored: dict[str, TensorRef] = {}
    for key, ref in read_weights(base.folder, pickles=False).items():
        stored.setdefault(key, ref)
        stored.setdefault(_OWN_PREFIX.sub("", key), ref)
    found = {}
    for key, shape in expected.items():
        if not key.startswith(prefixes):
            continue
        name = key.removeprefix(prefixes[0])
        if name not in stored or stored[name].shape != shape:
            found_shape = list(stored[name].shape) if name in stored else "none"
            raise ValueError(
                f"{base.name}: {key}: expected a tensor of shape {list(shape)} by config.json, found "
                f"{found_shape}: this is another {part} than the model's: name the "
                f"right one with {PARTS[part][1]}"
            )
        ref = stored[name]
        stored_as = stored_dtype(ref, dtype)
        read = functools.partial(ref.chunks, stored_as)
        found[key] = TensorRef(ref.key, ref.file, stored_as, ref.shape, read)
    return found


def digest(tensors: Mapping[str, TensorRef]) -> str:
    """Return the SHA-256, in hex, of tensors: of their names, dtypes, shapes and bytes, in order of the names."""
    found = hashlib.sha256()
    for key, ref in sorted(tensors.items()):
        found.update(f"{key} {DTYPE_NAMES[ref.dtype]} {list(ref.shape)}\n".encode())
        for chunk in ref.chunks():
            found.update(chunk.contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _recorded(bases: Any, where: Path) -> dict[str, dict[str, str]]:
    """Return part -> name, commit, dtype and sha256 of the bases that a projector's config names."""
    fields = ("name", "commit", "dtype", "sha256")
    if bases is None:
        return {}
    for part in PARTS:
        each = bases.get(part) if isinstance(bases, dict) else None
        if not isinstance(each, dict) or not all(isinstance(each.get(f), str) for f in fields):
            raise ValueError(
                f"{where}: {BASES}.{part}: expected an object with {', '.join(fields)}, found "
                f"{type(each).__name__}: download it again"
            )
    return {part: bases[part] for part in PARTS}


def _base(
    part: str,
    given: str | os.PathLike | None,
    recorded: Mapping[str, Mapping[str, str]],
    where: Path,
) -> Origin:
    if given is not None:
        return fetch(given)
    if part not in recorded:
        raise ValueError(
            f"{where}: {BASES}.{part}: expected the base's repository, found none: give {PARTS[part][1]}"
        )
    return fetch(recorded[part]["name"], recorded[part]["commit"])


def _name_and_commit(origin: Origin) -> dict[str, str | None]:
    return {"name": origin.name, "commit": origin.commit}


def _title(base: Mapping[str, Any]) -> str:
    return f"{base['name']}@{base['commit']}" if base["commit"] else str(base["name"])


def _write_small_files(folder: Path, target: Path, config: MayaConfig) -> None:
    """Write the code of this package, and copy the small files of a projector's folder.

    No code of the projector's repository is copied.
    """
    with reading(f"{folder}: its processor"):
        MayaProcessor.from_pretrained(folder).save_pretrained(target)
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
    custom_object_save(model, target, config=config)
    custom_object_save(config, target, config=config)
    for name in SHARED_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
