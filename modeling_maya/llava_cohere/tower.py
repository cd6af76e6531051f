"""Find the config and the weights of the vision tower.

The original's config only names its tower. The weights are the checkpoint's own copy, or those of the
folder or repository with that name.
"""

import functools
import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from .config import RECORD, TOWER_PREFIX
from .files import optional_json, read_json
from .headers import has_weights
from .origin import Origin, fetch, local_origin
from .tensors import TensorRef, max_difference, read_weights

# Published SigLIP towers by size: width, layers, heads, MLP width. The shapes of the weights do not give
# the number of heads. [config.json of google/siglip-* and google/siglip2-*]
SIGLIP_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giant-opt": (1536, 40, 16, 6144),
}
SIGLIP_PICTURES = {
    "base": [(16, 224), (16, 256), (16, 384), (16, 512)],
    "large": [(16, 256), (16, 384)],
    "so400m": [(14, 224), (14, 384), (16, 256), (16, 384), (16, 512)],
    "giant-opt": [(16, 256), (16, 384)],
}
SIGLIP_NAME = re.compile(
    r"(?:^|/)siglip2?-(base|large|so400m|giant-opt)-patch(\d+)-(\d+)(?:-[\w.-]+)?$"
)


def local_tower(name: str, config_folder: Path | None) -> Path | None:
    """Return the local folder that `mm_vision_tower` names, or None.

    The name is relative to the config's folder first, then to the current directory.
    """
    places = [] if config_folder is None else [config_folder / name]
    for place in [*places, Path(name).expanduser()]:
        if (place / "config.json").is_file():
            return place
    return None


def vision_config_of(folder: Path) -> dict[str, Any]:
    """Return the vision config in the folder of a SigLIP vision model or of a full SigLIP."""
    where = folder / "config.json"
    raw = read_json(where)
    if raw.get("model_type") == "siglip":
        raw = raw.get("vision_config") or {}
    elif raw.get("model_type") != "siglip_vision_model":
        raise ValueError(
            f"{where}: model_type: expected 'siglip' or 'siglip_vision_model', found {raw.get('model_type')!r}"
        )
    return _clean_vision(raw)


def _clean_vision(vision: dict[str, Any]) -> dict[str, Any]:
    full = AutoConfig.for_model("siglip_vision_model").to_dict()
    drop = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    kept = {key: value for key, value in vision.items() if key in full and key not in drop}
    return {**kept, "model_type": "siglip_vision_model"}


def _published_tower(name: str) -> dict[str, Any] | None:
    match = SIGLIP_NAME.search(name)
    return _siglip(match[1], int(match[2]), int(match[3])) if match else None


def _siglip(size: str, patch: int, image: int) -> dict[str, Any]:
    width, layers, heads, mlp = SIGLIP_SIZES[size]
    config = AutoConfig.for_model(
        "siglip_vision_model",
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=mlp,
        patch_size=patch,
        image_size=image,
    )
    return _clean_vision(config.to_dict())


