"""The tensors of bases of every kind, found under their own names, are those of the Maya that was built of them."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from maya_vlm.training.model.assemble import build_maya
from modeling_maya.llava_cohere.join import base_tensors
from modeling_maya.llava_cohere.loading import native_shapes
from modeling_maya.llava_cohere.origin import local_origin
from modeling_maya.llava_cohere.tensors import read_weights, same_bytes
from tests.helpers.tiny import DECODERS, TOWERS, enlarge
from tests.helpers.tiny_processing import tiny_tokenizer


def tower(folder: Path, kind: str) -> Path:
    """A tiny tower; kinds `siglip, both` and `clip, both` have the text half too."""
    config_class, fields = TOWERS[kind.split(",")[0]]
    config = config_class(**fields)
    if kind.endswith("both"):
        full, model = {
            "siglip": (SiglipConfig, SiglipModel),
            "clip": (CLIPConfig, CLIPModel),
        }[kind.split(",")[0]]
        text = {"vocab_size": 20, "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 1}
        text |= {"num_attention_heads": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        network = model(full(vision_config=config.to_dict(), text_config=text))
    else:
        network = AutoModel.from_config(config)
    enlarge(network).save_pretrained(folder)
    return folder


def decoder(folder: Path, kind: str, **changes) -> Path:
    tokenizer = tiny_tokenizer()
    config_class, fields = DECODERS[kind]
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    rows = len(tokenizer) + 4
    config = config_class(**{**fields, **ids, "vocab_size": rows, **changes})
    enlarge(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build(folder: Path, bases: dict[str, Path]):
    torch.manual_seed(0)
    model, processor = build_maya(
        str(bases["vision_tower"]), str(bases["language_model"]), chat_template="aya"
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.config


@pytest.mark.parametrize(
    ("tower_kind", "decoder_kind", "changes"),
    [
        ("siglip", "cohere", {}),
        ("siglip, both", "llama", {"tie_word_embeddings": False}),
        ("clip", "qwen3", {"tie_word_embeddings": True}),
        ("clip, both", "cohere2", {}),
        ("siglip2", "llama", {"tie_word_embeddings": True}),
    ],
)
def test_tensors_of_bases_are_those_of_the_maya(tmp_path, tower_kind, decoder_kind, changes):
    bases = {
        "vision_tower": tower(tmp_path / "tower", tower_kind),
        "language_model": decoder(tmp_path / "decoder", decoder_kind, **changes),
    }
    config = build(tmp_path / "maya", bases)
    own = read_weights(tmp_path / "maya", pickles=False)
    expected = native_shapes(config)
    found = {}
    for part, base in bases.items():
        found |= base_tensors(local_origin(base), part, expected, torch.float32)
    assert {name for name in own if name not in found} == {
        name for name in own if "multi_modal_projector" in name
    }
    assert all(same_bytes(own[name], ref) for name, ref in found.items())
