"""Maya: a vision tower's patch features, projected, take the place of image tokens before a decoder.

    pixel_values -> vision_tower -> multi_modal_projector -.
    input_ids ----------------------> embed_tokens --------+-> language_model -> lm_head * logit_scale

Shapes below: B rows, T tokens, I images of S = image_seq_length features, D decoder width, V vocabulary.
"""

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, Cache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    BaseModelOutputWithPooling,
    ModelOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, torch_compilable_check
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import select_hidden_states

from .configuration_maya import CLASS_TOKENS, MayaConfig


@dataclass
class MayaModelOutputWithPast(BaseModelOutputWithPast):
    """Decoder output, with `image_hidden_states` (I * S, D): the projected features, None without images."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class MayaCausalLMOutputWithPast(ModelOutput):
    """`loss` (), `logits` (B, T, V) already scaled, and what `MayaModelOutputWithPast` holds."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class MayaProjector(nn.Module):
    """`projector_num_layers` linear layers (at even indices of `layers`) with an activation between them.

    (..., vision width) -> (..., D)
    """

    def __init__(self, config: MayaConfig):
        super().__init__()
        width = config.text_config.hidden_size
        layers: list[nn.Module] = [nn.Linear(config.vision_config.hidden_size, width)]
        for _ in range(config.projector_num_layers - 1):
            layers += [ACT2FN[config.projector_hidden_act], nn.Linear(width, width)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.layers(image_features)


def drop_unused_vision_weights(
    vision_tower: PreTrainedModel, config: MayaConfig
) -> PreTrainedModel:
    """Take from a transformers tower, in place, what comes after `config.vision_feature_layer`.

    These are the layers behind it, the last layer norm and the pooling head. `hidden_states` up to that
    layer stay as they were. A tower not listed in CLASS_TOKENS, or one that the config says to keep
    whole, is returned untouched. The tower's config goes on describing the whole of it.
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
    _skip_keys_device_placement = ["past_key_values"]
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

        A model with freshly initialised parts looks like any other until it answers. Who asks for the
        report with `output_loading_info=True` gets it, with the model, and judges for himself. So does
        who names no checkpoint (None) and passes a `state_dict` of his own.
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
        self.vision_tower = AutoModel.from_config(config.vision_config)
        whole = set(self.vision_tower.state_dict())
        drop_unused_vision_weights(self.vision_tower, config)
        self.multi_modal_projector = MayaProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        # A checkpoint may have a head, and the tower whole, and still be right for this model.
        self._keys_to_ignore_on_load_unexpected = [r"^lm_head\."] + [
            rf"vision_tower\.(vision_model\.)?{re.escape(name)}$"
            for name in whole - set(self.vision_tower.state_dict())
        ]
        self.post_init()

    @merge_with_config_defaults
    @can_return_tuple
    @select_hidden_states("vision_feature_layer")
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        vision_feature_layer: int | None = None,
        vision_feature_select_strategy: str | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode and project images, float (I, channels, height, width).

        The two `vision_feature_*` default to the config's. Returns the tower's output, with a list of
        I projected features (S, D) as `pooler_output`. Raises ValueError for a layer that is not kept.
        """
        # Gradient checkpointing makes even a frozen tower's embeddings require grad, and the whole
        # tower would then be recomputed in the backward pass for nothing.
        trained = pixel_values.requires_grad or any(
            parameter.requires_grad for parameter in self.vision_tower.parameters()
        )
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            outputs = self.vision_tower(
                **self._tower_inputs(pixel_values), return_dict=True, **kwargs
            )
        index = vision_feature_layer % (self.config.vision_config.num_hidden_layers + 1)
        if index >= len(outputs.hidden_states):
            raise ValueError(
                f"vision_feature_layer={vision_feature_layer} is layer {index} of the vision tower, "
                f"but only the first {len(outputs.hidden_states) - 1} are kept: load the model with "
                f"vision_keep_unused_weights=True in its config."
            )
        features = outputs.hidden_states[index]
        if vision_feature_select_strategy == "default":
            features = features[:, 1:]
        outputs.pooler_output = list(self.multi_modal_projector(features))
        return outputs

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
        num_tokens = mask.sum()
        torch_compilable_check(
            num_tokens == num_features,
            lambda: (
                f"Image features and image tokens do not match, tokens: {num_tokens}, features: {num_features}. "
                f"Each image needs {self.config.image_seq_length} tokens of id {self.config.image_token_id}: check "
                f"that images and text come from one processor call and that truncation cut no image."
            ),
        )
        return mask.unsqueeze(-1).to(inputs_embeds.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MayaModelOutputWithPast:
        """One pass over input_ids (B, T) or inputs_embeds (B, T, D).

        pixel_values: images as in `get_image_features`, in reading order over all rows; or
        mm_encoder_outputs: {"image": the output of `get_image_features`}.
        attention_mask: any form the decoder takes (2-D, 4-D, flex block mask).

        Raises ValueError when placeholders and image features differ in number.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and encoded is not None:
            raise ValueError("Give either pixel_values or mm_encoder_outputs['image'], not both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            encoded = self.get_image_features(pixel_values, return_dict=True)

        image_features = None
        if encoded is not None:
            image_features = torch.cat(tuple(encoded.pooler_output))
            image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            mask = self.get_placeholder_mask(input_ids, inputs_embeds, len(image_features))
            inputs_embeds = inputs_embeds.masked_scatter(mask, image_features)
        elif (
            # In training, and in the prompt given to `generate`, a placeholder without an image is a
            # mistake. Elsewhere it is let be: profilers run random ids, a cached step the model's own.
            input_ids is not None
            and (self.training or mm_encoder_outputs is not None)
            and (past_key_values is None or past_key_values.get_seq_length() == 0)
        ):
            self.get_placeholder_mask(input_ids, inputs_embeds, 0)
        if encoded is None and self.training and torch.is_grad_enabled():
            # Under data-parallel training every rank must use every part in every step, or the
            # ranks that have images wait for the others for ever: add zero times a blank image.
            shape = (1, self.config.vision_config.num_channels, *self.config.vision_image_size)
            blank = torch.zeros(shape, device=inputs_embeds.device, dtype=inputs_embeds.dtype)
            blank = self.get_image_features(blank, return_dict=True).pooler_output[0]
            inputs_embeds = inputs_embeds + 0.0 * blank.sum()

        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        return MayaModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )


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
        self.post_init()

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs
    ) -> BaseModelOutputWithPooling:
        """See `MayaModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
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
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        # Cohere's decoders are trained with scaled logits; TRL's fused loss reads the same field.
        scale = getattr(self.config.text_config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return MayaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


__all__ = ["MayaForConditionalGeneration", "MayaModel", "MayaPreTrainedModel"]
