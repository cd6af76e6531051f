"""The vision tower of a conversion: the checkpoint's own copy, and the one that its config names."""

import functools
import re
from pathlib import Path
from typing import Any

from .config import TOWER_PREFIX
from .origin import Origin, fetch, local_origin
from .tensors import TensorRef, max_difference, read_weights
from .vision_config import local_tower


def named_tower(given: str | None, raw: dict, folder: Path, *, required: bool) -> Origin | None:
    """The tower that was given or that the config names; a repository is fetched only if it is needed."""
    name = given or raw.get("mm_vision_tower")
    if not isinstance(name, str):
        return None  # refused by name when the config is translated
    place = local_tower(name, None if given is not None else folder)
    if place is not None:
        return local_origin(place)
    if given is None and not required:
        return None
    return fetch(name)


def tower_tensors(folder: Path) -> tuple[dict[str, TensorRef], int]:
    """A SigLIP folder's vision tensors under the original's names, and how many others it has."""
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
        raise ValueError(f"{folder}: found no vision_model.* tensors, expected a SigLIP model.")
    return found, len(tensors) - len(found)


def compare_towers(own: dict[str, TensorRef], other: dict[str, TensorRef]) -> dict[str, Any]:
    """How far the tensors that both have are from one another, those of `other` rounded to `own`'s dtype."""
    worst, place, different, compared = 0.0, None, 0, 0
    for key, ref in own.items():
        if key not in other:
            continue
        if other[key].shape != ref.shape:
            raise ValueError(
                f"{other[key].file}: {other[key].key}: found shape {list(other[key].shape)}, expected "
                f"{list(ref.shape)} as in {ref.file}: this is another tower than the checkpoint's."
            )
        # Cast to the checkpoint's dtype first: what is asked is whether it holds this tower, rounded.
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
