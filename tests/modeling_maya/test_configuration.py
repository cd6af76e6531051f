"""MayaConfig: what it derives, what it refuses, and that it survives JSON."""

import json

import pytest
from transformers import (
    AutoConfig,
    CohereConfig,
    Gemma2Config,
    LlamaConfig,
    SiglipConfig,
    SiglipVisionConfig,
)

from modeling_maya import MayaConfig, MayaModel
from tests.helpers.tiny import DECODERS, TOWERS, tiny_config


def test_defaults_are_siglip_and_cohere():
    config = MayaConfig()
    assert config.vision_config.model_type == "siglip_vision_model"
    assert config.text_config.model_type == "cohere"
    assert config.image_seq_length == (224 // 16) ** 2
    assert config.tie_word_embeddings is True
    assert config.get_text_config() is config.text_config


@pytest.mark.parametrize("decoder", DECODERS)
def test_parts_are_chosen_by_model_type_in_dicts(decoder):
    source = tiny_config(decoder, "clip")
    config = MayaConfig(
        text_config=source.text_config.to_dict(),
        vision_config=source.vision_config.to_dict(),
        image_token_id=source.image_token_id,
    )
    assert type(config.text_config) is type(source.text_config)
    assert config.vision_config.model_type == "clip_vision_model"


@pytest.mark.parametrize(
    ("tower", "strategy", "expected"),
    [
        ("siglip", "full", 9),
        ("siglip", "default", 8),
        ("siglip2", "full", 9),
        ("siglip2", "default", 8),
        ("clip", "full", 10),
        ("clip", "default", 9),
    ],
)
def test_image_seq_length_follows_from_tower_and_strategy(tower, strategy, expected):
    assert (
        tiny_config(tower=tower, vision_feature_select_strategy=strategy).image_seq_length
        == expected
    )


@pytest.mark.parametrize(("strategy", "expected"), [("full", 256), ("default", 255)])
def test_lengths_of_the_real_maya(strategy, expected):
    vision = SiglipVisionConfig(image_size=256, patch_size=16)
    config = MayaConfig(vision_config=vision, vision_feature_select_strategy=strategy)
    assert config.image_seq_length == expected


def test_images_need_not_be_square():
    assert tiny_config(vision={"image_size": [8, 16]}).image_seq_length == 8


def test_a_contradicting_length_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"image_seq_length: expected 9, .*found 255"):
        tiny_config(image_seq_length=255)


def test_an_unknown_tower_needs_its_length_given():
    vision_class, fields = TOWERS["dinov2"]
    with pytest.raises(ValueError, match=r"'dinov2'.*give it"):
        MayaConfig(vision_config=vision_class(**fields))


def test_a_two_tower_config_is_not_a_vision_tower():
    with pytest.raises(ValueError, match=r"'siglip'.*siglip_vision_model"):
        MayaConfig(vision_config=SiglipConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_token_id": 96}, r"image_token_id: .*vocab_size is 96, found 96"),
        ({"image_token_id": -200}, r"image_token_id: .*found -200"),
        ({"vision_feature_layer": 5}, r"vision_feature_layer: .*4 layers, found 5"),
        ({"vision_feature_layer": -5}, r"vision_feature_layer: .*4 layers, found -5"),
        ({"vision_feature_layer": 0}, r"vision_feature_layer: .*found 0"),
        ({"projector_num_layers": 0}, r"projector_num_layers: .*found 0"),
        (
            {"projector_hidden_act": "gelou"},
            r"projector_hidden_act: expected one of .*gelu, .*found 'gelou'",
        ),
        ({"vision_feature_select_strategy": "patch"}, "vision_feature_select_strategy"),
        ({"vision_feature_layer": [-2, -1]}, "vision_feature_layer"),
        ({"projector_num_layers": "2"}, r"projector_num_layers: expected int, found '2' \(str\)"),
        ({"projector_num_layers": True}, r"projector_num_layers: expected int, found True"),
        ({"image_seq_length": "9"}, "image_seq_length"),
    ],
)
def test_wrong_values_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_no_model_is_built_from_a_config_made_wrong_afterwards():
    config = tiny_config()
    config.image_token_id = "<image>"
    with pytest.raises(ValueError, match="image_token_id: expected int, found '<image>'"):
        MayaModel(config)


@pytest.mark.parametrize("given", [7, "cohere", [1]])
def test_a_part_that_is_neither_dict_nor_config_is_refused(given):
    with pytest.raises(ValueError, match="text_config: expected a dict or a config"):
        MayaConfig(text_config=given)
    with pytest.raises(ValueError, match=r"vision_config \(model_type 'sigclip'\)"):
        MayaConfig(vision_config={"model_type": "sigclip"})


def test_a_config_made_wrong_afterwards_is_not_saved(tmp_path):
    config = tiny_config()
    config.vision_feature_select_strategy = "default"
    with pytest.raises(ValueError, match=r"image_seq_length: expected 8, .*found 9"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_decoder_with_other_logit_rules_is_refused():
    with pytest.raises(ValueError, match=r"gemma2.*final_logit_softcapping"):
        MayaConfig(text_config=Gemma2Config())


@pytest.mark.parametrize(("layer", "used"), [(-1, 4), (-2, 3), (-4, 1), (1, 1), (3, 3), (4, 4)])
def test_layers_used(layer, used):
    assert tiny_config(vision_feature_layer=layer).vision_layers_used == used


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (CohereConfig(), None, True),
        (LlamaConfig(), None, False),
        (LlamaConfig(tie_word_embeddings=True), None, True),
        (LlamaConfig(), True, True),
        (CohereConfig(), False, False),
    ],
)
def test_tying_follows_the_decoder_unless_given(text, given, expected):
    config = MayaConfig(text_config=text, image_token_id=7, tie_word_embeddings=given)
    assert config.tie_word_embeddings is expected
    assert config.text_config.tie_word_embeddings is expected


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_round_trip(tmp_path, decoder, tower):
    config = tiny_config(decoder, tower, projector_num_layers=4, vision_feature_layer=-3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MayaConfig
    ignored = {"_name_or_path"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in ignored} == {
        k: v for k, v in config.to_dict().items() if k not in ignored
    }


def test_auto_map_names_every_auto_class_and_never_another_repository(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    expected = {
        "AutoConfig": "configuration_maya.MayaConfig",
        "AutoModel": "modeling_maya.MayaModel",
        "AutoModelForImageTextToText": "modeling_maya.MayaForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_maya.MayaForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_maya.MayaForConditionalGeneration",
    }
    assert saved["auto_map"] == expected
    elsewhere = {name: f"someone/else--{path}" for name, path in expected.items()}
    assert MayaConfig(auto_map=elsewhere).auto_map == expected
