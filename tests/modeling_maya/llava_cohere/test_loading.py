"""Direct loading of the original's checkpoints: every published form, and every broken one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

import processing_maya  # noqa: F401  (registers the processor)
from modeling_maya import MayaConfig, MayaForConditionalGeneration, MayaModel
from tests.modeling_maya.llava_cohere import tiny_original as original


def assert_holds(model, tensors):
    """Every tensor the model has is the checkpoint's, bit for bit; only the unused tower is left out."""
    state = model.state_dict()
    renamed = {original.native_name(key): value for key, value in tensors.items()}
    for key, value in state.items():
        if key == "lm_head.weight" and key not in renamed:
            continue
        assert torch.equal(value, renamed[key].to(value.dtype)), key
    left = set(renamed) - set(state)
    unused = ("model.vision_tower.head.", "model.vision_tower.post_layernorm.")
    last = f"model.vision_tower.encoder.layers.{original.V_LAYERS - 1}."
    assert all(key.startswith((*unused, last)) for key in left), left


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("shards", "changes"),
    [
        (1, {}),
        (4, {}),
        (1, {"use_cache": True, "tie_word_embeddings": True}),
        (3, {"rope_theta": ..., "num_key_value_heads": original.KV_HEADS, "use_qk_norm": ...}),
        (1, {"rope_theta": 75000, "logit_scale": 1, "rope_scaling": None}),
        (
            2,
            {
                "image_aspect_ratio": None,
                "mm_vision_select_feature": "cls_patch",
                "mm_vision_select_layer": -1,
            },
        ),
    ],
)
def test_published_forms(folder, shards, changes, caplog):
    tensors = original.write_checkpoint(folder, shards, **changes)
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is MayaConfig
    for load in (AutoModelForImageTextToText, MayaForConditionalGeneration):
        model = load.from_pretrained(folder)
        assert type(model) is MayaForConditionalGeneration
        assert model.dtype == torch.bfloat16
        if changes.get("mm_vision_select_layer") != -1:
            assert_holds(model, tensors)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not [record for record in caplog.records if "REPORT" in record.message]
    text = model.config.text_config
    theta = changes.get("rope_theta", 10000)
    assert text.rope_parameters == {
        "rope_type": "default",
        "rope_theta": 10000.0 if theta is ... else float(theta),
    }
    assert text.logit_scale == changes.get("logit_scale", 0.125)
    assert text.tie_word_embeddings is True
    assert text.use_cache is changes.get("use_cache", False)
    full = changes.get("mm_vision_select_feature") == "cls_patch"
    assert config.image_seq_length == original.FEATURES + (1 if full else 0)
    assert config.vision_config.num_attention_heads == original.V_HEADS
    headless = AutoModel.from_pretrained(folder)
    assert type(headless) is MayaModel
    assert torch.equal(headless.language_model.norm.weight, tensors["model.norm.weight"])


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp4x_gelu", 4)])
def test_projector_depths(folder, kind, layers):
    tensors = original.all_tensors(layers=layers)
    if kind == "linear":
        tensors = {
            key.replace("mm_projector.0.", "mm_projector."): value for key, value in tensors.items()
        }
    original.write_checkpoint(folder, tensors=tensors, mm_projector_type=kind)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.config.projector_num_layers == layers
    named = {
        key.replace("mm_projector.weight", "mm_projector.0.weight"): value
        for key, value in tensors.items()
    }
    named = {
        key.replace("mm_projector.bias", "mm_projector.0.bias"): value
        for key, value in named.items()
    }
    assert_holds(model, named)


def test_stored_head_equal_to_the_embeddings(folder):
    tensors = original.all_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    original.write_checkpoint(folder, shards=2, tensors=tensors)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert_holds(model, tensors)


def test_untied_head(folder):
    tensors = original.all_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    original.write_checkpoint(folder, tensors=tensors, tie_word_embeddings=False)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert_holds(model, tensors)
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)


def test_saved_again_it_is_a_maya(folder, tmp_path):
    """Not in the original's names, by which it was read: a reload needs nothing of the original."""
    original.write_checkpoint(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(folder)
    shutil.rmtree(tmp_path / "tower")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items()
    )
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "maya"


def test_a_fresh_model_is_saved_under_its_own_names(folder, tmp_path):
    original.write_checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    fresh = MayaForConditionalGeneration(config)
    fresh.save_pretrained(tmp_path / "fresh")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "fresh")
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in fresh.state_dict().items()
    )


