"""A Maya from two base models that have never met: a vision tower and a decoder."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
)

from modeling_maya import (
    MayaConfig,
    MayaForConditionalGeneration,
    MayaProjector,
    drop_unused_vision_weights,
)
from processing_maya import MayaImageProcessor, MayaProcessor, add_image_token, load_chat_template


def base_configs(
    vision_tower: str, language_model: str, trust_remote_code: bool = False
) -> tuple[Any, Any]:
    """The configs of the two bases; of a two-tower model (SigLIP, CLIP), the vision tower's.

    Raises FileNotFoundError or ValueError when a folder is missing or no model.
    """
    vision = _config(vision_tower, "vision_tower", trust_remote_code)
    return getattr(vision, "vision_config", vision), _config(
        language_model, "language_model", trust_remote_code
    )


def build_maya(
    vision_tower: str,
    language_model: str,
    *,
    projector_num_layers: int = 2,
    chat_template: str = "maya",
    image_aspect: str = "pad",
    vision_feature_layer: int = -2,
    vision_feature_select_strategy: str = "full",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> tuple[MayaForConditionalGeneration, MayaProcessor]:
    """Put two bases together with a new projector, drawn from torch's random state.

    `<image>` takes the tokenizer's own token of that name or a spare row of the embeddings, which
    are never resized. The vision tower's layers behind `vision_feature_layer` are left out.

    Raises:
        FileNotFoundError, ValueError: naming the base that is missing, is no model of its kind, or
            has no row left for `<image>`.
    """
    vision_config, text_config = base_configs(vision_tower, language_model, trust_remote_code)
    loading = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    tower = _load(AutoModel, vision_tower, "vision_tower", **loading)
    # A two-tower model brings its text tower along; only the other is wanted.
    tower = getattr(tower, "vision_model", tower) if hasattr(tower, "text_model") else tower
    decoder = _load(AutoModelForCausalLM, language_model, "language_model", **loading)
    tokenizer = _load(
        AutoTokenizer, language_model, "language_model", trust_remote_code=trust_remote_code
    )
    rows = decoder.get_input_embeddings().num_embeddings
    try:
        image_token = add_image_token(tokenizer, rows)
    except ValueError as error:
        raise ValueError(f"language_model {language_model}: {error}") from None
    if image_token >= rows:
        raise ValueError(
            f"language_model {language_model}: <image> has id {image_token}, but the decoder has "
            f"{rows} embedding rows; use a decoder with a spare row"
        )

    config = MayaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=image_token,
        projector_num_layers=projector_num_layers,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=vision_feature_select_strategy,
    )
    config.dtype = dtype
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
    model.model.vision_tower = drop_unused_vision_weights(tower, config)
    model.model.language_model = decoder.base_model
    model.lm_head = decoder.get_output_embeddings()
    model.model.multi_modal_projector = MayaProjector(config).to(dtype)
    model.tie_weights()
    model.generation_config = decoder.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id

    processor = MayaProcessor(
        image_processor=_image_processor(vision_tower, vision_config, image_aspect),
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=load_chat_template(chat_template),
    )
    return model, processor


def _image_processor(folder: str, vision_config: Any, image_aspect: str) -> MayaImageProcessor:
    """Size, mean and std as the tower was trained with; the rest is Maya's."""
    options: dict[str, Any] = {}
    try:
        known = AutoImageProcessor.from_pretrained(folder, backend="pil").to_dict()
    except (OSError, ValueError, ImportError):
        # A tower may come without one: then its config's size and SigLIP's normalisation.
        known = {}
    for name in ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor"):
        if known.get(name) is not None:
            options[name] = known[name]
    side = vision_config.image_size
    return MayaImageProcessor(
        size={"height": side, "width": side}, image_aspect=image_aspect, **options
    )


def _config(folder: str, field: str, trust_remote_code: bool) -> Any:
    return _load(AutoConfig, folder, field, trust_remote_code=trust_remote_code)


def _load(auto: Any, folder: str, field: str, **kwargs: Any) -> Any:
    if folder.startswith((".", "/")) and not Path(folder).exists():
        raise FileNotFoundError(f"model.{field}: no folder {folder}")
    try:
        return auto.from_pretrained(folder, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model.{field}: {folder} is not a folder or Hub repository that "
            f"{auto.__name__} can load: {reason}"
        ) from None
