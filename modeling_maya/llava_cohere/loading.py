"""Let `from_pretrained` load the original's `llava_cohere` checkpoints as they are published.

The config is translated when it is read. transformers' key mapping renames the weights one by one while
it loads them, so no weight is in memory twice. Before that, the header of every file is compared with the
config, because transformers' errors about a broken shard do not name the file. This is not Hub code: it
extends the classes when the package is imported.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.hub import get_checkpoint_shard_files

from processing_maya.processing_llava_cohere import HUB_KWARGS, MODEL_TYPE, find_file

from ..configuration_maya import MayaConfig
from ..modeling_maya import MayaForConditionalGeneration, MayaPreTrainedModel
from .config import (
    BACKWARD_RENAMINGS,
    DERIVED_BUFFERS,
    RENAMINGS,
    TOWER_PREFIX,
    check_mm_fields,
    check_model_type,
    rename,
    spare_row,
    to_maya,
    tokenizer_files,
)
from .tensors import TensorRef, check_shapes, read_weights
from .tower import resolve_vision_config


def read_config(
    raw: dict,
    location: str | os.PathLike | None,
    overrides: dict[str, Any] | None = None,
    **hub_kwargs: Any,
) -> dict[str, Any]:
    """Return the dict of a `MayaConfig` for the `llava_cohere` config `raw`, read from `location`.

    Args:
        raw: the original's config.json.
        location: its folder or repository, or None.
        overrides: may hold `vision_config` and `image_token_id`, for a tower or tokenizer that cannot
            be found.
        hub_kwargs: arguments of huggingface_hub, such as `revision`.
    """
    overrides = overrides or {}
    folder = Path(location) if location is not None and Path(location).is_dir() else None
    folder = folder / hub_kwargs.get("subfolder", "") if folder is not None else None
    where = str(Path(str(location or "")) / "config.json")
    check_model_type(raw, where)
    check_mm_fields(raw, where)
    row = overrides.get("image_token_id")
    if row is None:
        files = tokenizer_files(location, hub_kwargs) if location is not None else {}
        row = spare_row(files, raw.get("vocab_size", 256000), str(location))
    tower_kwargs: dict[str, Any] = {
        key: hub_kwargs[key]
        for key in ("cache_dir", "local_files_only", "token")
        if key in hub_kwargs
    }
    vision = resolve_vision_config(
        raw,
        where,
        config_folder=folder,
        override=overrides.get("vision_config"),
        hub_kwargs=tower_kwargs,
    )
    translated = to_maya(raw, where, vision_config=vision, image_token_id=row)
    # AutoProcessor looks here when a folder has no processor of its own.
    translated["processor_class"] = "MayaProcessor"
    return translated


class LlavaCohereConfig(MayaConfig):
    """The class that `AutoConfig` has for `llava_cohere`; it reads a config.json as a `MayaConfig`."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a `MayaConfig`; `name_or_path` in `kwargs` is the folder or repository of the dict."""
        location = kwargs.get("name_or_path", config_dict.get("_name_or_path"))
        return MayaConfig.from_dict(read_config(config_dict, location, kwargs), **kwargs)


def llava_cohere_shapes(config: MayaConfig) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of a full `llava_cohere` checkpoint.

    They are in the order of the original's modules: decoder, whole vision tower, projector. An untied
    head comes last; a tied head is left out.
    """
    groups = (
        "model.embed_tokens.",
        "model.layers.",
        "model.norm.",
        "model.vision_tower.",
        "model.mm_projector.",
    )

    def place(key: str) -> int:
        return next((i for i, group in enumerate(groups) if key.startswith(group)), len(groups))

    shapes = native_shapes(config, vision_keep_unused_weights=True)
    renamed = {rename(key, BACKWARD_RENAMINGS): shape for key, shape in shapes.items()}
    return {key: renamed[key] for key in sorted(renamed, key=place)}


def native_shapes(config: MayaConfig, **changes: Any) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of every tensor of a saved Maya, without a tied head.

    Args:
        config: of the Maya.
        changes: fields of the config that replace its values.
    """
    fields = config.to_dict()
    for name in ("auto_map", "model_type", "transformers_version", "architectures"):
        fields.pop(name, None)
    with torch.device("meta"):
        model = MayaForConditionalGeneration(MayaConfig(**{**fields, **changes}))
    return {
        key: tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
        if key != "lm_head.weight" or not config.tie_word_embeddings
    }


