"""Plan the conversion of a Maya's folder to the original's layout."""

from pathlib import Path
from typing import Any

from processing_maya.processing_llava_cohere import MODEL_TYPE

from ..configuration_maya import MayaConfig
from .config import BACKWARD_RENAMINGS, IMAGE_TOKEN, RECORD, rename, to_llava_cohere
from .files import optional_json, read_json, reading, write_json
from .loading import llava_cohere_shapes, native_shapes
from .origin import Origin
from .tensors import TensorRef, check_shapes, read_safetensors, read_weights
from .write import PARTIAL_CONFIG, UNUSED_TOWER, ConversionPlan, versions

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def plan_original(origin: Origin, *, vision_tower: str | None) -> ConversionPlan:
    """Check the Maya and plan the output. For the arguments see `convert`."""
    folder = origin.folder
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type: expected 'maya', found {MODEL_TYPE!r}: this is the original's layout already"
        )
    if raw.get("model_type") != MayaConfig.model_type:
        raise ValueError(f"{where}: model_type: expected 'maya', found {raw.get('model_type')!r}")
    with reading(where):
        config = MayaConfig.from_dict(dict(raw))
        native_shapes(config)
    record = optional_json(folder / RECORD) or {}
    original = record.get("original_config") or {}
    name = vision_tower or original.get("mm_vision_tower")
    if name is None:
        raise ValueError(
            f"{where}: expected a conversion record with the name of the vision tower, which the original's code "
            "needs, found none: name the tower with --vision-tower"
        )
    notes: list[str] = []
    tensors = _original_tensors(folder, config, name, notes)
    files = sorted({ref.file for ref in tensors.values()} | {folder / "config.json"})
    if record.get("tied_head_was_stored"):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if original.get("mm_projector_type", "") == "linear":
        tensors = {
            key.replace("mm_projector.0.", "mm_projector."): ref for key, ref in tensors.items()
        }
    written = to_llava_cohere(
        config, vision_tower=name, image_aspect=_image_aspect(folder), original=original or None
    )
    generation = record.get("original_generation_config") or {
        "bos_token_id": config.text_config.bos_token_id,
        "eos_token_id": config.text_config.eos_token_id,
        "pad_token_id": config.text_config.pad_token_id,
    }

    def finish(target: Path) -> None:
        _copy_tokenizer(folder, target)
        write_json(target / "generation_config.json", generation)
        write_json(target / PARTIAL_CONFIG, written)

    back = {
        "format": 1,
        "converted_from": {"name": origin.name, "commit": origin.commit, "kind": "Maya"},
        # The original's config only names its tower. Used if nothing is found under that name.
        "vision_config": config.vision_config.to_dict(),
        "versions": versions(),
    }
    return ConversionPlan("Maya", tensors, written, back, files, finish, notes=notes)


def _original_tensors(
    folder: Path, config: MayaConfig, tower: str, notes: list[str]
) -> dict[str, TensorRef]:
    """Return a Maya's tensors, with its unused tower's, under the original's names and in its order."""
    tensors = read_weights(folder, pickles=False)
    if config.tie_word_embeddings and tensors.pop("lm_head.weight", None) is not None:
        notes.append("lm_head.weight: tied, left out")
    check_shapes(tensors, native_shapes(config), str(folder))
    renamed = {rename(key, BACKWARD_RENAMINGS): ref for key, ref in tensors.items()}
    if (folder / UNUSED_TOWER).is_file():
        renamed |= read_safetensors(folder / UNUSED_TOWER)
    wanted = llava_cohere_shapes(config)
    found = {key: shape for key, shape in wanted.items() if key in renamed}
    if len(found) < len(wanted):
        notes.append(
            f"tower: {len(wanted) - len(found)} tensors behind the feature layer are missing and are not written; "
            f"the original's code reads its tower from {tower}"
        )
    check_shapes(renamed, found, str(folder))
    return {key: renamed[key] for key in found}


def _image_aspect(folder: Path) -> str:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name)
            settings = settings.get("image_processor", settings)
            return settings.get("image_aspect", "pad")
    return "pad"


def _copy_tokenizer(folder: Path, target: Path) -> None:
    """Write the tokenizer without `<image>`: the original's code splits texts at `<image>` itself."""

    def is_kept(entry: Any) -> bool:
        return (entry if isinstance(entry, str) else entry["content"]) != IMAGE_TOKEN

    for name in TOKENIZER_FILES:
        content = optional_json(folder / name)
        if content is None:
            continue
        for lists in ("added_tokens", "additional_special_tokens", "extra_special_tokens"):
            if isinstance(content.get(lists), list):
                content[lists] = [entry for entry in content[lists] if is_kept(entry)]
        if "added_tokens_decoder" in content:
            decoder = content["added_tokens_decoder"]
            content["added_tokens_decoder"] = {
                index: entry for index, entry in decoder.items() if is_kept(entry)
            }
        if name == "tokenizer_config.json":
            for entry in ("auto_map", "processor_class", "image_token"):
                content.pop(entry, None)
            content["padding_side"] = "right"
        content.pop(IMAGE_TOKEN, None)
        write_json(target / name, content)
