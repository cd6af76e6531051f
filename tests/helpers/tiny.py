"""Tiny random Mayas with any decoder and any vision tower, for tests that need a model.

    from tests.helpers.tiny import tiny_config, tiny_inputs, tiny_model

    model = tiny_model(decoder="cohere", tower="siglip")
    model.generate(**tiny_inputs(model.config, images=[1, 2, 0]))

Weights are larger than transformers' defaults. So a wrong mask, layer or scale clearly changes the logits, and
greedy answers do not depend on rounding.
"""

import torch
from transformers import (
    CLIPVisionConfig,
    Cohere2Config,
    CohereConfig,
    Dinov2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    Siglip2VisionConfig,
    SiglipVisionConfig,
)

from modeling_maya import MayaConfig, MayaForConditionalGeneration

IMAGE_TOKEN = 7
VOCAB = 96

_decoder = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 5,
    "eos_token_id": 6,
}
# Real decoders scale logits down. With such small weights, only a scale above 1 gives logits that differ enough.
_LOGIT_SCALE = 4.0
DECODERS: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "cohere": (CohereConfig, {**_decoder, "logit_scale": _LOGIT_SCALE}),
    "cohere2": (
        Cohere2Config,
        {
            **_decoder,
            "logit_scale": _LOGIT_SCALE,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "llama": (LlamaConfig, _decoder),
    "qwen3": (Qwen3Config, _decoder),
}

_tower = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_channels": 3,
    "patch_size": 4,
}
TOWERS: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "siglip": (SiglipVisionConfig, {**_tower, "image_size": 12}),
    "siglip2": (Siglip2VisionConfig, {**_tower, "num_patches": 9}),
    "clip": (CLIPVisionConfig, {**_tower, "image_size": 12}),
    # Maya does not know this tower by name: it keeps the whole tower and needs image_seq_length.
    "dinov2": (Dinov2Config, {**_tower, "image_size": 12, "mlp_ratio": 2}),
}
IMAGE_SIZE = 12

# Fields of a tiny Maya with another projector, for each kind; nine features of an image, as with an MLP.
PROJECTORS = {
    "mlp": {},
    "pixel_shuffle": {"projector_kind": "pixel_shuffle", "vision": {"patch_size": 2}},
    "q_former": {"projector_kind": "q_former", "image_seq_length": 9},
    # One token an image.
    "gated_cross_attention": {
        "projector_kind": "gated_cross_attention",
        "cross_attention_interval": 1,
    },
}


def tiny_config(
    decoder: str = "cohere",
    tower: str = "siglip",
    text: dict | None = None,
    vision: dict | None = None,
    **overrides,
) -> MayaConfig:
    """Return the config of a tiny Maya. `text` and `vision` change the parts' fields, `overrides` Maya's fields."""
    text_class, text_fields = DECODERS[decoder]
    vision_class, vision_fields = TOWERS[tower]
    overrides.setdefault("image_token_id", IMAGE_TOKEN)
    if tower == "dinov2":
        dropped = overrides.get("vision_feature_select_strategy", "full") == "default"
        overrides.setdefault("image_seq_length", 9 if dropped else 10)
    return MayaConfig(
        text_config=text_class(**{**text_fields, **(text or {})}),
        vision_config=vision_class(**{**vision_fields, **(vision or {})}),
        **overrides,
    )


def enlarge(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Redraw every weight of a model in place, seeded: matrices at unit gain, biases and norms off their default."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if "embed_tokens" in name:
                # Small compared with the layers' outputs; otherwise a tied head would repeat the last token.
                parameter.copy_(0.1 * noise)
            elif "position_embedding" in name:
                parameter.copy_(noise)
            elif parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model


def tiny_model(
    decoder: str = "cohere", tower: str = "siglip", seed: int = 0, **overrides
) -> MayaForConditionalGeneration:
    """Return a tiny float32 Maya in eval mode; equal arguments give equal weights."""
    model = MayaForConditionalGeneration(tiny_config(decoder, tower, **overrides))
    return enlarge(model, seed).eval()


def enable_checkpointing(model: torch.nn.Module, **kwargs) -> None:
    """Enable activation checkpointing; transformers 5.24 renamed the method."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)(kwargs or None)


def tiny_images(count: int, seed: int = 0) -> torch.Tensor:
    """Return pixel values (count, 3, 12, 12)."""
    return torch.randn(
        (count, 3, IMAGE_SIZE, IMAGE_SIZE), generator=torch.Generator().manual_seed(seed)
    )


def tiny_inputs(
    config: MayaConfig, images: list[int], text_tokens: int = 5, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Return left-padded inputs, row r with images[r] images: input_ids, attention_mask, pixel_values if any."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(IMAGE_TOKEN + 1, VOCAB, (count,), generator=generator).tolist()

    rows = []
    for count in images:
        row = [5]
        for _ in range(count):
            row += words(1) + [config.image_token_id] * config.image_seq_length
        rows.append(row + words(text_tokens))
    longest = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor(
            [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        ),
    }
    if sum(images):
        inputs["pixel_values"] = tiny_images(sum(images), seed)
    return inputs
