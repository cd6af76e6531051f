"""What Maya reads: pictures and conversations to model inputs, known to transformers' Auto classes.

In the order of the flow:

- image_loading_maya.py: pictures from files, URLs and bytes.
- image_processing_maya.py: pictures to pixel values.
- conversations_maya.py: conversations of every form to messages.
- processing_maya.py: messages and pictures to model inputs.
- templates.py: the chat templates in chat_templates/.
- processing_llava_cohere.py: the processor of the original's checkpoints, which have none.

Only the modules named `*_maya.py` are Hub code, copied into every saved folder: they import one another,
and nothing else of this package. No module here knows `modeling_maya`; its `llava_cohere` room may use
processing_llava_cohere.py.
"""

from transformers import AutoProcessor, PreTrainedConfig

# Before 5.18 the name that `transformers` itself exports wants torchvision, which Maya does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from . import processing_llava_cohere
from .conversations_maya import messages_from_conversations
from .image_processing_maya import MayaImageProcessor
from .processing_maya import MayaProcessor, add_image_token
from .templates import CHAT_TEMPLATES, load_chat_template


class _RegistryKey(PreTrainedConfig):
    # The Auto classes are keyed by config classes. This package does not know the model's, and
    # saved processors name their classes, so any key will do.
    model_type = "maya_processor"


AutoImageProcessor.register(_RegistryKey, image_processor_classes={"pil": MayaImageProcessor})
AutoProcessor.register(_RegistryKey, MayaProcessor)

# Every save ships the code, so that the folder loads where this package is not installed.
MayaImageProcessor.register_for_auto_class("AutoImageProcessor")
MayaProcessor.register_for_auto_class("AutoProcessor")

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
