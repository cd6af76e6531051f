"""Build a Maya from two base models: a vision tower and a decoder."""

import re
from collections.abc import Iterable
from contextlib import suppress
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
    build_projector,
    drop_unused_vision_weights,
)
from processing_maya import MayaImageProcessor, MayaProcessor, add_image_token

from ..common.models import (
    Model,
    check_generation,
    check_pictures,
    check_report,
    check_special_tokens,
    check_tied,
    check_weights,
    find_model,
    load_network,
    opening,
    read_config,
)
from ..common.reading import read_json_mapping
from ..common.telling import one_line
from .checkpoint import MAYA_TYPES, under_key
from .templates import IMAGE, find_template, set_ends

# Models with a vision and a text tower (SigLIP, CLIP), of which Maya uses the vision tower.
TWO_TOWERS = ("siglip", "siglip2", "clip")
# Tensors in files of bases that Maya does not use: buffers that older releases of transformers stored,
# and the text tower's tensors.
COMPUTED = r"(^|\.)(rotary_emb\.inv_freq|position_ids|attn\.(masked_)?bias)$"
TEXT_TOWER = r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias)"
# Files that a tokenizer can be built from.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
# Names of tokens that no text contains; the placeholder of images may replace one of them.
SPARE_TOKEN = re.compile(
    r"reserved|unused|image_?pad|vision_?pad|<\|?(image|img|extra)", re.IGNORECASE
)
PADDING = ("<|finetune_right_pad_id|>", "<pad>", "<PAD>", "<|pad|>", "[PAD]", "<|endoftext|>")


def base_config(name: str, field: str, trust_remote_code: bool = False) -> Any:
    """Return the config of one base; for a two-tower model (SigLIP, CLIP), the vision tower's.

    Raises:
        FileNotFoundError, OSError, ValueError: if the base is missing or has the wrong kind.
    """
    return _open_config(find_base(name, field), field, trust_remote_code)


def build_maya(
    vision_tower: str,
    language_model: str,
    *,
    projector_kind: str = "mlp",
    projector_num_layers: int = 2,
    image_seq_length: int | None = None,
    cross_attention_interval: int = 4,
    chat_template: str = "maya",
    further_templates: Iterable[str] = (),
    image_token: str = IMAGE,
    image_aspect: str = "pad",
    vision_feature_layer: int = -2,
    vision_feature_select_strategy: str = "full",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
) -> tuple[MayaForConditionalGeneration, MayaProcessor]:
    """Join two bases by a new projector, which is drawn from torch's random state.

    The placeholder of images is the tokenizer's own token of that name, or a spare row of the embeddings,
    which are never resized. Vision layers after `vision_feature_layer` are dropped. `generate` stops at
    the end tokens of all templates and at those of the decoder.

    Args:
        vision_tower, language_model: folders or repositories, also as `user/name@revision`.
        projector_kind, projector_num_layers, image_seq_length, cross_attention_interval: see `MayaConfig`.
        chat_template: see `templates.find_template`.
        further_templates: other templates that the model will be trained with.
        image_token: the tokenizer's token that stands for one patch of an image.

    Raises:
        FileNotFoundError, OSError, ValueError: naming the base, if it is missing, has the wrong kind,
            lacks weights or a tokenizer, or has no free token for the placeholder; also if a chat
            template does not fit the decoder.
    """
    # Configs and tokenizer.
    vision = find_base(vision_tower, "vision_tower")
    language = find_base(language_model, "language_model")
    vision_config = _open_config(vision, "vision_tower", trust_remote_code)
    text_config = _open_config(language, "language_model", trust_remote_code)
    rows = text_config.vocab_size
    with under_key("model.language_model"):
        tokenizer = open_tokenizer(language, rows, trust_remote_code)
        image_token_id = add_placeholder(tokenizer, image_token, rows)
        _add_padding(tokenizer, text_config)
    # Chat templates and their end tokens.
    template = find_template(chat_template, tokenizer, image_token)
    ends = list(template.ends)
    for name in further_templates:
        ends += find_template(name, tokenizer, image_token).ends
    # Model.
    config = MayaConfig(
        vision_config=vision_config,
        text_config=text_config,
        image_token_id=image_token_id,
        projector_kind=projector_kind,
        projector_num_layers=projector_num_layers,
        image_seq_length=image_seq_length,
        cross_attention_interval=cross_attention_interval,
        vision_feature_layer=vision_feature_layer,
        vision_feature_select_strategy=vision_feature_select_strategy,
    )
    config.dtype = dtype
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
    loading = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    with under_key("model.vision_tower"):
        model.model.vision_tower = _load_tower(vision, config, loading)
    with under_key("model.language_model"):
        decoder = _load_decoder(language, rows, loading)
    model.model.language_model = decoder.base_model
    model.lm_head = decoder.get_output_embeddings()
    model.model.multi_modal_projector = build_projector(config).to(dtype)
    model.tie_weights()
    model.generation_config = decoder.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    set_ends(model.generation_config, ends)

    # Processor.
    assert config.image_seq_length is not None  # MayaConfig derives it
    with under_key("model.vision_tower"):
        image_processor = _image_processor(vision, config, image_aspect)
    processor = MayaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_length=config.image_seq_length,
        chat_template=template.text,
        image_token=image_token,
    )
    return model, processor


