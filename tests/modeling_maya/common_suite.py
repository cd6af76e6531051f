"""transformers' own common model tests, set up for Maya and for stock LLaVA made of the same parts.

Not collected by itself: `test_common_transformers.py` fetches transformers' tests (they are in its
source distribution, not in the wheel), puts them on the path as the package `transformers_tests`,
runs this file in a process of its own and compares what the two models pass.
"""

import unittest

import torch
from transformers import (
    CohereConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    SiglipVisionConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_modeling_common import ModelTesterMixin

from modeling_maya import MayaConfig, MayaForConditionalGeneration, MayaModel

# The common tests look up by class name what a model is for.
MODEL_MAPPING_NAMES["maya"] = "MayaModel"
MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["maya"] = "MayaForConditionalGeneration"


class Tester:
    """What the common tests ask a model's tester for: sizes, a config and a batch of inputs."""

    batch_size = 3
    image_size, patch_size = 8, 4
    image_tokens = (image_size // patch_size) ** 2
    seq_length = image_tokens + 7
    image_token_id = 1
    is_training = True
    hidden_size = 32
    num_attention_heads = 4
    num_hidden_layers = 2
    # Read by the common tests as dicts.
    text_config = {
        "model_type": "cohere",
        "vocab_size": 99,
        "hidden_size": hidden_size,
        "intermediate_size": 37,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    vision_config = {
        "model_type": "siglip_vision_model",
        "image_size": image_size,
        "patch_size": patch_size,
        "num_channels": 3,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent

    def parts(self) -> dict:
        return {
            "text_config": CohereConfig(**self.text_config),
            "vision_config": SiglipVisionConfig(**self.vision_config),
            "image_seq_length": self.image_tokens,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "full",
        }

    def prepare_config_and_inputs_for_common(self):
        input_ids = torch.randint(4, 99, (self.batch_size, self.seq_length))
        input_ids[:, : self.image_tokens] = self.image_token_id
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, self.image_size, self.image_size),
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
        }
        return self.get_config(), inputs


class MayaTester(Tester):
    def get_config(self) -> MayaConfig:
        return MayaConfig(**self.parts(), image_token_id=self.image_token_id)


class LlavaTester(Tester):
    def get_config(self) -> LlavaConfig:
        return LlavaConfig(**self.parts(), image_token_index=self.image_token_id)


class Suite(ModelTesterMixin, GenerationTesterMixin):
    _is_composite = True
    # Otherwise skipped for files that do not name a year from 2023 on.
    test_can_init_all_missing_weights_before_2023 = True


class MayaCommonTest(Suite, unittest.TestCase):
    all_model_classes = (MayaModel, MayaForConditionalGeneration)

    def setUp(self):
        self.model_tester = MayaTester(self)

    def _image_features_get_expected_num_attentions(self, model_tester=None):
        # Of its tower's layers Maya has those that the features come from, stock LLaVA all.
        return self.model_tester.get_config().vision_layers_used


class LlavaCommonTest(Suite, unittest.TestCase):
    all_model_classes = (LlavaModel, LlavaForConditionalGeneration)

    def setUp(self):
        self.model_tester = LlavaTester(self)
