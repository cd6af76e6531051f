"""Translate the original's `llava_cohere` configuration to a `MayaConfig`, and back.

The meaning of the original's fields follows its training code (nahidalam/maya at f153866,
`llava/train/train.py` and `llava/model/`). Every value that changes what the model computes is
translated, or refused with an error that names its field. No value is guessed.
"""

import os
import re
from pathlib import Path
from typing import Any

from processing_maya.processing_llava_cohere import IMAGE_ASPECTS, MODEL_TYPE, find_file

from ..configuration_maya import MayaConfig
from .files import read_json

IMAGE_TOKEN = "<image>"
# The record that every converted folder carries: its source and how it was converted.
RECORD = "conversion.json"

TOWER_PREFIX = "model.vision_tower.vision_tower.vision_model."
# Patterns of the original's tensor names -> Maya's names. Names of a tower in the checkpoint begin with
# the names of the original's wrapper classes.
RENAMINGS = {
    r"^model\.vision_tower\.vision_tower\.vision_model\.": "model.vision_tower.",
    r"^model\.mm_projector\.(weight|bias)$": r"model.multi_modal_projector.layers.0.\1",
    r"^model\.mm_projector\.(\d+)\.": r"model.multi_modal_projector.layers.\1.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
BACKWARD_RENAMINGS = {
    r"^model\.vision_tower\.(vision_model\.)?": "model.vision_tower.vision_tower.vision_model.",
    r"^model\.multi_modal_projector\.layers\.": "model.mm_projector.",
    r"^model\.language_model\.": "model.",
}
# Buffers that older releases of transformers stored. They are computed, not learned.
DERIVED_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|embeddings\.position_ids)$")

# Defaults of CohereConfig in the transformers releases that the original used (4.42 to 4.47), for
# fields that a config.json leaves out. Today's defaults differ: rope_theta is 500,000.
TEXT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "logit_scale": 0.0625,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "use_cache": True,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 255001,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_qk_norm": False,
}
TEXT_FLOATS = ("logit_scale", "initializer_range", "layer_norm_eps", "attention_dropout")
DEFAULT_ROPE_THETA = 10000.0

# mm_* fields that describe how the original was trained. They do not change what the model computes.
TRAINING_ONLY = {"mm_projector_lr", "mm_vision_tower_lr", "mm_hidden_size", "mm_vision_tower"}
# Values of mm_vision_select_feature -> Maya's vision_feature_select_strategy.
FEATURE_STRATEGIES = {"patch": "default", "cls_patch": "full"}


def rename(key: str, table: dict[str, str]) -> str:
    """Return a tensor's name in the other layout; a name that matches no pattern is unchanged."""
    for pattern, replacement in table.items():
        renamed, hits = re.subn(pattern, replacement, key, count=1)
        if hits:
            return renamed
    return key


def check_model_type(raw: dict, where: str) -> None:
    """Raise ValueError unless the config is one of `llava_cohere`."""
    if raw.get("model_type") != MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type: expected {MODEL_TYPE!r}, found {raw.get('model_type')!r}"
        )


def _unknown(where: str, field: str, found: object, expected: str) -> ValueError:
    return ValueError(f"{where}: {field}: expected {expected}, found {found!r}")


def projector_layers(raw: dict, where: str) -> int:
    """Return the number of linear layers that `mm_projector_type` names."""
    kind = raw.get("mm_projector_type", "linear")
    match = re.fullmatch(r"mlp([1-9]\d*)x_gelu", str(kind))
    if kind != "linear" and not match:
        raise _unknown(where, "mm_projector_type", kind, "'linear' or 'mlp<N>x_gelu'")
    return int(match.group(1)) if match else 1