@pytest.mark.parametrize(
    ("aspect", "expected"), [("pad", "pad"), ("square", "square"), (None, "square")]
)
def test_processor(folder, aspect, expected):
    original.write_checkpoint(folder, image_aspect_ratio=aspect)
    processor = AutoProcessor.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    assert type(processor).__name__ == "MayaProcessor"
    assert processor.image_processor.image_aspect == expected
    assert processor.image_processor.size["height"] == original.V_IMAGE
    assert processor.image_token_id == config.image_token_id < original.ROWS
    assert processor.image_seq_length == config.image_seq_length
    assert processor.tokenizer.model_max_length == 2048
    assert processor.tokenizer.padding_side == "left"
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "null?"}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.endswith("USER: <image>\nnull? ASSISTANT:")
    # "null" is a word, not the special token its saved settings make of it.
    assert processor.tokenizer.unk_token is None
    ids = processor.tokenizer(" null")["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == " null"


def test_processor_of_a_projector_uses_the_captions_template(folder):
    original.write_checkpoint(folder, tune_mm_mlp_adapter=True)
    processor = AutoProcessor.from_pretrained(folder)
    messages = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": "a boat"},
    ]
    assert processor.apply_chat_template(messages, tokenize=False).endswith("<image>a boat\n")
    # Asked as the original asked, and without its newline where one prefers an answer.
    ask = {"tokenize": False, "add_generation_prompt": True}
    assert processor.apply_chat_template(messages[:1], **ask).endswith("<image>\n")
    better = processor.apply_chat_template(messages[:1], original_prompt=False, **ask)
    assert better.endswith("<image>")


def test_processor_saved_again(folder, tmp_path):
    original.write_checkpoint(folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "saved")
    again = AutoProcessor.from_pretrained(tmp_path / "saved")
    text = "USER: <image>\n null 12 ASSISTANT:"
    assert again.tokenizer(text)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert again.chat_template == processor.chat_template


def test_no_spare_row(folder):
    rows = 408  # as many as the tokenizer has tokens
    tensors = original.all_tensors()
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:rows].clone()
    original.write_checkpoint(folder, tensors=tensors, vocab_size=rows)
    with pytest.raises(
        ValueError, match=r"no spare row for <image>: expected at least 409 .*found 408"
    ):
        AutoConfig.from_pretrained(folder)


# The tower's config is not in the checkpoint


def test_published_tower_needs_no_network(folder):
    original.write_checkpoint(
        folder, mm_vision_tower="google/siglip-base-patch16-256-multilingual", mm_hidden_size=768
    )
    vision = AutoConfig.from_pretrained(folder).vision_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (
        768,
        12,
        12,
    )
    assert (vision.image_size, vision.patch_size, vision.intermediate_size) == (256, 16, 3072)


def test_unknown_tower_is_asked_for_and_can_be_given(folder):
    original.write_checkpoint(folder, mm_vision_tower="/no/such/tower")
    with pytest.raises(
        ValueError,
        match=r"config.json: mm_vision_tower: expected .*found '/no/such/tower'.*attention heads",
    ):
        AutoConfig.from_pretrained(folder)
    given = {
        "hidden_size": original.V_WIDTH,
        "num_hidden_layers": original.V_LAYERS,
        "num_attention_heads": original.V_HEADS,
        "intermediate_size": original.V_MLP,
        "patch_size": original.V_PATCH,
        "image_size": original.V_IMAGE,
    }
    model = MayaForConditionalGeneration.from_pretrained(folder, vision_config=given)
    assert model.config.vision_config.num_attention_heads == original.V_HEADS
    assert (
        AutoConfig.from_pretrained(folder, vision_config=given).image_seq_length
        == original.FEATURES
    )


def test_tower_of_another_width(folder):
    original.write_checkpoint(folder, mm_hidden_size=original.V_WIDTH + 1)
    with pytest.raises(
        ValueError,
        match=rf"mm_hidden_size: expected {original.V_WIDTH}, .*found {original.V_WIDTH + 1}",
    ):
        AutoConfig.from_pretrained(folder)


# From the Hub


def test_from_a_repository(folder, tmp_path):
    """Sharded, at a commit that is not the newest, the tower known only to its own repository."""
    from tests.helpers.hub_server import HubServer, Repository

    tensors = original.write_checkpoint(folder, shards=3, mm_vision_tower="someone/tower")

    def files(place):
        return {path.name: path.read_bytes() for path in place.iterdir()}

    code = f"""
import json, sys
from pathlib import Path
import torch, modeling_maya, processing_maya
from modeling_maya.llava_cohere.convert import convert
from transformers import AutoModelForImageTextToText, AutoProcessor
commit, output = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained("someone/maya", revision=commit)
processor = AutoProcessor.from_pretrained("someone/maya", revision=commit)
assert processor.image_token_id == model.config.image_token_id
assert model.config.vision_config.num_attention_heads == {original.V_HEADS}
torch.save(model.state_dict(), Path(output) / "state.pt")
convert("someone/maya", Path(output) / "maya", revision=commit, tower_source="hub", log=lambda line: None)
"""
    with HubServer() as hub:
        published = Repository("model", "someone/maya")
        commit = published.commit("main", files(folder), "as published")
        published.commit("main", {**files(folder), "config.json": b"{}"}, "broken since")
        hub.repositories["model", "someone/maya"] = published
        tower = Repository("model", "someone/tower")
        tower_commit = tower.commit("main", files(tmp_path / "tower"), "tower")
        hub.repositories["model", "someone/tower"] = tower
        run = subprocess.run(
            [sys.executable, "-c", code, commit, str(tmp_path)],
            capture_output=True,
            text=True,
            env={
                **os.environ,
                **hub.environment(tmp_path / "home"),
                "HF_HUB_OFFLINE": "0",
                "PYTHONPATH": str(Path(original.__file__).parents[3]),
            },
        )
    assert run.returncode == 0, run.stderr[-3000:]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    renamed = {original.native_name(key): value for key, value in tensors.items()}
    assert all(torch.equal(value, renamed[key]) for key, value in state.items() if key in renamed)
    made_from = json.loads((tmp_path / "maya" / "conversion.json").read_text())["converted_from"]
    assert (made_from["name"], made_from["commit"]) == ("someone/maya", commit)
    assert made_from["vision_tower"]["name"] == "someone/tower"
    assert made_from["vision_tower"]["commit"] == tower_commit


