"""Configuration of Maya: a vision tower, a projector and a decoder."""

import math
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN

# Towers whose unused last layers Maya knows how to leave out, with the number of outputs that come
# before the first patch: the class token of CLIP.
CLASS_TOKENS = {"siglip_vision_model": 0, "siglip2_vision_model": 0, "clip_vision_model": 1}

# Decoders with one of these change their logits in a way that Maya's head does not reproduce.
FOREIGN_LOGIT_RULES = ("final_logit_softcapping", "logits_scaling", "lm_head_multiplier")

# Every Auto class that loads a saved Maya. `save_pretrained` would write only the class it saves
# from; serving engines build the headless model through AutoModel.
AUTO_MAP = {
    "AutoConfig": "configuration_maya.MayaConfig",
    "AutoModel": "modeling_maya.MayaModel",
    "AutoModelForImageTextToText": "modeling_maya.MayaForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_maya.MayaForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_maya.MayaForConditionalGeneration",
}

# The type of each of Maya's own fields, as `MayaConfig.validate` checks them.
FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "image_token_id": (int,),
    "image_seq_length": (int,),
    "projector_kind": (str,),
    "projector_num_layers": (int,),
    "projector_hidden_act": (str,),
    "cross_attention_interval": (int,),
    "vision_feature_layer": (int,),
    "vision_feature_select_strategy": (str,),
    "vision_keep_unused_weights": (bool,),
    "tie_word_embeddings": (bool,),
}
STRATEGIES = ("full", "default")
PROJECTOR_KINDS = ("mlp", "pixel_shuffle", "q_former", "gated_cross_attention")


def build_sub_config(given: Any, name: str, default_model_type: str) -> PreTrainedConfig:
    """Return `given`, a config or a dict of its fields (None: no fields), as a config.

    A dict without `model_type` describes a `default_model_type`. Raises ValueError, naming the field
    `name`, for another type and for a model type that transformers does not know.
    """
    if isinstance(given, PreTrainedConfig):
        return given
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"{name}: expected a dict or a config, found {type(given).__name__}")
    fields = dict(given or {})
    model_type = fields.pop("model_type", None) or default_model_type
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise ValueError(f"{name} (model_type {model_type!r}): {error}") from error


