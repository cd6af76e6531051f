"""`maya merge --alpha`: average of a Maya's decoder with its original language model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CohereForCausalLM

from maya_vlm.model_card.cards.model import model_card
from maya_vlm.model_card.hub.publish import check_model
from maya_vlm.training.cli import main
from maya_vlm.training.inference.mix import mix
from modeling_maya import MayaForConditionalGeneration
from tests.helpers.tiny_maya import save_tiny_maya

DECODER = "model.language_model."


@pytest.fixture(scope="module")
def maya(tmp_path_factory) -> Path:
    """Return the folder of a Maya with several weight files."""
    folder = save_tiny_maya(tmp_path_factory.mktemp("maya") / "maya")
    model = MayaForConditionalGeneration.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def text(maya, tmp_path_factory) -> Path:
    """Return the folder of another language model with the same shapes."""
    config = MayaForConditionalGeneration.from_pretrained(maya).config.text_config
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("text") / "text"
    CohereForCausalLM(config).save_pretrained(folder)
    return folder


def values(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def test_the_decoder_is_the_mean_and_the_rest_is_the_mayas(maya, text, tmp_path):
    merged = mix(str(maya), tmp_path / "merged", str(text), 0.25)
    own, theirs, found = values(maya), values(text), values(merged)
    assert found.keys() == own.keys()
    for key, value in found.items():
        other = theirs.get(key.replace(DECODER, "model."))
        if key.startswith(DECODER):
            torch.testing.assert_close(value, 0.25 * own[key] + 0.75 * other)
        else:
            assert torch.equal(value, own[key]), key
    assert sum(key.startswith(DECODER) for key in found) > 10
    check_model(merged)
    names = {path.name for path in maya.iterdir()} | {"merge.json"}
    assert {path.name for path in merged.iterdir()} == names


def test_the_ends_are_the_two_decoders_bit_for_bit(maya, text, tmp_path):
    first = mix(str(maya), tmp_path / "one", str(text), 1)
    for file in maya.glob("*.safetensors"):
        assert (first / file.name).read_bytes() == file.read_bytes()
    second = MayaForConditionalGeneration.from_pretrained(
        mix(str(maya), tmp_path / "zero", str(text), 0)
    )
    decoder = AutoModelForCausalLM.from_pretrained(text)
    ids = torch.arange(5, 15)[None]
    assert torch.equal(second(ids).logits, decoder(ids).logits)


def test_means_are_computed_in_float32(maya, text, tmp_path):
    model = MayaForConditionalGeneration.from_pretrained(maya, dtype=torch.bfloat16)
    half = tmp_path / "half"
    model.save_pretrained(half)
    merged = values(mix(str(half), tmp_path / "merged", str(text), 0.3))
    own, theirs = values(half), values(text)
    key = f"{DECODER}layers.0.mlp.up_proj.weight"
    expected = 0.3 * own[key].float() + (1 - 0.3) * theirs["model.layers.0.mlp.up_proj.weight"]
    assert merged[key].dtype == torch.bfloat16
    assert torch.equal(merged[key], expected.bfloat16())


def test_memory_does_not_grow_with_the_model(maya, text, tmp_path, monkeypatch):
    """Merge models of 100 KB and more, and check that at most pieces of 4 KB are read at once."""
    monkeypatch.setattr("modeling_maya.llava_cohere.tensors.CHUNK_BYTES", 4096)
    pieces = []
    original = torch.frombuffer

    def noted(data, dtype):
        pieces.append(len(data))
        return original(data, dtype=dtype)

    monkeypatch.setattr("modeling_maya.llava_cohere.tensors.torch.frombuffer", noted)
    mix(str(maya), tmp_path / "merged", str(text), 0.5)
    assert max(pieces) == 4096


def test_the_command_and_the_card(maya, text, tmp_path, capsys):
    output = tmp_path / "merged"
    command = ["merge", str(maya), str(output), "--base", str(text), "--alpha", "0.5"]
    assert main(command) == 0
    assert f"merged into {output}" in capsys.readouterr().out
    record = json.loads((output / "merge.json").read_text())
    assert record["alpha"] == 0.5
    record |= {"model": "user/maya", "base": "user/text"}
    (output / "merge.json").write_text(json.dumps(record))
    card = model_card(output, "user/merged")
    assert "base_model:\n- user/maya\n- user/text\nbase_model_relation: merge\n" in card
    assert "the weighted mean of that of `user/maya` (0.5) and `user/text`\n(0.5)" in card
    assert main(["merge", str(maya), str(tmp_path / "x"), "--alpha", "0.5"]) == 2
    assert "--alpha: expected --base, the language model" in capsys.readouterr().err


def test_other_tokens_are_refused(maya, text, tmp_path):
    base = tmp_path / "text"
    shutil.copytree(text, base)
    shutil.copy(maya / "tokenizer.json", base / "tokenizer.json")
    mix(str(maya), tmp_path / "merged", str(base), 0.5)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(
        ValueError, match=r"tokenizer.json: '[ab]': expected number \d+, as in .*, found"
    ):
        mix(str(maya), tmp_path / "other", str(base), 0.5)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"alpha": 1.5}, "alpha: expected 0 to 1, found 1.5"),
        (
            {"kind": "llama"},
            "text: model_type: expected 'cohere', that of the decoder of .*found 'llama'",
        ),
        ({"tie_word_embeddings": False}, "text: tie_word_embeddings: expected True, .*found False"),
        ({"logit_scale": 2.0}, "text: logit_scale: expected .*found 2.0"),
        ({"num_hidden_layers": 9}, "text: num_hidden_layers: expected .*found 9"),
        ({"drop": "model.norm.weight"}, "model.norm.weight: expected a tensor of shape .*none"),
        ({"cut": "model.norm.weight"}, r"model.norm.weight: expected shape \[\d+\] as in .*found"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_nothing_is_written(
    maya, text, tmp_path, damage, words
):
    base = tmp_path / "text"
    base.mkdir()
    config = json.loads((text / "config.json").read_text())
    config["model_type"] = damage.get("kind", config["model_type"])
    fields = ("logit_scale", "num_hidden_layers", "tie_word_embeddings")
    config |= {name: damage[name] for name in fields if name in damage}
    (base / "config.json").write_text(json.dumps(config))
    tensors = values(text)
    if "drop" in damage:
        del tensors[damage["drop"]]
    if "cut" in damage:
        tensors[damage["cut"]] = tensors[damage["cut"]][:-1].clone()
    save_file(tensors, base / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        mix(str(maya), tmp_path / "merged", str(base), damage.get("alpha", 0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["text"]
