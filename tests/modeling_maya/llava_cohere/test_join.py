"""The tensors of bases of every kind, found under their own names, are those of the Maya that was built of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipModel,
)

from maya_vlm.training.model.assemble import build_maya
from modeling_maya.llava_cohere.convert import convert
from modeling_maya.llava_cohere.join import base_tensors, digest
from modeling_maya.llava_cohere.loading import native_shapes
from modeling_maya.llava_cohere.origin import local_origin
from modeling_maya.llava_cohere.tensors import (
    read_safetensors,
    read_weights,
    same_bytes,
    write_safetensors,
)
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


@pytest.fixture
def split(tmp_path):
    """A folder with only the projector of a Maya, and the Maya's bases; the config names no bases."""
    bases = {
        "vision_tower": tower(tmp_path / "tower", "siglip"),
        "language_model": decoder(tmp_path / "decoder", "cohere"),
    }
    folder = tmp_path / "projector"
    build(folder, bases)
    tensors = read_weights(folder, pickles=False)
    projector = {name: ref for name, ref in tensors.items() if "multi_modal_projector" in name}
    write_safetensors(folder / "projector.safetensors", projector)
    (folder / "model.safetensors").rename(tmp_path / "whole.safetensors")
    return folder, {
        "base_model": bases["language_model"],
        "vision_tower": bases["vision_tower"],
    }


def name_bases(folder: Path, bases) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "bases": bases}))


def test_bases_that_the_config_does_not_name_are_given(split, tmp_path):
    folder, bases = split
    with pytest.raises(
        ValueError, match=r"config.json: bases.vision_tower: expected .* give --vis"
    ):
        convert(folder, tmp_path / "out", base_model=bases["base_model"])
    said = []
    convert(folder, tmp_path / "out", **bases, log=said.append)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == whole
    told = "language_model: bases of config.json does not name it; shapes were compared"
    assert told in said


def test_reading_whole_weights_names_the_command(split):
    folder, _ = split
    with pytest.raises(FileNotFoundError, match=rf"join .* first: maya convert {folder} OUTPUT$"):
        read_weights(folder, pickles=False)


@pytest.mark.parametrize(
    "bases", ["user/name", [], {"language_model": {}}, {"language_model": {"name": 3}}]
)
def test_a_damaged_record_of_bases_is_one_line(split, tmp_path, bases):
    folder, given = split
    name_bases(folder, bases)
    with pytest.raises(
        ValueError, match=r"config.json: bases.language_model: expected an object"
    ) as e:
        convert(folder, tmp_path / "out", **given)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


def test_code_that_the_config_names_elsewhere_is_not_kept(split, tmp_path):
    folder, given = split
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "user/other--modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_maya.py").write_text("raise RuntimeError('foreign code')")
    convert(folder, tmp_path / "out", **given, log=lambda line: None)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["auto_map"]
    assert written["AutoModel"] == "modeling_maya.MayaModel"
    assert "foreign" not in (tmp_path / "out" / "modeling_maya.py").read_text()


def test_another_projector_is_refused(split, tmp_path):
    folder, given = split
    tensors = load_file(folder / "projector.safetensors")
    name, value = next(iter(sorted(tensors.items())))
    save_file({**tensors, name: value[:-1].clone()}, folder / "projector.safetensors")
    with pytest.raises(ValueError, match=rf"{name}: expected shape .* by config.json, found"):
        convert(folder, tmp_path / "out", **given)
    save_file({**tensors, "model.norm.weight": value.clone()}, folder / "projector.safetensors")
    with pytest.raises(ValueError, match=r"model.norm.weight: expected no such tensor"):
        convert(folder, tmp_path / "out", **given)


def test_a_cut_projector_is_refused(split, tmp_path):
    folder, given = split
    content = (folder / "projector.safetensors").read_bytes()
    (folder / "projector.safetensors").write_bytes(content[:-4])
    with pytest.raises(ValueError, match=r"projector.safetensors: cut short"):
        convert(folder, tmp_path / "out", **given)


def test_the_digest_sees_every_bit_name_shape_and_dtype(split, tmp_path):
    folder, _ = split
    kept = load_file(folder / "projector.safetensors")
    name = sorted(kept)[-1]

    def of(tensors):
        save_file(tensors, tmp_path / "one.safetensors")
        return digest(read_safetensors(tmp_path / "one.safetensors"))

    changed = kept[name].clone()
    changed.view(torch.int32).flatten()[-1] ^= 1
    others = [
        {**kept, name: changed},
        {**kept, name: kept[name].t().contiguous().reshape(1, -1)},
        {**kept, name: kept[name].view(torch.int32)},
        {("x" if key == name else key): each for key, each in kept.items()},
    ]
    assert of(kept) == of(dict(reversed(kept.items())))
    assert len({of(each) for each in [kept, *others]}) == 5
