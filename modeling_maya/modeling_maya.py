"""Maya: a vision tower's patch features, projected, take the place of image tokens before a decoder.

    pixel_values -> vision_tower -> multi_modal_projector -.
    input_ids ----------------------> embed_tokens --------+-> language_model -> lm_head * logit_scale

Shapes below: B rows, T tokens, I images of S = image_seq_length features, D decoder width, V vocabulary.
"""

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    CausalLMOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_maya import CLASS_TOKENS, MayaConfig
from .projector_maya import MayaGatedProjector, build_projector

# The name of the key-value cache in this release of transformers: `past_key_values` until 5.23,
# `cache` from 5.24 on. Decoders take it and outputs hold it under that name only.
CACHE = next(
    f.name for f in fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values")
)


@dataclass
class MayaModelOutputWithPast(BaseModelOutputWithPast):
    """Decoder output, and what the images became; both are None without images.

    image_hidden_states (I * S, D): the projected features.
    image_outputs: the output of `get_image_features`, with the tower's hidden states and attentions
    where the caller asked for them. Stock multimodal models name it so from transformers 5.24 on.
    """

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class MayaCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`loss` (), `logits` (B, T, V) already scaled, and the fields of `MayaModelOutputWithPast`."""

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


def _wants_dict(config: MayaConfig, return_dict: bool | None) -> bool:
    """Whether a forward returns a ModelOutput, not a tuple: as the caller says, else as the config does."""
    return getattr(config, "return_dict", True) is not False if return_dict is None else return_dict


def drop_unused_vision_weights(
    vision_tower: PreTrainedModel, config: MayaConfig
) -> PreTrainedModel:
    """Take from a transformers tower, in place, what comes after `config.vision_feature_layer`.

    These are the layers behind it, the last layer norm and the pooling head. A tower not listed in
    CLASS_TOKENS, or one that the config says to keep whole, is returned untouched.
    """
    if config.vision_config.model_type in CLASS_TOKENS and not config.vision_keep_unused_weights:
        vision_tower.encoder.layers = vision_tower.encoder.layers[: config.vision_layers_used]
        vision_tower.post_layernorm = nn.Identity()
        if hasattr(vision_tower, "head"):
            del vision_tower.head
            vision_tower.use_head = False
    return vision_tower


class MayaPreTrainedModel(PreTrainedModel):
    config: MayaConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs
    ):
        """As in transformers, but a checkpoint with missing or unexpected weights raises ValueError.

        A model with newly initialised parts looks like any other until it answers. With
        `output_loading_info=True` the report is returned with the model and nothing is raised; so it is
        for a `state_dict` given without a checkpoint (None).
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        if output_loading_info:
            return model, info
        if pretrained_model_name_or_path is None:
            return model
        for kind in ("missing_keys", "unexpected_keys"):
            if keys := sorted(info[kind]):
                shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
                raise ValueError(
                    f"{cls.__name__}: the checkpoint has {len(keys)} {kind.replace('_', ' ')} ({shown}): its "
                    f"weights and its config.json do not belong together, or it is not a Maya checkpoint."
                )
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers, with weights that others may read where they may read config.json.

        safetensors creates files that only their owner can read, whatever the umask says: a server
        under another user could not load the folder.
        """
        # Weights are saved under Maya's names, also those that were read under the original's.
        kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)
        config = Path(save_directory) / "config.json"
        if config.is_file():
            for weights in config.parent.glob("*.safetensors"):
                weights.chmod(config.stat().st_mode & 0o777)

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers then initialises missing weights as in a model of its own.

        From code outside the library it expects weights written in place and shared modules, and for
        their sake skips the initialisation that SigLIP does per block. Maya has neither.
        """
        return False


