"""Configuration of Maya: a vision tower, a projector and a decoder."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec

# Outputs of these towers that come before the first patch: the class token of CLIP. They are
# also the towers whose unused last layers Maya knows how to leave out.
CLASS_TOKENS = {"siglip_vision_model": 0, "siglip2_vision_model": 0, "clip_vision_model": 1}

# Decoders with one of these change their logits in a way Maya's head does not reproduce.
FOREIGN_LOGIT_RULES = ("final_logit_softcapping", "logits_scaling", "lm_head_multiplier")

# Every Auto class a saved Maya answers to. `save_pretrained` writes only the one it saves from,
# serving engines build the headless model through AutoModel.
AUTO_MAP = {
    "AutoConfig": "configuration_maya.MayaConfig",
    "AutoModel": "modeling_maya.MayaModel",
    "AutoModelForImageTextToText": "modeling_maya.MayaForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_maya.MayaForConditionalGeneration",
}


@strict
class MayaConfig(PreTrainedConfig):
    r"""
    vision_config (`dict` or `PreTrainedConfig`, *optional*):
        The vision tower, always described whole, also where only part of it is kept. Default: SigLIP.
    text_config (`dict` or `PreTrainedConfig`, *optional*):
        The decoder. Default: Cohere. A `logit_scale` in it is applied to Maya's logits.
    image_token_id (`int`, defaults to 255029):
        Id of the placeholder that image features replace; the default is Aya-23's first spare row.
    image_seq_length (`int`, *optional*):
        Placeholders per image. Derived from `vision_config` and `vision_feature_select_strategy`;
        a value that contradicts them is an error.
    projector_num_layers (`int`, defaults to 2):
        Linear layers of the projector, with an activation between them.
    projector_hidden_act (`str`, defaults to `"gelu"`):
        That activation; `"gelu"` is the exact one (erf), not the tanh approximation.
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

    Raises: `StrictDataclassError` naming the field, what was found and what was expected.
    """

    model_type = "maya"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="cohere"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 255029
    image_seq_length: int | None = None
    projector_num_layers: int = 2
    projector_hidden_act: str = "gelu"
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["full", "default"] = "full"
    vision_keep_unused_weights: bool = False
    tie_word_embeddings: bool | None = None

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        # A config read from the Hub carries entries that point back to where it came from.
        self.auto_map = dict(AUTO_MAP)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.text_config.tie_word_embeddings = self.tie_word_embeddings
        if self.image_seq_length is None:
            self.image_seq_length = self.expected_image_seq_length()
            if self.image_seq_length is None:
                raise ValueError(
                    f"image_seq_length cannot be derived for vision_config.model_type "
                    f"{self.vision_config.model_type!r}: give it, or use one of {sorted(CLASS_TOKENS)}."
                )

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

    def expected_image_seq_length(self) -> int | None:
        """Features per image that follow from the tower and the strategy, None for a tower not known here."""
        vision = self.vision_config
        if vision.model_type not in CLASS_TOKENS:
            return None
        (height, width), patch = self.vision_image_size, vision.patch_size
        patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
        dropped = 1 if self.vision_feature_select_strategy == "default" else 0
        patches = (height // patch_height) * (width // patch_width)
        return patches + CLASS_TOKENS[vision.model_type] - dropped

    def validate_image_seq_length(self):
        """Refuse a length that the tower and the strategy contradict."""
        expected = self.expected_image_seq_length()
        if expected is not None and self.image_seq_length != expected:
            raise ValueError(
                f"image_seq_length is {self.image_seq_length}, but vision_config "
                f"({self.vision_config.model_type}) with vision_feature_select_strategy="
                f"{self.vision_feature_select_strategy!r} gives {expected}: leave it out to have it derived."
            )

    def validate_image_token_id(self):
        """Refuse a placeholder without a row in the decoder's embedding matrix."""
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id is {self.image_token_id}, but text_config.vocab_size is "
                f"{self.text_config.vocab_size}: use the id of an existing or spare row."
            )

    def validate_vision_feature_layer(self):
        """Refuse a layer the tower does not have, and its embeddings."""
        layers = self.vision_config.num_hidden_layers
        if not -layers <= self.vision_feature_layer <= layers or self.vision_feature_layer == 0:
            raise ValueError(
                f"vision_feature_layer is {self.vision_feature_layer}, but the tower has {layers} layers: "
                f"use 1 to {layers}, or -{layers} to -1."
            )

    def validate_projector(self):
        """Refuse a projector that cannot be built."""
        if self.projector_num_layers < 1:
            raise ValueError(
                f"projector_num_layers is {self.projector_num_layers}: it must be at least 1."
            )
        if self.projector_hidden_act not in ACT2FN:
            raise ValueError(
                f"projector_hidden_act is {self.projector_hidden_act!r}: use one of {sorted(ACT2FN)}."
            )

    def validate_decoder_head(self):
        """Refuse a decoder whose own head does more to its logits than scale them by `logit_scale`."""
        for name in FOREIGN_LOGIT_RULES:
            if getattr(self.text_config, name, None) is not None:
                raise ValueError(
                    f"text_config ({self.text_config.model_type}) has {name}={getattr(self.text_config, name)}, "
                    f"which Maya's head does not apply: use a decoder without it."
                )


__all__ = ["MayaConfig"]
