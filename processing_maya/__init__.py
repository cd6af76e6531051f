"""What Maya reads: pictures and conversations to model inputs, known to transformers' Auto classes."""

from pathlib import Path

from transformers import AutoProcessor, PreTrainedConfig

# Before 5.18 the name that `transformers` itself exports wants torchvision, which Maya does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from . import processing_llava_cohere
from .conversations_maya import messages_from_conversations
from .image_processing_maya import MayaImageProcessor
from .processing_maya import MayaProcessor, add_image_token

CHAT_TEMPLATES = ("maya", "aya", "plain")


class _RegistryKey(PreTrainedConfig):
    # The Auto classes are keyed by config classes. This package does not know the model's, and
    # saved processors name their classes, so any key will do.
    model_type = "maya_processor"


AutoImageProcessor.register(_RegistryKey, image_processor_classes={"pil": MayaImageProcessor})
AutoProcessor.register(_RegistryKey, MayaProcessor)

# Every save ships the code, so that the folder loads where this package is not installed.
MayaImageProcessor.register_for_auto_class("AutoImageProcessor")
MayaProcessor.register_for_auto_class("AutoProcessor")


def load_chat_template(name: str, original_prompt: bool = False) -> str:
    """Return the text of one of Maya's chat templates: `maya`, `aya` or `plain`.

    `original_prompt=True` gives `plain` the original's generation prompt, "<image>\\n"; without
    it the prompt is the image alone, as in training. The other templates have only one.
    Raises ValueError for an unknown name.
    """
    if name not in CHAT_TEMPLATES:
        raise ValueError(
            f"Unknown chat template {name!r}, expected one of {', '.join(CHAT_TEMPLATES)}."
        )
    template = (Path(__file__).parent / "chat_templates" / f"{name}.jinja").read_text(
        encoding="utf-8"
    )
    if original_prompt and name == "plain":
        template = (
            "{%- set original_prompt = true if original_prompt is undefined else original_prompt -%}\n"
            + template
        )
    return template


# Checkpoints of the original Maya (`llava_cohere`) have a processor too.
processing_llava_cohere.register()

__all__ = [
    "CHAT_TEMPLATES",
    "MayaImageProcessor",
    "MayaProcessor",
    "add_image_token",
    "load_chat_template",
    "messages_from_conversations",
]
