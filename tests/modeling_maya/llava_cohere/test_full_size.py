"""The published checkpoint in full size, without its weights: shapes on the meta device and sparse files.

The config is the published one as far as it is known: field by field from the original's training code
and the base decoder's config, confirmed by the sizes of the files on the Hub (config.json 1,213 bytes, index
47,054 bytes, shards 4.92/4.92/5/1.45 GB).
"""

import json
import math

import pytest
from huggingface_hub import split_state_dict_into_shards_factory

from modeling_maya import MayaConfig
from modeling_maya.llava_cohere.convert import convert
from modeling_maya.llava_cohere.loading import llava_cohere_shapes, native_shapes, read_config

CONFIG = {
    "_name_or_path": "CohereForAI/aya-23-8B",
    "architectures": ["LlavaCohereForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 5,
    "eos_token_id": 255001,
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "image_aspect_ratio": "pad",
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "layer_norm_eps": 1e-05,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "mm_hidden_size": 768,
    "mm_patch_merge_type": "flat",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-base-patch16-256-multilingual",
    "model_type": "llava_cohere",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 10000,
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "tune_mm_mlp_adapter": False,
    "use_cache": False,
    "use_mm_proj": True,
    "use_qk_norm": False,
    "vocab_size": 256000,
}
ORDINARY, TURNS = 255000, 29
DECODER, PROJECTOR, TOWER, TOWER_USED = 8_028_033_024, 19_931_136, 92_930_304, 78_753_792
PREDICTED_GB = [4.916, 4.916, 5.000, 1.450]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """config.json and a tokenizer of the published length."""
    place = tmp_path_factory.mktemp("published")
    (place / "config.json").write_text(json.dumps(CONFIG, indent=2))
    vocab = {f"piece{index}": index for index in range(ORDINARY)}
    added = [{"id": ORDINARY + index, "content": f"<|{index}|>"} for index in range(TURNS)]
    tokenizer = {"added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": []}}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    return place


@pytest.fixture(scope="module")
def config(folder):
    fields = read_config(dict(CONFIG), folder)
    fields.pop("model_type")
    return MayaConfig(**fields)


@pytest.fixture(scope="module")
def shapes(config):
    return llava_cohere_shapes(config)


def parameters(shapes, prefix=""):
    return sum(math.prod(shape) for key, shape in shapes.items() if key.startswith(prefix))


def split(shapes, max_shard_size):
    return split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: 2 * math.prod(shape),
        get_storage_id=lambda shape: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )


def test_tensors_and_parameters(shapes, config):
    assert len(shapes) == 470
    assert parameters(shapes) == 8_140_894_464 == DECODER + PROJECTOR + TOWER
    assert parameters(shapes, "model.mm_projector.") == PROJECTOR
    assert parameters(shapes, "model.vision_tower.") == TOWER
    assert (
        sum(key.startswith("model.vision_tower.vision_tower.vision_model.") for key in shapes)
        == 208
    )
    assert shapes["model.embed_tokens.weight"] == (256000, 4096)
    assert "lm_head.weight" not in shapes
    native = native_shapes(config)
    assert parameters(native) == DECODER + PROJECTOR + TOWER_USED
    assert "lm_head.weight" not in native


def test_predicted_shards_are_those_on_the_hub(shapes):
    """Proof of 256,000 rows and of the tie: 255,029 rows, or a stored head, give other files."""
    files = split(shapes, "5GB").filename_to_tensors
    found = [sum(2 * math.prod(shapes[key]) for key in keys) / 1e9 for keys in files.values()]
    assert [round(size, 3) for size in found] == PREDICTED_GB
    fewer = {**shapes, "model.embed_tokens.weight": (ORDINARY + TURNS, 4096)}
    other = [
        sum(2 * math.prod(fewer[key]) for key in keys) / 1e9
        for keys in split(fewer, "5GB").filename_to_tensors.values()
    ]
    assert [round(size, 3) for size in other] != PREDICTED_GB


def test_config(config):
    assert (
        config.image_token_id
        == ORDINARY + TURNS
        == 255029
        < config.text_config.vocab_size
        == 256000
    )
    assert config.image_seq_length == 255
    assert config.text_config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert config.text_config.logit_scale == 0.0625
    assert config.tie_word_embeddings is True
    assert config.vision_config.num_attention_heads == 12
    assert config.vision_layers_used == 11


def test_dry_run_over_files_of_full_size(folder, shapes, tmp_path):
    """Headers and lengths as published, contents never read: 16.3 GB that take no disk and no memory."""
    files = split(shapes, "5GB").filename_to_tensors
    weight_map = {}
    for name, keys in files.items():
        header, position = {}, 0
        for key in keys:
            size = 2 * math.prod(shapes[key])
            header[key] = {
                "dtype": "BF16",
                "shape": shapes[key],
                "data_offsets": [position, position + size],
            }
            position += size
            weight_map[key] = name
        text = json.dumps(header).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + position)
    index = {"metadata": {"total_size": 2 * parameters(shapes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    lines = []
    report = convert(folder, tmp_path / "never", dry_run=True, log=lines.append)
    unused = report["parts"]["unused tower"]
    assert report["parameters"] + unused["parameters"] == 8_140_894_464
    assert report["tensors"] + unused["tensors"] == 470
    assert report["parts"]["embeddings"]["parameters"] == 256000 * 4096
    assert report["parts"]["projector"]["parameters"] == PROJECTOR
    assert report["parts"]["vision tower"]["parameters"] == TOWER_USED
    assert len(report["shards"]) == 4
    assert max(report["shards"].values()) <= 5e9
    assert report["memory_bytes"] < 1e9
    assert any("8,126,717,952" in line for line in lines)
    assert not (tmp_path / "never").exists()