# Bad input: one line with file, key, expected, found


def refused(folder, match, error=ValueError):
    with pytest.raises(error, match=match) as caught:
        AutoModelForImageTextToText.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("mm_projector_type", "qformer", "'linear' or 'mlp<N>x_gelu'"),
        ("mm_projector_type", "mlp0x_gelu", "'linear' or 'mlp<N>x_gelu'"),
        ("mm_vision_select_feature", "pooled", r"\['cls_patch', 'patch'\]"),
        ("mm_vision_select_layer", "last", "an integer"),
        ("mm_patch_merge_type", "spatial_unpad", "flat"),
        ("image_aspect_ratio", "anyres", "'pad', 'square' or null"),
        ("mm_use_im_start_end", True, "false"),
        ("mm_use_im_patch_token", True, "false"),
        ("mm_resampler", "perceiver", "no such field"),
        ("s2", True, "false"),
        ("mm_vision_tower", None, "a repository or folder"),
        ("rope_theta", "high", "a positive number"),
        ("num_hidden_layers", "two", "a int"),
    ],
)
def test_values_that_cannot_be_followed(folder, field, value, expected):
    original.write_checkpoint(folder, **{field: value})
    refused(folder, rf"checkpoint/config.json: {field}: expected .*{expected}.*, found ")


def test_truncated_shard(folder):
    original.write_checkpoint(folder, shards=3)
    shard = folder / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    with open(shard, "r+b") as file:
        file.truncate(size - 100)
    refused(
        folder,
        rf"model-00002-of-00003.safetensors: cut short: expected {size} bytes, found {size - 100}",
    )


def test_missing_shard(folder):
    original.write_checkpoint(folder, shards=3)
    (folder / "model-00003-of-00003.safetensors").unlink()
    refused(
        folder,
        r"model-00003-of-00003.safetensors: this shard is missing: .* expects \d+ tensors",
        FileNotFoundError,
    )


def test_wrong_shape(folder):
    tensors = original.all_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(original.MLP, original.WIDTH + 1)
    original.write_checkpoint(folder, shards=2, tensors=tensors)
    refused(
        folder,
        r"model-0000\d-of-00002.safetensors: model.layers.1.mlp.up_proj.weight: expected shape \[48, 32\] .*found \[48, 33\]",
    )


def test_missing_and_extra_tensors(folder):
    tensors = original.all_tensors()
    del tensors["model.mm_projector.2.bias"]
    original.write_checkpoint(folder, tensors=tensors)
    refused(
        folder,
        r"checkpoint: model.mm_projector.2.bias: expected a tensor of shape \[32\], found none",
    )
    tensors = {**original.all_tensors(), "model.mm_projector.4.bias": torch.zeros(3)}
    original.write_checkpoint(folder, tensors=tensors)
    refused(
        folder,
        r"model.safetensors: model.mm_projector.4.bias: expected no such tensor, found one of shape \[3\]",
    )


def test_broken_weights_are_named_before_a_tower_that_is_not_here(folder):
    original.write_checkpoint(folder, shards=2, mm_vision_tower="/no/such/tower")
    (folder / "model-00001-of-00002.safetensors").unlink()
    refused(folder, r"model-00001-of-00002.safetensors: this shard is missing", FileNotFoundError)


def test_head_that_contradicts_the_tie(folder):
    tensors = original.all_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    original.write_checkpoint(folder, tensors=tensors)
    refused(
        folder, r"lm_head.weight: expected the values of model.embed_tokens.weight.*, found others"
    )


def test_checkpoint_without_a_tower(folder):
    tensors = {
        key: value for key, value in original.all_tensors().items() if original.TOWER not in key
    }
    original.write_checkpoint(folder, tensors=tensors)
    original.write_tower(folder.parent / "tower", original.all_tensors())
    refused(
        folder,
        r"expected the tensors of the vision tower, model.vision_tower.*maya convert --vision-tower",
    )


def test_pickled_weights_are_left_to_the_converter(folder):
    tensors = original.write_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused(folder, r"checkpoint: no weights: expected model.safetensors", FileNotFoundError)


def test_config_of_another_model(folder):
    original.write_checkpoint(folder, model_type="llama")
    with pytest.raises(
        ValueError,
        match=r"config.json: model_type: expected 'maya' or 'llava_cohere', found 'llama'",
    ):
        MayaForConditionalGeneration.from_pretrained(folder)
