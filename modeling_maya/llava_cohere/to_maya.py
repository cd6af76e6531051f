"""Plan the conversion of a checkpoint of the original to a Maya's folder."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from processing_maya.processing_llava_cohere import MODEL_TYPE, read_processor

from ..configuration_maya import MayaConfig
from ..modeling_maya import MayaForConditionalGeneration
from .config import (
    RENAMINGS,
    TOWER_PREFIX,
    check_mm_fields,
    check_model_type,
    rename,
    spare_row,
    text_config,
    to_maya,
    tokenizer_files,
)
from .files import optional_json, read_json, reading
from .headers import has_weights
from .loading import check_checkpoint, native_shapes
from .lora import merge_lora
from .origin import Origin, fetch
from .tensors import TensorRef, check_shapes, read_pickle, read_weights, same_bytes
from .tower import compare_towers, named_tower, resolve_vision_config, tower_tensors
from .write import PARTIAL_CONFIG, UNUSED_TOWER, ConversionPlan, versions


@dataclass
class Source:
    """The contents of the original's folder, the same for every kind of checkpoint."""

    kind: str
    tensors: dict[str, TensorRef]  # under the original's names
    settings: list[Path]  # files that were read, other than those of `tensors`
    tokenizer_at: Path
    base: Origin | None = None  # the decoder, if the folder does not hold one
    text: dict[str, Any] | None = None  # the config of `base`


def plan_maya(
    origin: Origin,
    *,
    base_model: str | os.PathLike | None,
    vision_tower: str | None,
    tower_source: str,
    trust_remote_code: bool,
    dtype: torch.dtype | None,
) -> ConversionPlan:
    """Check the whole checkpoint and plan the output. For the arguments see `convert`."""
    folder = origin.folder
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MayaConfig.model_type:
        raise ValueError(
            f"{where}: model_type: expected a checkpoint to convert, found 'maya': it is converted already "
            f"(--to {MODEL_TYPE} converts it back)"
        )
    check_model_type(raw, where)
    check_mm_fields(raw, where)
    notes: list[str] = []
    source = _read_source(origin, raw, where, base_model, notes)
    tensors = source.tensors

    # The vision tower: the checkpoint's copy, or the tower that its config names.
    own = {key: ref for key, ref in tensors.items() if key.startswith(TOWER_PREFIX)}
    use_named = tower_source == "hub" or not own
    named = named_tower(vision_tower, raw, folder, required=use_named)
    if use_named and named is None:
        raise FileNotFoundError(
            f"{where}: mm_vision_tower: expected a folder or repository with the vision tower's weights, found "
            f"{vision_tower or raw.get('mm_vision_tower')!r}, which cannot be read: name one with --vision-tower"
        )
    tower = str(named.folder) if named is not None else vision_tower
    config = _maya_config(raw, where, source, tower)
    tensors, difference = _take_tower(tensors, own, named, use_named, notes)

    # The tensors that the model uses, under Maya's names, and those kept only to convert back.
    derived = check_checkpoint(tensors, config, str(folder))
    if derived:
        notes.append(f"{len(derived)} computed buffers left out, such as {derived[0]}")
        tensors = {key: ref for key, ref in tensors.items() if key not in derived}
    head_was_stored = _drop_tied_head(tensors, config, notes)
    expected = native_shapes(config)
    renamed = {rename(key, RENAMINGS): ref for key, ref in tensors.items()}
    live = {key: renamed[key] for key in expected if key in renamed}
    check_shapes(live, expected, str(folder))
    side = {key: ref for key, ref in tensors.items() if rename(key, RENAMINGS) not in expected}
    if side:
        notes.append(
            f"tower: {len(side)} tensors, behind the feature layer and of the pooling head, change no output; "
            f"they are kept in {UNUSED_TOWER} to convert the model back"
        )
    config.dtype = dtype or _main_dtype(live)

    record: dict[str, Any] = {
        "format": 1,
        "converted_from": {
            **_name_and_commit(origin),
            "kind": source.kind,
            "base_model": None if source.base is None else _name_and_commit(source.base),
            "vision_tower": {
                "name": raw["mm_vision_tower"],
                "commit": None,
                **({} if named is None else _name_and_commit(named)),
                "weights": "named tower" if use_named else "checkpoint",
                "difference": difference,
            },
        },
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "tied_head_was_stored": head_was_stored,
        "original_config": raw,
        "original_generation_config": optional_json(folder / "generation_config.json"),
        "versions": versions(),
    }

    def finish(target: Path) -> None:
        tower_at = [] if named is None else [named.folder]
        _write_hub_files(target, config, raw, tower_at, source.tokenizer_at, trust_remote_code)

    return ConversionPlan(
        kind=source.kind,
        tensors=live,
        config=config.to_dict(),
        record=record,
        sources=sorted({ref.file for ref in tensors.values()} | set(source.settings)),
        finish=finish,
        side=side,
        notes=notes,
    )