class MayaModel(MayaPreTrainedModel):
    """Maya without a head: what serving engines build, and what `MayaForConditionalGeneration` wraps."""

    def __init__(self, config: MayaConfig):
        super().__init__(config)
        # A config can be changed after it was made.
        config.validate()
        self.vision_tower = AutoModel.from_config(config.vision_config)
        whole = set(self.vision_tower.state_dict())
        drop_unused_vision_weights(self.vision_tower, config)
        self.multi_modal_projector = build_projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        # A checkpoint may have a head, and the tower whole, and still be right for this model.
        unused = sorted(whole - set(self.vision_tower.state_dict()))
        self._keys_to_ignore_on_load_unexpected = [
            r"^lm_head\.",
            *(rf"vision_tower\.(vision_model\.)?{re.escape(name)}$" for name in unused),
        ]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode and project images, float (I, channels, height, width).

        The two `vision_feature_*` default to the config's. Returns the tower's output, with a list of
        I projected features (S, D) as `pooler_output`; (1, features * D) of a gated projector. Raises ValueError for a layer that is not kept.
        """
        layer = self.config.vision_feature_layer
        if vision_feature_layer is not None:
            layer = vision_feature_layer
        strategy = vision_feature_select_strategy or self.config.vision_feature_select_strategy
        index = layer % (self.config.vision_config.num_hidden_layers + 1)
        # The tower's last kept layer is its output, as no norm comes after it: then the other layers'
        # outputs need not be held in memory.
        cut = isinstance(getattr(self.vision_tower, "post_layernorm", None), nn.Identity)
        last_kept = cut and len(self.vision_tower.encoder.layers) == index
        if not last_kept:
            kwargs["output_hidden_states"] = True
        # Gradient checkpointing makes even a frozen tower's embeddings require grad, and the whole
        # tower would then be recomputed in the backward pass for nothing.
        trained = pixel_values.requires_grad or any(
            parameter.requires_grad for parameter in self.vision_tower.parameters()
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            outputs = self.vision_tower(
                **self._tower_inputs(pixel_values), return_dict=True, **kwargs
            )
        if last_kept:
            features = outputs.last_hidden_state
        elif index < len(outputs.hidden_states):
            features = outputs.hidden_states[index]
        else:
            raise ValueError(
                f"vision_feature_layer: expected a layer of the vision tower that is kept, the first "
                f"{len(outputs.hidden_states) - 1}, found {layer} (layer {index}): load the model with "
                f"vision_keep_unused_weights=True in its config"
            )
        if strategy == "default":
            features = features[:, 1:]
        outputs.pooler_output = list(self.multi_modal_projector(features))
        return outputs if _wants_dict(self.config, return_dict) else outputs.to_tuple()

    def _tower_inputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the tower's forward takes: the images, cut into patches for SigLIP2, which wants them so."""
        if self.config.vision_config.model_type != "siglip2_vision_model":
            return {"pixel_values": pixel_values}
        images, channels, height, width = pixel_values.shape
        patch = self.config.vision_config.patch_size
        grid = (height // patch, width // patch)
        patches = pixel_values.reshape(images, channels, grid[0], patch, grid[1], patch)
        patches = patches.permute(0, 2, 4, 3, 5, 1).reshape(images, grid[0] * grid[1], -1)
        return {
            "pixel_values": patches,
            "pixel_attention_mask": torch.ones(patches.shape[:2], device=patches.device),
            "spatial_shapes": torch.tensor([grid] * images, device=patches.device),
        }

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, num_features: int
    ) -> torch.Tensor:
        """Bool (B, T, 1): where image features go. Raises ValueError unless exactly `num_features` are True."""
        if input_ids is None:
            token = torch.tensor(self.config.image_token_id, device=inputs_embeds.device)
            mask = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            mask = input_ids == self.config.image_token_id
        # A compiled forward cannot branch on a tensor's value.
        if not torch.compiler.is_compiling() and (num_tokens := int(mask.sum())) != num_features:
            raise ValueError(
                f"Image features and image tokens do not match, tokens: {num_tokens}, features: "
                f"{num_features}. Each image needs {self.config.image_seq_length} tokens of id "
                f"{self.config.image_token_id}: check that images and text come from one processor "
                f"call and that truncation cut no image."
            )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache: Cache | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MayaModelOutputWithPast:
        """One pass over input_ids (B, T) or inputs_embeds (B, T, D).

        pixel_values: images as in `get_image_features`, in reading order over all rows; or
        mm_encoder_outputs: {"image": the output of `get_image_features`}.
        attention_mask: any form that the decoder takes (2-D, 4-D, flex block mask).
        cache: keys and values of earlier passes; `past_key_values` is its older name.

        Raises ValueError when placeholders and image features differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and encoded is not None:
            raise ValueError("Give either pixel_values or mm_encoder_outputs['image'], not both.")
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            # Other arguments are the decoder's, such as the lengths of packed rows.
            names = ("output_attentions", "output_hidden_states")
            asked = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
            encoded = self.get_image_features(pixel_values, return_dict=True, **asked)

        image_features = None
        gated = isinstance(self.multi_modal_projector, MayaGatedProjector)
        is_image = inputs_embeds.new_zeros(inputs_embeds.shape[:2], dtype=torch.bool)
        if encoded is not None:
            features = list(encoded.pooler_output)
            if mm_encoder_outputs and not torch.compiler.is_compiling():
                features = self._features_of_this_step(input_ids, features, cache)
            if features:
                image_features = torch.cat(features).to(inputs_embeds.device, inputs_embeds.dtype)
                placed = image_features
                if gated:
                    placed = self.multi_modal_projector.placeholder.weight.expand(len(features), -1)
                    placed = placed.to(inputs_embeds.dtype)
                mask = self.get_placeholder_mask(input_ids, inputs_embeds, len(placed))
                inputs_embeds = inputs_embeds.masked_scatter(mask, placed)
                is_image = mask.squeeze(-1)
        elif (
            # In training, and in the prompt given to `generate`, a placeholder without an image is a
            # mistake. Other cases are allowed: profilers pass random ids, and a cached step passes ids
            # that the model generated.
            input_ids is not None
            and (self.training or mm_encoder_outputs is not None)
            and (cache is None or cache.get_seq_length() == 0)
        ):
            self.get_placeholder_mask(input_ids, inputs_embeds, 0)
        if encoded is None and self.training and torch.is_grad_enabled():
            # Under data-parallel training every rank must use every part in every step, or the
            # ranks that have images wait for the others for ever: add zero times a blank image.
            shape = (1, self.config.vision_config.num_channels, *self.config.vision_image_size)
            blank = torch.zeros(shape, device=inputs_embeds.device, dtype=inputs_embeds.dtype)
            blank = self.get_image_features(blank, return_dict=True).pooler_output[0]
            inputs_embeds = inputs_embeds + 0.0 * blank.sum()
            if gated:
                image_features = blank.to(inputs_embeds.dtype)
                unused = self.multi_modal_projector.placeholder.weight.sum()
                inputs_embeds = inputs_embeds + 0.0 * unused
        images = None
        if gated:
            self.multi_modal_projector.attach(self.language_model)
            read = inputs_embeds.new_zeros(0, 1) if image_features is None else image_features
            images = self.multi_modal_projector.images(
                read, is_image, position_ids, cache, inputs_embeds.dtype
            )
            kwargs["gated_images"] = images

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **{CACHE: cache},
            **kwargs,
        )
        if images is not None:
            images.keep(getattr(outputs, CACHE))
        output = MayaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            image_outputs=encoded,
            **{CACHE: getattr(outputs, CACHE)},
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()

    def _features_of_this_step(
        self, input_ids: torch.Tensor | None, features: list[torch.Tensor], cache: Cache | None
    ) -> list[torch.Tensor]:
        """The features of the placeholders in `input_ids`, in reading order, in every step of `generate`.

        Until transformers 5.17 `generate` hands the I `features` of the prompt to every step as they
        are: also to the steps after the prompt, which need none, and to a prompt whose rows beam
        search has repeated, which needs the features of a row as often. 5.18 repeats them, but each
        image by itself, which mixes up the images of a row. Later releases repeat them rightly.
        """
        if input_ids is None:
            return features
        placeholders = (input_ids == self.config.image_token_id).sum(-1)
        total, per_image = int(placeholders.sum()), self.config.image_seq_length
        # A repeated image is the same tensor again.
        distinct = list({id(image): image for image in features}.values())
        if len(distinct) == len(features) and total == len(features) * per_image:
            return features
        # A model may say the placeholder itself.
        after_the_prompt = cache is not None and cache.get_seq_length() > 0
        if after_the_prompt and (total == 0 or input_ids.shape[1] < max(per_image, 2)):
            return []
        repeats, rest = divmod(total, len(distinct) * per_image)
        if repeats < 2 or rest or len(input_ids) % repeats:
            return features
        repeated, start = [], 0
        for count in (placeholders[::repeats] // per_image).tolist():
            repeated += distinct[start : start + count] * repeats
            start += count
        return repeated


class MayaForConditionalGeneration(MayaPreTrainedModel, GenerationMixin):
    """Maya with a language modelling head: trains, answers, streams."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MayaConfig):
        super().__init__(config)
        self.model = MayaModel(config)
        self.lm_head = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        # Older releases of transformers ask the outermost model only; its head is expected.
        patterns = self.model._keys_to_ignore_on_load_unexpected
        self._keys_to_ignore_on_load_unexpected = [p for p in patterns if "lm_head" not in p]
        self.post_init()

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """See `MayaModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """See `GenerationMixin.generate`; images are encoded once, in every release of transformers."""
        pixel_values = kwargs.pop("pixel_values", None)
        encoded = dict(kwargs.pop("mm_encoder_outputs", None) or {})
        if pixel_values is not None:
            if encoded.get("image") is not None:
                raise ValueError(
                    "Give either pixel_values or mm_encoder_outputs['image'], not both."
                )
            pixel_values = pixel_values.to(self.device)
            encoded["image"] = self.get_image_features(pixel_values, return_dict=True)
        return super().generate(*args, mm_encoder_outputs=encoded, **kwargs)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        cache: Cache | None = None,
        return_dict: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MayaCausalLMOutputWithPast:
        """As `MayaModel.forward`, plus

        labels: (B, T), -100 where no loss is wanted; shifted here, so that labels[t] is token t itself.
        logits_to_keep: compute logits of the last so many positions (0: all), or of the positions given.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            cache=past_key_values if cache is None else cache,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        # Cohere's decoders are trained with scaled logits; TRL's fused loss reads the same field.
        scale = getattr(self.config.text_config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        output = MayaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            image_outputs=outputs.image_outputs,
            **{CACHE: getattr(outputs, CACHE)},
        )
        return output if _wants_dict(self.config, return_dict) else output.to_tuple()


__all__ = ["MayaForConditionalGeneration", "MayaModel", "MayaPreTrainedModel"]