# ------------------------------------------------------------------------------ finding and checking bases


def find_base(name: str, field: str) -> Model:
    """Find the base that a key of the recipe names. Raises as `base_config`."""
    with under_key(f"model.{field}"):
        found = find_model(name)
        if found.is_adapter:
            raise ValueError(
                f"{found}: expected a full model, found an adapter: merge it into its base first "
                "(maya merge), and give the result"
            )
        return found


def _open_config(model: Model, field: str, trust_remote_code: bool) -> Any:
    """Open the config of a base (the vision tower's, of a two-tower model) and check its kind."""
    with under_key(f"model.{field}"):
        kind = one_line(str(read_config(model).get("model_type")), 60)
        if kind in MAYA_TYPES:
            raise ValueError(
                f"{model} is itself a Maya ({kind}): give it as model.checkpoint, without bases"
            )
        with opening(model):
            config = AutoConfig.from_pretrained(
                model.name, trust_remote_code=trust_remote_code, **model.options
            )
            # Building on the meta device finds config values that no model can have.
            with torch.device("meta"):
                AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(
                f"{model}: expected unquantized weights, found quantized ones: give the original model; "
                "adapter.quantize quantizes it while loading"
            )
        return _vision(model, config) if field == "vision_tower" else _text(model, config)


def _vision(model: Model, config: Any) -> Any:
    if config.model_type in TWO_TOWERS:
        return config.vision_config
    if hasattr(config, "vision_config") or not hasattr(config, "patch_size"):
        raise ValueError(
            f"{model}: expected a vision tower, such as a SigLIP or CLIP, found a model of type {config.model_type}"
        )
    return config


def _text(model: Model, config: Any) -> Any:
    parts = [name for name in ("vision_config", "audio_config") if hasattr(config, name)]
    if parts or not isinstance(getattr(config, "vocab_size", None), int):
        raise ValueError(
            f"{model}: expected a language model, which reads only text, found a model of type {config.model_type}"
            f"{f' with a {parts[0]}' if parts else ''}"
        )
    return config


# ------------------------------------------------------------------------------ weights


def _load_tower(model: Model, config: MayaConfig, loading: dict[str, Any]) -> Any:
    """Load the vision tower up to the layer in use; all its tensors must be in the files."""
    check_weights(model)
    tower, report = load_network(AutoModel, model, **loading)
    inside = ""
    if hasattr(tower, "text_model"):
        # A two-tower model: keep only the vision tower.
        tower, inside = tower.vision_model, "vision_model."
    tower = drop_unused_vision_weights(tower, config)
    used = {inside + name for name in tower.state_dict()}
    check_report(model, report, used.__contains__, f"{COMPUTED}|{TEXT_TOWER}")
    return tower


def _load_decoder(model: Model, rows: int, loading: dict[str, Any]) -> Any:
    """Load the language model; all its tensors must be in the files."""
    check_weights(model)
    check_generation(model, rows)
    decoder, report = load_network(AutoModelForCausalLM, model, **loading)
    check_report(model, report, others=COMPUTED)
    check_tied(model, decoder)
    return decoder


# ------------------------------------------------------------------------------ tokenizer


