"""What Maya is: its configuration and its models, known to transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from .configuration_maya import MayaConfig
from .llava_cohere import loading as convert_loading
from .modeling_maya import (
    CACHE,
    MayaForConditionalGeneration,
    MayaModel,
    MayaPreTrainedModel,
    MayaProjector,
    drop_unused_vision_weights,
)

AutoConfig.register("maya", MayaConfig)
AutoModel.register(MayaConfig, MayaModel)
AutoModelForImageTextToText.register(MayaConfig, MayaForConditionalGeneration)
AutoModelForCausalLM.register(MayaConfig, MayaForConditionalGeneration)

# Every save ships the code, so that the folder loads where this package is not installed.
MayaConfig.register_for_auto_class("AutoConfig")
MayaModel.register_for_auto_class("AutoModel")
MayaForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

# Checkpoints of the original Maya (`llava_cohere`) load like any other.
convert_loading.register()

__all__ = [
    "CACHE",
    "MayaConfig",
    "MayaForConditionalGeneration",
    "MayaModel",
    "MayaPreTrainedModel",
    "MayaProjector",
    "drop_unused_vision_weights",
]