def check_checkpoint(tensors: dict[str, TensorRef], config: MayaConfig, where: str) -> list[str]:
    """Compare a checkpoint's tensors with the names and shapes that its config implies.

    Returns:
        The names of the checkpoint's buffers that are computed, not learned.

    Raises:
        ValueError: a tensor is missing, unexpected or of another shape; the error names file and tensor.
    """
    derived = [key for key in tensors if DERIVED_BUFFERS.search(key)]
    expected = llava_cohere_shapes(config)
    if "lm_head.weight" in tensors:
        text: Any = config.text_config
        expected["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    if "model.mm_projector.weight" in tensors:  # a single layer, saved under its bare names
        expected = {
            key.replace("mm_projector.0.", "mm_projector."): shape
            for key, shape in expected.items()
        }
    if not any(key.startswith(TOWER_PREFIX) for key in tensors):
        raise ValueError(
            f"{where}: expected the tensors of the vision tower, {TOWER_PREFIX}*, found none: convert the "
            "checkpoint with `maya convert --vision-tower FOLDER_OR_REPOSITORY --tower-source hub`"
        )
    # The tower's tensors behind the feature layer change no output and may be missing.
    used = native_shapes(config)
    expected = {
        key: shape
        for key, shape in expected.items()
        if key in tensors or not key.startswith(TOWER_PREFIX) or rename(key, RENAMINGS) in used
    }
    check_shapes({key: ref for key, ref in tensors.items() if key not in derived}, expected, where)
    return derived


def _checkpoint_folder(location: str | os.PathLike, hub_kwargs: dict[str, Any]) -> Path:
    """Return the folder of the weights: the given one, or the repository's snapshot after a download."""
    if Path(location).is_dir():
        return Path(location) / hub_kwargs.get("subfolder", "")
    name = str(location)
    single = find_file(name, "model.safetensors", **hub_kwargs)
    if single is not None:
        return single.parent
    index = find_file(name, "model.safetensors.index.json", **hub_kwargs)
    if index is None:
        raise FileNotFoundError(
            f"{location}: expected model.safetensors or model.safetensors.index.json, found neither"
        )
    get_checkpoint_shard_files(name, index, **hub_kwargs)
    return Path(index).parent


def _is_llava_cohere(location: str | os.PathLike, hub_kwargs: dict[str, Any]) -> bool:
    path = find_file(location, "config.json", quiet=True, **hub_kwargs)
    return path is not None and f'"{MODEL_TYPE}"' in path.read_text(
        encoding="utf-8", errors="replace"
    )


def register() -> None:
    """Let `AutoConfig`, `MayaConfig` and the Maya models read `llava_cohere` checkpoints."""
    AutoConfig.register(MODEL_TYPE, LlavaCohereConfig)
    native_dict: Callable[..., Any] = MayaConfig.get_config_dict.__func__  # type: ignore[attr-defined]
    native_load: Callable[..., Any] = MayaPreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def get_config_dict(
        cls: type[MayaConfig], pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ):
        location = pretrained_model_name_or_path
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if kwargs.get(key) is not None}
        raw, rest = native_dict(cls, location, **kwargs)
        kind = raw.get("model_type", cls.model_type)
        if kind == MODEL_TYPE:
            raw = read_config(raw, location, kwargs, **hub_kwargs)
        elif kind != cls.model_type:
            # transformers would only warn, and build a Maya of the default size.
            raise ValueError(
                f"{Path(str(location)) / 'config.json'}: model_type: expected {cls.model_type!r} or "
                f"{MODEL_TYPE!r}, found {kind!r}"
            )
        return raw, rest

    def from_pretrained(
        cls: type[MayaPreTrainedModel],
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        **kwargs: Any,
    ):
        location = pretrained_model_name_or_path
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if kwargs.get(key) is not None}
        if location is None or not _is_llava_cohere(location, hub_kwargs):
            return native_load(cls, location, *args, **kwargs)
        raw, _ = PreTrainedConfig.get_config_dict(location, **hub_kwargs)
        if raw.get("model_type") != MODEL_TYPE:
            return native_load(cls, location, *args, **kwargs)
        config = kwargs.get("config")
        if not isinstance(config, MayaConfig):
            config = MayaConfig.from_dict(read_config(raw, location, kwargs, **hub_kwargs))
        folder = _checkpoint_folder(location, hub_kwargs)
        check_checkpoint(read_weights(folder, pickles=False), config, str(folder))
        mapping = {**RENAMINGS, **(kwargs.pop("key_mapping", None) or {})}
        kwargs["use_safetensors"] = True
        loaded = native_load(cls, location, *args, key_mapping=mapping, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        _check_tie(model, str(folder))
        return loaded

    MayaConfig.get_config_dict = classmethod(get_config_dict)  # type: ignore[method-assign,assignment]
    MayaPreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]


def _check_tie(model: MayaPreTrainedModel, where: str) -> None:
    head = getattr(model, "lm_head", None)
    if head is None or not model.config.tie_word_embeddings:
        return
    if head.weight is not model.get_input_embeddings().weight:
        raise ValueError(
            f"{where}: lm_head.weight: expected the values of model.embed_tokens.weight, as config.json ties them "
            "(tie_word_embeddings true or absent), found others: set tie_word_embeddings to false to keep both"
        )
