"""A tiny Maya with its processor, in memory or as a saved folder."""

from pathlib import Path
from typing import Any

from PIL import Image

from modeling_maya import MayaForConditionalGeneration
from processing_maya import MayaProcessor

from .tiny import IMAGE_SIZE, enlarge, tiny_config
from .tiny_processing import tiny_processor, tiny_tokenizer


def tiny_maya(
    decoder: str = "cohere",
    chat_template: str = "aya",
    tower: str = "siglip",
    text: dict | None = None,
    **fields: Any,
) -> tuple[MayaForConditionalGeneration, MayaProcessor]:
    """Return a random model and its processor. `text` changes the decoder's fields, `fields` Maya's fields."""
    tokenizer = tiny_tokenizer()
    length = tiny_config(decoder, tower, **fields).image_seq_length
    processor = tiny_processor(IMAGE_SIZE, length, chat_template, tokenizer)
    config = tiny_config(
        decoder,
        tower,
        text={
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **(text or {}),
        },
        image_token_id=processor.image_token_id,
        **fields,
    )
    return enlarge(MayaForConditionalGeneration(config)).eval(), processor


def save_tiny_maya(
    folder: Path, decoder: str = "cohere", tower: str = "siglip", **fields: Any
) -> Path:
    """Save a model and its processor like `maya train`. `fields` as in `tiny_maya`."""
    model, processor = tiny_maya(decoder, tower=tower, **fields)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def tiny_picture(seed: int = 0) -> Image.Image:
    """Return a small picture that depends on the seed."""
    picture = Image.new("RGB", (20, 20), ((seed * 70) % 256, (seed * 130 + 60) % 256, 200))
    picture.paste((255, (seed * 40) % 256, 0), (4, 4, 4 + seed % 9 + 4, 14))
    return picture