def check_mm_fields(raw: dict, where: str) -> None:
    """Raise ValueError for the first field whose value asks for something that Maya does not support."""
    projector_layers(raw, where)
    off = (None, False)
    layer, aspect = raw.get("mm_vision_select_layer", -2), raw.get("image_aspect_ratio")
    feature = raw.get("mm_vision_select_feature", "patch")
    merge = raw.get("mm_patch_merge_type", "flat")
    no_tokens = "false (tokens around the image are not supported)"
    readable = {  # field -> (whether its value is supported, the supported values)
        "mm_vision_tower": (isinstance(raw.get("mm_vision_tower"), str), "a repository or folder"),
        "mm_vision_select_layer": (type(layer) is int, "an integer"),
        "mm_vision_select_feature": (
            feature in [*FEATURE_STRATEGIES],
            f"one of {sorted(FEATURE_STRATEGIES)}",
        ),
        "mm_patch_merge_type": (merge == "flat", "one of ['flat']"),
        "image_aspect_ratio": (
            isinstance(aspect, str | None) and aspect in IMAGE_ASPECTS,
            "'pad', 'square' or null",
        ),
        "mm_use_im_start_end": (raw.get("mm_use_im_start_end") in off, no_tokens),
        "mm_use_im_patch_token": (raw.get("mm_use_im_patch_token") in off, no_tokens),
        "use_mm_proj": (raw.get("use_mm_proj", True) is True, "true"),
        "s2": (raw.get("s2") in off, "false (multi-scale towers are not supported)"),
    }
    for field, (is_readable, expected) in readable.items():
        if not is_readable:
            raise _unknown(where, field, raw.get(field), expected)
    known = TRAINING_ONLY | {"mm_projector_type", *(f for f in readable if f.startswith("mm_"))}
    for field in sorted(raw):
        if field.startswith("mm_") and field not in known and raw[field] not in off:
            raise _unknown(
                where, field, raw[field], f"no such field; known are {', '.join(sorted(known))}"
            )


def text_config(raw: dict, where: str) -> dict[str, Any]:
    """Return the decoder's fields of the original's config as today's CohereConfig takes them.

    Every field has a value: a field that `raw` leaves out takes the default of the original's releases.
    """
    text: dict[str, Any] = {"model_type": "cohere"}
    for field, default in TEXT_DEFAULTS.items():
        value = raw.get(field, default)
        if field in TEXT_FLOATS and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        checked = default is not None and value is not None and field != "eos_token_id"
        if checked and type(value) is not type(default):
            raise _unknown(where, field, value, f"a {type(default).__name__}")
        text[field] = value
    if text["num_key_value_heads"] is None:
        text["num_key_value_heads"] = text["num_attention_heads"]
    theta = raw.get("rope_theta", DEFAULT_ROPE_THETA)
    if not isinstance(theta, int | float) or isinstance(theta, bool) or theta <= 0:
        raise _unknown(where, "rope_theta", theta, "a positive number")
    rope = dict(raw.get("rope_scaling") or {})
    rope_type = rope.pop("type", None)
    rope.setdefault("rope_type", rope_type or "default")
    text["rope_parameters"] = {**rope, "rope_theta": float(theta)}
    return text


def spare_row(files: dict[str, Path], vocab_size: int, where: str) -> int:
    """Return the embedding row for `<image>`: the tokenizer's id of it, else the first id after all tokens.

    Args:
        files: paths of the existing ones of `tokenizer.json` and `tokenizer_config.json`.
        vocab_size: number of embedding rows.
        where: folder or repository, for errors.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ValueError: there is no spare row.
    """
    ids: dict[str, int] = {}
    if "tokenizer.json" in files:
        tokenizer = read_json(files["tokenizer.json"])
        vocab = tokenizer.get("model", {}).get("vocab")
        if not isinstance(vocab, dict):
            raise ValueError(
                f"{files['tokenizer.json']}: model.vocab: expected an object, found {type(vocab).__name__}"
            )
        ids.update(vocab)
        ids.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])})
    if "tokenizer_config.json" in files:
        added = read_json(files["tokenizer_config.json"]).get("added_tokens_decoder", {})
        ids.update({token["content"]: int(index) for index, token in added.items()})
    if not ids:
        raise FileNotFoundError(
            f"{where}: expected tokenizer.json, to find a spare row for {IMAGE_TOKEN}, found none"
        )
    row = ids.get(IMAGE_TOKEN, max(ids.values()) + 1)
    if row >= vocab_size:
        raise ValueError(
            f"{where}: no spare row for {IMAGE_TOKEN}: expected at least {row + 1} embedding rows (vocab_size), "
            f"found {vocab_size}, all taken by tokens: the converter does not resize embeddings"
        )
    return row


def tokenizer_files(
    location: str | os.PathLike, hub_kwargs: dict[str, Any] | None = None
) -> dict[str, Path]:
    """Return name -> path of the tokenizer's JSON files that a folder or repository has."""
    names = ("tokenizer.json", "tokenizer_config.json")
    paths = {name: find_file(location, name, quiet=True, **(hub_kwargs or {})) for name in names}
    return {name: path for name, path in paths.items() if path is not None}


