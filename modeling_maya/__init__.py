"""Maya's configuration and models, registered with transformers' Auto classes.

- configuration_maya.py: the configuration.
- modeling_maya.py: the models.
- projector_maya.py: the projectors, which lead from the tower's features to the decoder.
- llava_cohere/: reads, converts and writes checkpoints of the original Maya.

Only the modules named `*_maya.py` are Hub code, which every saved folder carries. Hub code imports
neither `llava_cohere` nor `processing_maya`. `llava_cohere` may import Hub code and `processing_maya`.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from .configuration_maya import MayaConfig
from .llava_cohere import loading
from .modeling_maya import (
    CACHE,
    MayaForConditionalGeneration,
    MayaModel,
    MayaPreTrainedModel,
    drop_unused_vision_weights,
)
from .projector_maya import MayaProjector, build_projector

AutoConfig.register("maya", MayaConfig)
AutoModel.register(MayaConfig, MayaModel)
AutoModelForImageTextToText.register(MayaConfig, MayaForConditionalGeneration)
AutoModelForCausalLM.register(MayaConfig, MayaForConditionalGeneration)

# Every save ships the code, so that the folder loads where this package is not installed.
MayaConfig.register_for_auto_class("AutoConfig")
MayaModel.register_for_auto_class("AutoModel")
MayaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

# Checkpoints of the original Maya (`llava_cohere`) load like any other.
loading.register()

__all__ = [
    "CACHE",
    "MayaConfig",
    "MayaForConditionalGeneration",
    "MayaModel",
    "MayaPreTrainedModel",
    "MayaProjector",
    "build_projector",
    "drop_unused_vision_weights",
]