def _read_source(
    origin: Origin,
    raw: dict,
    where: str,
    base_model: str | os.PathLike | None,
    notes: list[str],
) -> Source:
    """Read a full checkpoint, LoRA layers with their decoder, or a projector with its decoder."""
    folder = origin.folder
    settings = [folder / "config.json"]
    if (folder / "adapter_config.json").is_file():
        kind = "LoRA layers"
        stems = ("adapter_config", "adapter_model", "non_lora_trainables")
        settings += [path for path in folder.iterdir() if path.stem in stems]
        adapter = read_json(folder / "adapter_config.json")
        base = _base_decoder(base_model, adapter.get("base_model_name_or_path"), raw)
        tensors = merge_lora(folder, read_weights(base.folder, pickles=True), notes)
    elif _has_any_weights(folder):
        if base_model is not None:
            raise ValueError(
                f"base_model: expected none, as {origin.name} is a full checkpoint, found {str(base_model)!r}: "
                "leave it out"
            )
        return Source("full checkpoint", read_weights(folder, pickles=True), settings, folder)
    elif (folder / "mm_projector.bin").is_file():
        kind = "projector only"
        base = _base_decoder(base_model, None, raw)
        tensors = read_weights(base.folder, pickles=True)
        tensors |= _read_projector(folder / "mm_projector.bin")
    else:
        raise FileNotFoundError(
            f"{folder}: no weights: expected model.safetensors, its index, mm_projector.bin or adapter_config.json"
        )
    tokenizer_at = folder if tokenizer_files(folder) else base.folder
    return Source(kind, tensors, settings, tokenizer_at, base, _base_text_config(base, raw, where))


def _name_and_commit(origin: Origin) -> dict[str, str | None]:
    return {"name": origin.name, "commit": origin.commit}


def _take_tower(
    tensors: dict[str, TensorRef],
    own: dict[str, TensorRef],
    named: Origin | None,
    use_named: bool,
    notes: list[str],
) -> tuple[dict[str, TensorRef], dict[str, Any] | None]:
    """Replace the checkpoint's tower by the named one, if `use_named`.

    Returns:
        The tensors, and the differences of the two towers (None if only one is available).
    """
    if named is None or not (use_named or _has_any_weights(named.folder)):
        return tensors, None
    other, skipped = tower_tensors(named.folder)
    if use_named:
        notes.append(f"tower: from {named.name}; {skipped} tensors of its text half left out")
        tensors = {key: ref for key, ref in tensors.items() if key not in own} | other
    if not own:
        return tensors, None
    difference = compare_towers(own, other)
    notes.append(
        f"tower: the checkpoint's copy and {named.name}: largest difference {difference['maximum']:.3g} "
        f"({difference['where'] or 'nowhere'}), {difference['different']} of {difference['compared']} tensors differ"
    )
    return tensors, difference


def _maya_config(raw: dict, where: str, source: Source, tower: str | None) -> MayaConfig:
    """Return the Maya's config, checked by building the model on the meta device.

    Args:
        raw: the original's config.json.
        where: its path.
        source: the contents of the folder.
        tower: the vision tower's folder, or the name that the user gave for it.
    """
    with reading(where):
        vision = resolve_vision_config(raw, where, config_folder=Path(where).parent, tower=tower)
        rows = (source.text or text_config(raw, where))["vocab_size"]
    place = source.tokenizer_at
    with reading(f"{place}: its tokenizer"):
        row = spare_row(tokenizer_files(place), rows, str(place))
    with reading(where):
        fields = to_maya(raw, where, vision_config=vision, image_token_id=row, text=source.text)
        fields.pop("model_type")
        config = MayaConfig(**fields)
        native_shapes(config)
    return config