def open_tokenizer(model: Model, rows: int, trust_remote_code: bool = False) -> Any:
    """Open the tokenizer of a decoder with `rows` embeddings.

    Raises:
        ValueError: if the model has no tokenizer files (transformers would invent an empty tokenizer), or
            the tokenizer is slow, knows no text, or has more tokens than the decoder has embeddings.
    """
    with opening(model):
        tokenizer = AutoTokenizer.from_pretrained(
            model.name, trust_remote_code=trust_remote_code, **model.options
        )
        tokens = tokenizer.encode("A word or two.", add_special_tokens=False)
    names = {*TOKENIZER_FILES, *tokenizer.vocab_files_names.values()} - {"tokenizer_config.json"}
    if not any(model.file(name) is not None for name in sorted(names)):
        raise ValueError(
            f"{model}: expected a tokenizer, {' or '.join(TOKENIZER_FILES[:2])} beside its weights, found none"
        )
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ValueError(
            f"{model}: expected a fast tokenizer, saved as tokenizer.json, found {type(tokenizer).__name__}"
        )
    if set(tokens) <= {tokenizer.unk_token_id}:
        raise ValueError(f"{model}: its tokenizer encodes no text: download its files again")
    highest = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values())
    if highest >= rows:
        raise ValueError(
            f"{model}: its tokenizer has token ids up to {highest}, but the decoder has {rows} embeddings: they "
            "do not belong together"
        )
    check_special_tokens(model, tokenizer, rows)
    return tokenizer


def add_placeholder(tokenizer: Any, token: str, rows: int) -> int:
    """Add the placeholder of images to the tokenizer unless it is there, and return its id."""
    if not token or not token.isprintable() or set(token) & set(" \"'\\{}"):
        raise ValueError(f"image_token: expected a token such as {IMAGE}, found {token!r}")
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    if token in vocabulary and token not in added and not token.startswith(("<", "[")):
        raise ValueError(
            f"image_token: expected a token that no text contains, found {token!r}, which is ordinary text to "
            "the tokenizer: name another token"
        )
    if token not in vocabulary and len(tokenizer) >= rows:
        spare = [name for name in added if SPARE_TOKEN.search(name) and added[name] < rows]
        spare = sorted(spare, key=lambda name: added[name])[:5]
        choice = (
            f"such as {', '.join(spare)}" if spare else "although none is named reserved or unused"
        )
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the decoder {rows} embeddings, which Maya never "
            f"resizes, so no row is free for {token}: set model.image_token to a token that your texts do "
            f"not need, {choice}"
        )
    place = add_image_token(tokenizer, rows, token)
    if place >= rows:
        raise ValueError(
            f"{token} has id {place}, but the decoder has {rows} embeddings: set model.image_token to "
            "another token, or use a decoder with a spare embedding row"
        )
    return place


def _add_padding(tokenizer: Any, config: Any) -> None:
    """Set a missing padding token to the config's, a token named like one, or the end token.

    A padding token without an embedding row, as in the first LLaMAs, counts as missing.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id < config.vocab_size:
        return
    vocabulary, known = tokenizer.get_vocab(), getattr(config, "pad_token_id", None)
    rows = config.vocab_size
    names = [name for name in PADDING if vocabulary.get(name, rows) < rows]
    if isinstance(known, int) and 0 <= known < len(tokenizer):
        names.insert(0, tokenizer.convert_ids_to_tokens(known))
    if tokenizer.eos_token is not None:
        names.append(tokenizer.eos_token)
    if not names:
        raise ValueError(
            "its tokenizer: expected a padding token or an end token, found neither: set one of them"
        )
    tokenizer.pad_token = names[0]


# ------------------------------------------------------------------------------ images


def _image_processor(model: Model, config: MayaConfig, image_aspect: str) -> MayaImageProcessor:
    """Build the image processor: size, mean and std of the tower's training, everything else Maya's.

    Without a preprocessor_config.json, the size is that of the tower's config, and the normalization
    SigLIP's.
    """
    options: dict[str, Any] = {}
    file = model.file("preprocessor_config.json")
    if file is not None:
        known = read_json_mapping(file)
        with (
            opening(file),
            suppress(ImportError),
        ):  # older releases of transformers may need torchvision
            known = AutoImageProcessor.from_pretrained(
                model.name, backend="pil", **model.options
            ).to_dict()
        for name in ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor"):
            if known.get(name) is not None:
                options[name] = known[name]
    height, width = config.vision_image_size
    with opening(file):
        made = MayaImageProcessor(
            size={"height": height, "width": width}, image_aspect=image_aspect, **options
        )
    check_pictures(model, made)
    return made
