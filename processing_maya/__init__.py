"""Maya's processors, registered with transformers' Auto classes: images and conversations to model inputs.

In the order of the data flow:

- image_loading_maya.py: loads images from files, URLs and bytes.
- image_processing_maya.py: the image processor, images to pixel values.
- conversations_maya.py: checks messages, and converts LLaVA's conversations to messages.
- processing_maya.py: the processor, messages and images to model inputs.
- templates.py: loads the chat templates in chat_templates/.
- processing_llava_cohere.py: builds the processor that the original's checkpoints lack.

Only the modules named `*_maya.py` are Hub code, which every saved folder carries; they import only each
other. No module here imports `modeling_maya`. Only modeling_maya/llava_cohere may import
processing_llava_cohere.py.
"""

from transformers import AutoProcessor, PreTrainedConfig

# Before 5.18, the name that `transformers` exports requires torchvision, which Maya does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from . import processing_llava_cohere
from .conversations_maya import messages_from_conversations
from .image_processing_maya import MayaImageProcessor
from .processing_maya import MayaProcessor, add_image_token
from .templates import CHAT_TEMPLATES, load_chat_template


class _RegistryKey(PreTrainedConfig):
    # Auto classes look processors up by config class. This package must not import the model's config,
    # and saved processors name their own classes, so any config class works.
    model_type = "maya_processor"


AutoImageProcessor.register(_RegistryKey, image_processor_classes={"pil": MayaImageProcessor})
AutoProcessor.register(_RegistryKey, MayaProcessor)

# Every save includes the code, so the folder loads without this package.
MayaImageProcessor.register_for_auto_class("AutoImageProcessor")
MayaProcessor.register_for_auto_class("AutoProcessor")

# Also load processors for checkpoints of the original Maya (`llava_cohere`).
processing_llava_cohere.register()

__all__ = [
    "CHAT_TEMPLATES",
    "MayaImageProcessor",
    "MayaProcessor",
    "add_image_token",
    "load_chat_template",
    "messages_from_conversations",
]