def _has_any_weights(folder: Path) -> bool:
    return has_weights(folder) or has_weights(folder, "pytorch_model.bin")


def _base_decoder(given: str | os.PathLike | None, named: str | None, raw: dict) -> Origin:
    name = given or named
    if name is None:
        raise ValueError(
            "base_model: expected the decoder's folder or repository, found None: give --base-model "
            f"(the config says {raw.get('_name_or_path')!r})"
        )
    return fetch(name)


def _base_text_config(base: Origin, raw: dict, where: str) -> dict[str, Any]:
    """Return the decoder's config; ValueError if it differs from the one the projector was trained with."""
    base_where = str(base.folder / "config.json")
    base_raw = read_json(base.folder / "config.json")
    if base_raw.get("model_type") != "cohere":
        raise ValueError(
            f"{base_where}: model_type: expected 'cohere', found {base_raw.get('model_type')!r}"
        )
    rope = base_raw.get("rope_parameters")
    if isinstance(rope, dict):  # saved by transformers 5
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        plain = scaling.get("rope_type", "default") == "default"
        base_raw = {
            **base_raw,
            "rope_theta": rope.get("rope_theta"),
            "rope_scaling": None if plain else scaling,
        }
    base_text, text = text_config(base_raw, base_where), text_config(raw, where)
    for name, value in base_text.items():
        if name == "use_cache" or name not in {*raw, "rope_parameters"}:
            continue
        if text[name] != value:
            raise ValueError(
                f"{base_where}: {name}: expected {text[name]!r} as in {where}, found {value!r}"
            )
    return base_text


def _read_projector(path: Path) -> dict[str, TensorRef]:
    tensors = {}
    for key, ref in read_pickle(path).items():
        if "mm_projector." not in key:
            raise ValueError(
                f"{path}: {key}: expected only mm_projector.* tensors, found this one of shape {list(ref.shape)}"
            )
        tensors["model.mm_projector." + key.split("mm_projector.")[1]] = ref
    return tensors


def _drop_tied_head(tensors: dict[str, TensorRef], config: MayaConfig, notes: list[str]) -> bool:
    """Remove a stored head that is tied to the embeddings; return whether there was one.

    Raises:
        ValueError: its values differ from the embeddings.
    """
    head = tensors.get("lm_head.weight")
    if head is None or not config.tie_word_embeddings:
        return False
    if not same_bytes(head, tensors["model.embed_tokens.weight"]):
        raise ValueError(
            f"{head.file}: lm_head.weight: expected the values of model.embed_tokens.weight, as config.json ties "
            "them (tie_word_embeddings true or absent), found others: set tie_word_embeddings to false to keep both"
        )
    del tensors["lm_head.weight"]
    notes.append("lm_head.weight: equal to the embeddings it is tied to; not written again")
    return True


def _main_dtype(tensors: dict[str, TensorRef]) -> torch.dtype:
    sizes: dict[torch.dtype, int] = {}
    for ref in tensors.values():
        sizes[ref.dtype] = sizes.get(ref.dtype, 0) + ref.numel
    return max(sizes, key=lambda dtype: sizes[dtype])


def _write_hub_files(
    target: Path,
    config: MayaConfig,
    raw: dict,
    tower_at: list[Path],
    tokenizer_at: Path,
    trust_remote_code: bool,
) -> None:
    assert config.image_seq_length is not None  # MayaConfig derives it
    with reading(f"{tokenizer_at}: its tokenizer"):
        processor = read_processor(
            raw,
            tokenizer=tokenizer_at,
            image_size=config.vision_config.image_size,
            image_seq_length=config.image_seq_length,
            num_embeddings=config.text_config.vocab_size,
            tower_folders=tower_at,
            tokenizer_kwargs={"trust_remote_code": trust_remote_code},
        )
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"{tokenizer_at}: {processor.image_token}: expected id {config.image_token_id} by the tokenizer's "
            f"files, found {processor.image_token_id}"
        )
    processor.save_pretrained(target)
    text = config.text_config
    # Greedy, as in the original's published settings and evaluations; generation stops at the end of turn.
    GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    ).save_pretrained(target)
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
    custom_object_save(model, target, config=config)
    custom_object_save(config, target, config=config)
    config.to_json_file(target / PARTIAL_CONFIG)