def to_maya(
    raw: dict,
    where: str,
    *,
    vision_config: dict[str, Any],
    image_token_id: int,
    text: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Translate the original's config to the dict of a `MayaConfig`.

    Args:
        raw: the original's config.json.
        where: its path, for errors.
        vision_config: the vision tower's config, which the original's config does not hold.
        image_token_id: the embedding row for `<image>`, which it does not hold either.
        text: the decoder's config, for a projector whose decoder is in another folder.
    """
    check_model_type(raw, where)
    check_mm_fields(raw, where)
    text = text or text_config(raw, where)
    translated: dict[str, Any] = {
        "model_type": MayaConfig.model_type,
        "architectures": ["MayaForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision_config,
        "image_token_id": image_token_id,
        "projector_num_layers": projector_layers(raw, where),
        "projector_hidden_act": "gelu",
        "vision_feature_layer": raw.get("mm_vision_select_layer", -2),
        "vision_feature_select_strategy": FEATURE_STRATEGIES[
            raw.get("mm_vision_select_feature", "patch")
        ],
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
    if dtype := raw.get("dtype", raw.get("torch_dtype")):
        translated["dtype"] = dtype
    return translated


def to_llava_cohere(
    config: MayaConfig, *, vision_tower: str, image_aspect: str, original: dict | None = None
) -> dict[str, Any]:
    """Translate a Maya's config to the original's config.json.

    Args:
        config: of the Maya.
        vision_tower: the name to write as `mm_vision_tower`.
        image_aspect: "pad" or "square".
        original: the config that the model was converted from, or None. Its spelling is kept.

    Raises:
        ValueError: the original's code cannot express the model.
    """
    text: Any = config.text_config
    vision: Any = config.vision_config
    for field, found, expected in (
        ("text_config.model_type", text.model_type, "cohere"),
        ("vision_config.model_type", vision.model_type, "siglip_vision_model"),
        ("projector_kind", config.projector_kind, "mlp"),
        ("projector_hidden_act", config.projector_hidden_act, "gelu"),
    ):
        if found != expected:
            raise ValueError(
                f"config.json: {field}: expected {expected!r} for {MODEL_TYPE}, found {found!r}"
            )
    if image_aspect not in ("pad", "square"):
        raise ValueError(
            f"image_aspect: expected 'pad' or 'square' for {MODEL_TYPE}, found {image_aspect!r}"
        )
    rope = dict(text.rope_parameters)
    theta = rope.pop("rope_theta")
    kind = rope.pop("rope_type", "default")
    written: dict[str, Any] = {
        "architectures": ["LlavaCohereForCausalLM"],
        "model_type": MODEL_TYPE,
        **{field: getattr(text, field) for field in TEXT_DEFAULTS},
        "rope_theta": theta,
        "rope_scaling": None if kind == "default" else {"rope_type": kind, **rope},
        "mm_hidden_size": vision.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": f"mlp{config.projector_num_layers}x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": {v: k for k, v in FEATURE_STRATEGIES.items()}[
            config.vision_feature_select_strategy
        ],
        "mm_vision_select_layer": config.vision_feature_layer,
        "mm_vision_tower": vision_tower,
        "use_mm_proj": True,
        "image_aspect_ratio": image_aspect,
        "tokenizer_padding_side": "right",
    }
    if config.dtype is not None:
        written["torch_dtype"] = str(config.dtype).removeprefix("torch.")
    if original is not None:
        written = _keep_spelling(original, written)
    return written


def _keep_spelling(original: dict, written: dict[str, Any]) -> dict[str, Any]:
    """Return `original` with the values of `written` where the two differ; absent defaults stay absent."""
    meant = {**TEXT_DEFAULTS, "rope_theta": DEFAULT_ROPE_THETA, "rope_scaling": None, **original}
    meant["image_aspect_ratio"] = IMAGE_ASPECTS.get(original.get("image_aspect_ratio"))
    if meant.get("mm_projector_type") == "linear":
        meant["mm_projector_type"] = "mlp1x_gelu"
    if meant["num_key_value_heads"] is None:
        meant["num_key_value_heads"] = written["num_attention_heads"]
    if original.get("dtype") == written.get("torch_dtype"):
        meant["torch_dtype"] = original.get("dtype")
    # The original's values of these fields are always kept.
    free = {"architectures", "tokenizer_padding_side"} & set(original)
    return original | {
        field: value
        for field, value in written.items()
        if field not in free and (field not in meant or meant[field] != value)
    }