def _tower_from_shapes(tensors: dict[str, TensorRef]) -> dict[str, Any] | None:
    """Return the config of the published SigLIP tower whose weights have these shapes.

    Returns None unless exactly one tower fits.
    """
    shapes = {
        key.removeprefix(TOWER_PREFIX): ref.shape
        for key, ref in tensors.items()
        if key.startswith(TOWER_PREFIX)
    }
    try:
        width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
        positions = shapes["embeddings.position_embedding.weight"][0]
        mlp = shapes["encoder.layers.0.mlp.fc1.weight"][0]
    except (KeyError, ValueError, IndexError):
        return None
    layers = len({key.split(".")[2] for key in shapes if key.startswith("encoder.layers.")})
    found = [
        (size, patch, image)
        for size, (a, b, _, c) in SIGLIP_SIZES.items()
        for size_patch, image in SIGLIP_PICTURES[size]
        if (a, b, c) == (width, layers, mlp)
        and size_patch == patch
        and (image // patch) ** 2 == positions
    ]
    return _siglip(*found[0]) if len(found) == 1 else None


def resolve_vision_config(
    raw: dict,
    where: str,
    *,
    config_folder: Path | None = None,
    override: dict[str, Any] | None = None,
    tower: str | None = None,
    hub_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the config of the whole vision tower, which a `llava_cohere` config only names.

    The first of these that has it: `override`, the folder that `tower` or `mm_vision_tower` names, the
    published SigLIP of that name, the record of a conversion, the repository of that name, the published
    SigLIP whose shapes the weights in `config_folder` have.

    Raises:
        ValueError: none of them has it.
    """
    name = tower or raw["mm_vision_tower"]
    if override is not None:
        vision = dict(override if isinstance(override, dict) else override.to_dict())
        vision = _clean_vision({**(_published_tower(name) or {}), **vision})
    elif folder := local_tower(name, config_folder if tower is None else None):
        vision = vision_config_of(folder)
    elif published := _published_tower(name):
        vision = published
    elif config_folder is not None and (recorded := _recorded_tower(config_folder)):
        vision = recorded
    else:
        vision = _tower_elsewhere(name, where, config_folder, hub_kwargs or {})
    width = AutoConfig.for_model(**vision).hidden_size
    named = raw.get("mm_hidden_size", width)
    if named != width:
        raise ValueError(
            f"{where}: mm_hidden_size: expected {width}, the width of {name}, found {named!r}"
        )
    return vision


def _recorded_tower(folder: Path) -> dict[str, Any] | None:
    """Return the tower's config from the record that the converter wrote into a checkpoint, or None."""
    vision = (optional_json(folder / RECORD) or {}).get("vision_config")
    return _clean_vision(vision) if isinstance(vision, dict) else None


def _tower_elsewhere(
    name: str, where: str, folder: Path | None, hub_kwargs: dict[str, Any]
) -> dict[str, Any]:
    hint = (
        "give its folder (for `maya convert`: --vision-tower) or its values: "
        "AutoConfig.from_pretrained(..., vision_config={'num_attention_heads': ..., ...})"
    )
    try:
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith("."):
            config = AutoConfig.from_pretrained(name, **hub_kwargs)
            vision = getattr(config, "vision_config", config)
            if vision.model_type == "siglip_vision_model":
                return _clean_vision(vision.to_dict())
            raise ValueError(
                f"{where}: mm_vision_tower: expected a SigLIP vision tower, found {name!r}, a {vision.model_type}"
            )
    except OSError:
        pass
    if folder is not None and has_weights(folder):
        tensors = read_weights(folder, pickles=False)
        if vision := _tower_from_shapes(tensors):
            return vision
    raise ValueError(
        f"{where}: mm_vision_tower: expected a local folder or a repository that can be reached, found {name!r}; "
        f"the weights do not give the number of attention heads: {hint}"
    )


def named_tower(given: str | None, raw: dict, folder: Path, *, required: bool) -> Origin | None:
    """Return the tower that the user or the config names; download a repository only if it is needed."""
    name = given or raw.get("mm_vision_tower")
    if not isinstance(name, str):
        return None  # `check_mm_fields` raises an error about it
    place = local_tower(name, None if given is not None else folder)
    if place is not None:
        return local_origin(place)
    if given is None and not required:
        return None
    return fetch(name)


def tower_tensors(folder: Path) -> tuple[dict[str, TensorRef], int]:
    """Return the vision tensors of a SigLIP folder under the original's names, and the number of others."""
    tensors = read_weights(folder, pickles=True)
    old_names = any(key.startswith("vision_model.") for key in tensors)
    found = {}
    for key, ref in tensors.items():
        if old_names != key.startswith("vision_model."):
            continue
        if not old_names and not re.match(r"(embeddings|encoder|post_layernorm|head)\.", key):
            continue
        if not key.endswith("position_ids"):
            found[TOWER_PREFIX + key.removeprefix("vision_model.")] = ref
    if not found:
        raise ValueError(f"{folder}: expected a SigLIP model, found no vision_model.* tensors")
    return found, len(tensors) - len(found)


def compare_towers(own: dict[str, TensorRef], other: dict[str, TensorRef]) -> dict[str, Any]:
    """Compare the tensors that both towers have, those of `other` rounded to the dtype of `own`.

    Returns:
        The largest difference (`maximum`), its tensor (`where`), and how many tensors are `different`
        of how many `compared`.
    """
    worst, place, different, compared = 0.0, None, 0, 0
    for key, ref in own.items():
        if key not in other:
            continue
        if other[key].shape != ref.shape:
            raise ValueError(
                f"{other[key].file}: {other[key].key}: expected shape {list(ref.shape)} as in {ref.file}, found "
                f"{list(other[key].shape)}: this is another tower than the checkpoint's"
            )
        # Cast to the checkpoint's dtype first: a checkpoint that holds this tower rounded is equal to it.
        rounded = TensorRef(
            key,
            other[key].file,
            ref.dtype,
            ref.shape,
            functools.partial(other[key].chunks, ref.dtype),
        )
        value = max_difference(ref, rounded)
        compared += 1
        different += value > 0
        if value > worst:
            worst, place = value, key.removeprefix(TOWER_PREFIX)
    return {"maximum": worst, "where": place, "different": different, "compared": compared}
