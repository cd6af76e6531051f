"""Find peft adapters, with the base that they name, and merge them into it.

An adapter is a folder or repository with an adapter_config.json, which names the base, and an
adapter_model.safetensors with the low-rank matrices and full copies of every other trained module.
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
    """An adapter: its files, the content of its adapter_config.json, and its base model."""

    model: Model
    settings: dict[str, Any]
    base: Model

    @property
    def weights(self) -> Path:
        """Path of the adapter's tensors."""
        file = self.model.file(WEIGHTS)
        assert file is not None  # find_adapter has checked this
        return file


def find_adapter(model: Model, base: str | Model | None = None) -> Adapter:
    """Return the adapter in `model`, with its base.

    Args:
        base: the base, or its folder or repository; None takes the base that the adapter names.

    Raises:
        ValueError, FileNotFoundError: naming the file, if the adapter is damaged, pickled or
            incomplete, or if the base is missing or is an adapter itself.
    """
    config = model.file(ADAPTER_CONFIG)
    if config is None:
        raise FileNotFoundError(f"{model}: expected an adapter, found no {ADAPTER_CONFIG}")
    settings = read_json_mapping(config)
    if not isinstance(settings.get("peft_type"), str):
        raise ValueError(
            f"{config}: peft_type: expected a kind of adapter, such as LORA, found "
            f"{one_line(repr(settings.get('peft_type')), 60)}"
        )
    weights = model.file(WEIGHTS)
    if weights is None:
        if model.file(PICKLE) is not None:
            raise ValueError(
                f"{model}: expected {WEIGHTS}, found only a pickle ({PICKLE}), which may hold code and is "
                "never read: if you trust its author, load it once with peft and call save_pretrained(FOLDER)"
            )
        raise FileNotFoundError(f"{model}: expected {WEIGHTS}, found only {ADAPTER_CONFIG}")
    read_header(weights)
    if base is None:
        found = _named_base(model, config, settings)
    else:
        found = find_model(base) if isinstance(base, str) else base
    if found.is_adapter:
        raise ValueError(
            f"{model}: expected a full model as base, found {found}, an adapter: merge that one first (maya merge)"
        )
    return Adapter(model, settings, found)


def _named_base(model: Model, config: Path, settings: Mapping[str, Any]) -> Model:
    """Return the base that an adapter names; a relative path may start at the adapter's folder."""
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
    """Merge the adapter into `network`, its base, in place, and return the merged model.

    Raises:
        ValueError: if the adapter belongs to another model or cannot be merged, or if a merged weight
            is not finite.
    """
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ModuleNotFoundError:
        raise ValueError(
            f"{adapter.model} is an adapter, which needs the package peft: pip install 'peft>=0.18'"
        ) from None
    # peft only warns of tensors that do not fit; check_tensors below raises an error.
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
    """Check that a file holds exactly the tensors of these names and shapes, and return its header.

    Args:
        may_lack: prefixes of tensor names that are optional.

    Raises:
        ValueError: naming the first tensor that is missing, unknown or of another shape.
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
            f"{file}: {len(wrong)} tensors do not fit, such as {one_line(name, 120)}: expected "
            f"{expected.get(name, 'none')}, found {found.get(name, 'none')}: "
            "use the adapter with the base and the recipe that it was trained with"
        )
    return header
