"""Plan the export to transformers' own LLaVA, which loads without Maya's code.

Two settings that LLaVA's config does not have go into the weights: the tower is cut after the layer that
Maya reads, and an untied head is the decoder's head times its `logit_scale`.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig

from ..configuration_maya import CLASS_TOKENS, MayaConfig
from .config import IMAGE_TOKEN
from .files import optional_json, read_json, reading, write_json
from .loading import native_shapes
from .origin import Origin
from .tensors import TensorRef, check_shapes, read_weights
from .write import PARTIAL_CONFIG, ConversionPlan, versions

TOWERS = ("siglip_vision_model", "clip_vision_model")
HEAD, EMBEDDINGS = "lm_head.weight", "model.language_model.embed_tokens.weight"
PROJECTOR, LAST_NORM = "model.multi_modal_projector", "model.vision_tower.post_layernorm"
# Files to copy unchanged. `tokenizer_config.json` is not one: it names the processor's class.
COPIED = ("tokenizer.json", "chat_template.jinja", "generation_config.json")
TEMPLATE = "chat_template.jinja"


def plan_llava(origin: Origin) -> ConversionPlan:
    """Check a Maya and plan its export.

    Raises:
        ValueError: LLaVA's format cannot hold the model; the error names file and field. It holds
            projectors of one or two layers, SigLIP and CLIP towers, and square images, either padded with
            grey or resized without regard to their aspect.
    """
    folder, where = origin.folder, str(origin.folder / "config.json")
    raw, config, tensors = read_maya(folder)
    _check_parts(config, where)
    pictures = picture_settings(folder)
    files = sorted({ref.file for ref in tensors.values()} | {folder / "config.json"})
    notes = _fold_logit_scale(tensors, config)
    written = _llava_config(config, tied=HEAD not in tensors, dtype=raw.get("dtype"))

    def finish(target: Path) -> None:
        for name in COPIED:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
        tokenizer = optional_json(folder / "tokenizer_config.json") or {}
        tokenizer.pop("auto_map", None)
        write_json(
            target / "tokenizer_config.json", tokenizer | {"processor_class": "LlavaProcessor"}
        )
        write_json(
            target / "processor_config.json",
            {
                "processor_class": "LlavaProcessor",
                "image_token": IMAGE_TOKEN,
                "patch_size": config.vision_config.patch_size,
                "num_additional_image_tokens": CLASS_TOKENS[config.vision_config.model_type],
                "vision_feature_select_strategy": config.vision_feature_select_strategy,
            },
        )
        write_json(target / "preprocessor_config.json", pictures)
        write_json(target / PARTIAL_CONFIG, written)

    record = {
        "format": 1,
        "converted_from": {"name": origin.name, "commit": origin.commit, "kind": "Maya"},
        "versions": versions(),
    }
    tensors = _llava_tensors(tensors, config)
    return ConversionPlan("Maya", tensors, written, record, files, finish, notes=notes)


def read_maya(folder: Path) -> tuple[dict[str, Any], MayaConfig, dict[str, TensorRef]]:
    """Return a Maya's config.json, its config, and its tensors by name, whose shapes are checked.

    Raises:
        ValueError, OSError: one line that names the file and what is wrong in it.
    """
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != MayaConfig.model_type:
        raise ValueError(f"{where}: model_type: expected 'maya', found {raw.get('model_type')!r}")
    with reading(where):
        config = MayaConfig.from_dict(dict(raw))
        shapes = native_shapes(config)
    tensors = read_weights(folder, pickles=False)
    if config.tie_word_embeddings:
        tensors.pop(HEAD, None)
    check_shapes(tensors, shapes, str(folder))
    return raw, config, tensors


def _check_parts(config: MayaConfig, where: str) -> None:
    """Raise ValueError for a tower or projector that transformers' LLaVA does not support."""
    tower, layers = config.vision_config.model_type, config.projector_num_layers
    if tower not in TOWERS:
        raise ValueError(
            f"{where}: vision_config.model_type: expected {' or '.join(TOWERS)}, as transformers' LLaVA passes "
            f"images to no other tower, found {tower!r}"
        )
    if config.projector_kind != "mlp":
        raise ValueError(
            f"{where}: projector_kind: expected 'mlp', the projector of LLaVA, found {config.projector_kind!r}"
        )
    if layers > 2:
        raise ValueError(
            f"{where}: projector_num_layers: expected 1 or 2, as LLaVA's projector has two, found {layers}"
        )


