"""Adapters of peft: read, with the base that they name, and merged into it.

An adapter is a folder or repository with an adapter_config.json, which names its base, and an
adapter_model.safetensors: the low-rank matrices and, whole, every other module that learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_maya.llava_cohere.headers import HeaderEntry, read_header

from .models import ADAPTER_CONFIG, Model, find_model, opening
from .reading import read_json_mapping
from .telling import one_line

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"


@dataclass(frozen=True)
class Adapter:
    """An adapter's files, what its adapter_config.json says, and the base that it belongs to."""

    model: Model
    settings: dict[str, Any]
    base: Model

    @property
    def weights(self) -> Path:
        """The path of its tensors."""
        file = self.model.file(WEIGHTS)
        assert file is not None  # looked at when it was found
        return file


def find_adapter(model: Model, base: str | Model | None = None) -> Adapter:
    """The adapter in `model`, with its base.

    Args:
        base: the base, or its folder or repository, instead of the one that the adapter names.

    Raises:
        ValueError, FileNotFoundError: naming the file, for an adapter that is damaged, pickled or
            incomplete, and for a base that is not there, or is an adapter itself.
    """
    config = model.file(ADAPTER_CONFIG)
    if config is None:
        raise FileNotFoundError(f"{model} is no adapter: expected an {ADAPTER_CONFIG}")
    settings = read_json_mapping(config)
    if not isinstance(settings.get("peft_type"), str):
        raise ValueError(
            f"{config}: peft_type: expected the kind of an adapter, such as LORA, found "
            f"{one_line(repr(settings.get('peft_type')), 60)}"
        )
    weights = model.file(WEIGHTS)
    if weights is None:
        if model.file(PICKLE) is not None:
            raise ValueError(
                f"{model}: expected {WEIGHTS}, found only a pickle ({PICKLE}), which is not read, as it may "
                "hold code: if you trust its author, load it once with peft and call save_pretrained(FOLDER)"
            )
        raise FileNotFoundError(f"{model} has an {ADAPTER_CONFIG} but no {WEIGHTS}")
    read_header(weights)
    if base is None:
        found = _named_base(model, config, settings)
    else:
        found = find_model(base) if isinstance(base, str) else base
    if found.is_adapter:
        raise ValueError(
            f"{model}: its base {found} is an adapter itself: merge that one first (maya merge)"
        )
    return Adapter(model, settings, found)


def _named_base(model: Model, config: Path, settings: Mapping[str, Any]) -> Model:
    """The base that an adapter names: as it is named, or seen from the adapter's folder."""
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    advice = "name the base yourself: maya merge ADAPTER OUTPUT --base FOLDER_OR_REPOSITORY"
    if not isinstance(name, str) or not name:
        raise ValueError(
            f"{config}: base_model_name_or_path: expected the base's folder or repository, found "
            f"{one_line(repr(name), 60)}: {advice}"
        )
    try:
        beside = model.folder / name
        if not Path(name).is_dir() and beside.is_dir():
            return find_model(str(beside))
        return find_model(name, revision if isinstance(revision, str) else None)
    except (ValueError, OSError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{config}: base_model_name_or_path: {error}: {advice}") from error


def put_on(network: Any, adapter: Adapter) -> Any:
    """`network`, the adapter's base, with the adapter added into its weights, in place.

    Raises ValueError for an adapter of another model, one that cannot be merged, and a merged weight
    that is not finite.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ModuleNotFoundError:
        raise ValueError(
            f"{adapter.model} is an adapter, which needs the package peft: pip install 'peft>=0.18'"
        ) from None
    # peft warns of what does not fit and loads the rest; it is an error below.
    with warnings.catch_warnings(), opening(f"{adapter.model} on {adapter.base}"):
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(
            network, str(adapter.weights.parent), torch_device=str(network.device)
        )
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    check_tensors(adapter.weights, {name: tuple(each.shape) for name, each in expected.items()})
    if not hasattr(adapted, "merge_and_unload"):
        raise ValueError(
            f"{adapter.model}: adapters of kind {one_line(adapter.settings['peft_type'], 40)} cannot be "
            "merged into their base"
        )
    with opening(f"{adapter.model} on {adapter.base}", "it cannot be merged"):
        return adapted.merge_and_unload(safe_merge=True)


def check_tensors(
    file: Path, expected: Mapping[str, tuple[int, ...]], may_lack: tuple[str, ...] = ()
) -> dict[str, HeaderEntry]:
    """Raise ValueError unless a file holds tensors of these names and shapes, and no others.

    may_lack: beginnings of names that need not be there. Returns the file's header.
    """
    header = read_header(file)
    found = {name: entry.shape for name, entry in header.items()}
    wrong = sorted(
        name
        for name in found.keys() | expected.keys()
        if found.get(name) != expected.get(name)
        and not (name not in found and name.startswith(may_lack))
    )
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{file}: {len(wrong)} tensors do not fit, such as {one_line(name, 120)}: found "
            f"{found.get(name, 'none')}, expected {expected.get(name, 'none')}; "
            "use the adapter with the base and the recipe that it was trained with"
        )
    return header
