"""A tiny stock LLaVA, saved as a folder, for tests of other trainers.

Only the chat template is Maya's. The model, the processor and the PIL image processor are transformers', with the
tiny tokenizer.
"""

from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from processing_maya import add_image_token, load_chat_template
from tests.helpers.tiny_processing import tiny_tokenizer

IMAGE_SIZE, PATCH_SIZE = 16, 8


def save_tiny_llava(folder: Path) -> Path:
    """Write a LlavaForConditionalGeneration with random weights and its LlavaProcessor."""
    tokenizer = tiny_tokenizer()
    image_token = add_image_token(tokenizer)
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        **ids,
    )
    vision = CLIPVisionConfig(
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text,
            vision_config=vision,
            image_token_index=image_token,
            image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
            **ids,
        )
    )
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaProcessor(
        image_processor=LlavaImageProcessorPil(size=side, crop_size=side),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, which the strategy "default" removes
        chat_template=load_chat_template("aya"),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