def picture_settings(folder: Path) -> dict[str, Any]:
    """Return settings of LLaVA's image processor that give the same pixels; raise ValueError if there are none."""
    path = folder / "processor_config.json"
    settings = (optional_json(path) or {}).get("image_processor")
    if settings is None:
        path = folder / "preprocessor_config.json"
        settings = read_json(path)
    grey = [int(mean * 255) for mean in settings["image_mean"]]
    aspect = settings["image_aspect"]
    wanted: dict[str, list[Any]] = {
        "image_aspect": ["pad", "square"],
        "apply_exif_rotation": [False],
        "transparent_color": [None],
        "do_convert_rgb": [True],
        "pad_color": [grey] if aspect == "pad" else [settings["pad_color"]],
    }
    for name, allowed in wanted.items():
        if settings[name] not in allowed:
            raise ValueError(
                f"{path}: {name}: expected {' or '.join(map(repr, allowed))}, the only choice of LLaVA's image "
                f"processor, found {settings[name]!r}"
            )
    kept = (
        "do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize",
        "image_mean", "image_std", "do_convert_rgb",
    )  # fmt: skip
    return {
        "image_processor_type": "LlavaImageProcessor",
        "processor_class": "LlavaProcessor",
        **{name: settings[name] for name in kept},
        "do_pad": aspect == "pad",
        "do_center_crop": False,
        # Serving engines compute the number of image tokens from it.
        "crop_size": settings["size"],
    }


def _llava_config(config: MayaConfig, *, tied: bool, dtype: str | None) -> dict[str, Any]:
    """Return the LLaVA config.json of a Maya."""
    parts = {}
    for name in ("vision_config", "text_config"):
        part = getattr(config, name).to_dict()
        part.pop("_name_or_path", None)
        parts[name] = part
    parts["vision_config"] |= {
        "num_hidden_layers": config.vision_layers_used,
        "vision_use_head": False,
    }
    parts["text_config"]["tie_word_embeddings"] = tied
    if "logit_scale" in parts["text_config"]:
        parts["text_config"]["logit_scale"] = 1.0
    one_layer = config.projector_num_layers == 1
    written = LlavaConfig(
        **parts,
        image_token_index=config.image_token_id,
        projector_hidden_act="linear" if one_layer else config.projector_hidden_act,
        # The exported tower ends with the layer that Maya reads.
        vision_feature_layer=-1,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        image_seq_length=config.image_seq_length,
        multimodal_projector_bias=True,
        tie_word_embeddings=tied,
    ).to_dict()
    return written | {"architectures": ["LlavaForConditionalGeneration"], "dtype": dtype}


def _fold_logit_scale(tensors: dict[str, TensorRef], config: MayaConfig) -> list[str]:
    """Multiply the head by `logit_scale`; a tied head becomes a tensor of its own first.

    Returns:
        Notes for the report.
    """
    scale = getattr(config.text_config, "logit_scale", None)
    if scale in (None, 1.0):
        return []
    source = tensors.get(HEAD, tensors[EMBEDDINGS])

    def scaled() -> Iterator[torch.Tensor]:
        for chunk in source.read():
            yield (chunk.float() * scale).to(chunk.dtype)

    tensors[HEAD] = replace(source, key=HEAD, read=scaled)
    mantissa = torch.frexp(torch.tensor(float(scale)))[0].item()
    exact = "exact, as the factor is a power of two" if mantissa == 0.5 else "rounded"
    return [f"head: a tensor of its own, logit_scale {scale} multiplied into it ({exact})"]


def _llava_tensors(tensors: dict[str, TensorRef], config: MayaConfig) -> dict[str, TensorRef]:
    """Return the tensors under LLaVA's names, plus those that only LLaVA has."""
    renamed = {}
    for key, ref in tensors.items():
        if key.startswith(f"{PROJECTOR}.layers."):
            number, kind = key.split(".")[-2:]
            key = f"{PROJECTOR}.linear_{int(number) // 2 + 1}.{kind}"
        renamed[key] = ref
    like = tensors[f"{PROJECTOR}.layers.0.weight"]
    if config.projector_num_layers == 1:
        width = config.text_config.hidden_size
        for kind, value in (("weight", torch.eye(width)), ("bias", torch.zeros(width))):
            renamed[f"{PROJECTOR}.linear_2.{kind}"] = made(value, like)
    # LLaVA reads the features before this norm, but a checkpoint must have the norm's weights.
    width = config.vision_config.hidden_size
    for kind, value in (("weight", torch.ones(width)), ("bias", torch.zeros(width))):
        renamed[f"{LAST_NORM}.{kind}"] = made(value, like)
    unused = ("model.vision_tower.head.", *layers_behind(config))
    return {key: ref for key, ref in renamed.items() if not key.startswith(unused)}


def layers_behind(config: MayaConfig) -> list[str]:
    """Return the name prefixes of the tower's layers that Maya does not read."""
    return [
        f"model.vision_tower.encoder.layers.{number}."
        for number in range(config.vision_layers_used, config.vision_config.num_hidden_layers)
    ]


def made(value: torch.Tensor, like: TensorRef) -> TensorRef:
    """Return a TensorRef of `value`, cast to the dtype of `like`."""
    value = value.to(like.dtype)
    return replace(like, shape=tuple(value.shape), read=lambda: iter([value.reshape(-1)]))