class MayaConfig(PreTrainedConfig):
    r"""
    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        The vision tower, always described whole, also where only part of it is kept. Default: SigLIP.
    text_config (`dict` or `PreTrainedConfig`, *optional*):
        The decoder. Default: Cohere. A `logit_scale` in it is applied to Maya's logits.
    image_token_id (`int`, defaults to 255029):
        Id of the placeholder that image features replace; the default is Aya-23's first spare row.
    image_seq_length (`int`, *optional*):
        Placeholders per image. With the projector `"mlp"` it follows from `vision_config` and
        `vision_feature_select_strategy`, and a value that contradicts them is an error. With
        `"pixel_shuffle"` it is the number of patches over a square number (default: over 4), with
        `"q_former"` the number of queries (default: 32), and with `"gated_cross_attention"` 1.
    projector_kind (`"mlp"`, `"pixel_shuffle"`, `"q_former"` or `"gated_cross_attention"`, defaults to `"mlp"`):
        What leads from the tower's features to the decoder: linear layers for each feature alone, the
        same after neighbouring patches are joined, queries that attend to all features, or, after linear
        layers, blocks between the decoder's layers whose tokens attend to all features.
    projector_num_layers (`int`, defaults to 2):
        Linear layers of the projector, with an activation between them; layers of attention of a Q-Former.
    projector_hidden_act (`str`, defaults to `"gelu"`):
        That activation; `"gelu"` is the exact one (erf), not the tanh approximation.
    cross_attention_interval (`int`, defaults to 4):
        With `"gated_cross_attention"`, the decoder's layers from one block to the next; 1: before every layer.
    vision_feature_layer (`int`, defaults to -2):
        Which of the tower's `hidden_states` the projector reads: 0 would be the embeddings (refused),
        1 the first layer's output, -1 the last layer's. All are taken before the tower's last layer norm.
    vision_feature_select_strategy (`"full"` or `"default"`, defaults to `"full"`):
        `"default"` drops the first output of the tower: the class token of CLIP, but a real patch of
        SigLIP, as the original Maya did.
    vision_keep_unused_weights (`bool`, defaults to `False`):
        Keep the tower's layers after `vision_feature_layer`, its last layer norm and pooling head. They
        change no output; `False` neither computes, loads nor saves them.
    tie_word_embeddings (`bool`, *optional*):
        Whether the head shares the decoder's embedding matrix. Default: as `text_config` says. A given
        value is copied into `text_config`, because serving engines read either place.

    Raises ValueError naming the field, what was expected and what was found.
    """

    model_type = "maya"
    sub_configs = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict | PreTrainedConfig | None = None,
        text_config: dict | PreTrainedConfig | None = None,
        image_token_id: int = 255029,
        image_seq_length: int | None = None,
        projector_kind: str = "mlp",
        projector_num_layers: int = 2,
        projector_hidden_act: str = "gelu",
        cross_attention_interval: int = 4,
        vision_feature_layer: int = -2,
        vision_feature_select_strategy: str = "full",
        vision_keep_unused_weights: bool = False,
        tie_word_embeddings: bool | None = None,
        **kwargs: Any,
    ):
        self.vision_config = build_sub_config(vision_config, "vision_config", "siglip_vision_model")
        self.text_config = build_sub_config(text_config, "text_config", "cohere")
        self.image_token_id = image_token_id
        self.projector_kind = projector_kind
        self.projector_num_layers = projector_num_layers
        self.projector_hidden_act = projector_hidden_act
        self.cross_attention_interval = cross_attention_interval
        self.vision_feature_layer = vision_feature_layer
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.vision_keep_unused_weights = vision_keep_unused_weights
        if tie_word_embeddings is None:
            tie_word_embeddings = getattr(self.text_config, "tie_word_embeddings", True)
        if image_seq_length is None:
            image_seq_length = self.default_image_seq_length()
            if image_seq_length is None:
                raise ValueError(
                    f"image_seq_length: cannot be derived for vision_config.model_type "
                    f"{self.vision_config.model_type!r}: give it, or use one of {sorted(CLASS_TOKENS)}"
                )
        self.image_seq_length = image_seq_length
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.tie_word_embeddings = tie_word_embeddings
        self.text_config.tie_word_embeddings = tie_word_embeddings
        # A config read from the Hub names the repository that it came from in its auto_map.
        self.auto_map = dict(AUTO_MAP)
        self.validate()

    @property
    def vision_layers_used(self) -> int:
        """How many of the tower's layers contribute to the features: `vision_feature_layer` from the front."""
        return self.vision_feature_layer % (self.vision_config.num_hidden_layers + 1)

    @property
    def vision_image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images the tower expects."""
        vision = self.vision_config
        if vision.model_type == "siglip2_vision_model":  # knows only how many patches make an image
            size = int(vision.num_patches**0.5) * vision.patch_size
        else:
            size = vision.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    @property
    def vision_grid(self) -> tuple[int, int]:
        """Rows and columns of patches of an image."""
        (height, width), patch = self.vision_image_size, self.vision_config.patch_size
        patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
        return height // patch_height, width // patch_width

    @property
    def projector_shuffle(self) -> int:
        """How many rows, and columns, of patches `"pixel_shuffle"` joins to one feature."""
        return math.isqrt(math.prod(self.vision_grid) // max(self.image_seq_length, 1))

    def tower_seq_length(self) -> int | None:
        """Features per image that the projector reads, None for a tower not known here."""
        if self.vision_config.model_type not in CLASS_TOKENS:
            return None
        dropped = 1 if self.vision_feature_select_strategy == "default" else 0
        return math.prod(self.vision_grid) + CLASS_TOKENS[self.vision_config.model_type] - dropped

    def default_image_seq_length(self) -> int | None:
        """Features per image that the projector gives, None for a tower not known here."""
        if self.projector_kind == "q_former":
            return 32
        if self.projector_kind == "gated_cross_attention":
            return 1
        length = self.tower_seq_length()
        return (
            length // 4 if length is not None and self.projector_kind == "pixel_shuffle" else length
        )

    def validate(self) -> None:
        """Refuse values that no model can be built from. Raises ValueError naming the field.

        Called when a config is made and when a model is built from it; in releases of transformers
        that validate configs, also when it is saved.
        """
        library_checks = getattr(super(), "validate", None)
        if library_checks is not None:
            library_checks()
        for name, types in FIELD_TYPES.items():
            value = getattr(self, name)
            # In Python True is an int; no field takes both.
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise ValueError(
                    f"{name}: expected {types[0].__name__}, found {value!r} ({type(value).__name__})"
                )
        if self.vision_feature_select_strategy not in STRATEGIES:
            raise ValueError(
                f"vision_feature_select_strategy: expected one of {', '.join(STRATEGIES)}, "
                f"found {self.vision_feature_select_strategy!r}"
            )
        if self.projector_kind not in PROJECTOR_KINDS:
            raise ValueError(
                f"projector_kind: expected one of {', '.join(PROJECTOR_KINDS)}, found {self.projector_kind!r}"
            )
        self._validate_tower()
        self._validate_image_seq_length()
        self._validate_decoder()
        if self.projector_num_layers < 1:
            raise ValueError(
                f"projector_num_layers: expected at least 1, found {self.projector_num_layers}"
            )
        if self.projector_hidden_act not in ACT2FN:
            raise ValueError(
                f"projector_hidden_act: expected one of {', '.join(sorted(ACT2FN))}, "
                f"found {self.projector_hidden_act!r}"
            )

    def _validate_tower(self) -> None:
        """Refuse a layer that the tower does not have, and a length that contradicts the tower."""
        layers = self.vision_config.num_hidden_layers
        if not -layers <= self.vision_feature_layer <= layers or self.vision_feature_layer == 0:
            raise ValueError(
                f"vision_feature_layer: expected 1 to {layers} or -{layers} to -1, as the tower has "
                f"{layers} layers, found {self.vision_feature_layer}"
            )

    def _validate_image_seq_length(self) -> None:
        """Refuse a number of features per image that the projector does not give."""
        given, length = self.image_seq_length, self.tower_seq_length()
        if self.projector_kind == "mlp":
            if length is not None and given != length:
                raise ValueError(
                    f"image_seq_length: expected {length}, which follows from vision_config "
                    f"({self.vision_config.model_type}) and vision_feature_select_strategy="
                    f"{self.vision_feature_select_strategy!r}, found {given}: leave it out to have it derived"
                )
            return
        if self.projector_kind == "gated_cross_attention":
            self._validate_cross_attention()
        if given < 1:
            raise ValueError(f"image_seq_length: expected at least 1, found {given}")
        if self.projector_kind != "pixel_shuffle":
            return
        if length is None or length != math.prod(self.vision_grid):
            raise ValueError(
                f"projector_kind: expected 'mlp' or 'q_former' for the features of vision_config "
                f"({self.vision_config.model_type}) with vision_feature_select_strategy="
                f"{self.vision_feature_select_strategy!r}, which are no whole grid of patches, found 'pixel_shuffle'"
            )
        factor = self.projector_shuffle
        if factor < 1 or given * factor**2 != length or any(n % factor for n in self.vision_grid):
            rows, columns = self.vision_grid
            possible = [
                rows * columns // n**2
                for n in range(1, rows + 1)
                if not rows % n and not columns % n
            ]
            raise ValueError(
                f"image_seq_length: expected one of {', '.join(map(str, possible))} for 'pixel_shuffle' of "
                f"{rows} x {columns} patches, found {given}"
            )

    def _validate_cross_attention(self) -> None:
        """Refuse values with which no gated block can be built."""
        text = self.text_config
        if self.image_seq_length != 1:
            raise ValueError(
                "image_seq_length: expected 1 with projector_kind 'gated_cross_attention', whose images have one "
                f"placeholder, found {self.image_seq_length}"
            )
        if self.cross_attention_interval < 1:
            raise ValueError(
                f"cross_attention_interval: expected at least 1, found {self.cross_attention_interval}"
            )
        if self.tower_seq_length() is None or text.hidden_size % text.num_attention_heads:
            raise ValueError(
                "projector_kind: expected another kind for vision_config "
                f"({self.vision_config.model_type}) and text_config.hidden_size {text.hidden_size} with "
                f"{text.num_attention_heads} heads, found 'gated_cross_attention', which needs a tower of "
                f"{', '.join(sorted(CLASS_TOKENS))} and heads of equal size"
            )

    def _validate_decoder(self) -> None:
        """Refuse a placeholder without an embedding row, and a decoder with another head than Maya's."""
        rows = self.text_config.vocab_size
        if not 0 <= self.image_token_id < rows:
            raise ValueError(
                f"image_token_id: expected 0 to {rows - 1}, as text_config.vocab_size is {rows}, "
                f"found {self.image_token_id}: use the id of an existing or spare embedding row"
            )
        for name in FOREIGN_LOGIT_RULES:
            if getattr(self.text_config, name, None) is not None:
                raise ValueError(
                    f"text_config ({self.text_config.model_type}): expected no {name}, which Maya's head "
                    f"does not apply, found {getattr(self.text_config, name)}: use another decoder"
                )

    def to_dict(self) -> dict[str, Any]:
        """As in transformers, without the places that the two parts were loaded from, a user's folders."""
        return self._without_origins(super().to_dict())

    def to_diff_dict(self) -> dict[str, Any]:
        """As `to_dict`, and as in transformers without defaults."""
        return self._without_origins(super().to_diff_dict())

    def _without_origins(self, fields: dict[str, Any]) -> dict[str, Any]:
        for name in self.sub_configs:
            if isinstance(fields.get(name), dict):
                fields[name].pop("_name_or_path", None)
        return fields


__all__ = ["MayaConfig"]
