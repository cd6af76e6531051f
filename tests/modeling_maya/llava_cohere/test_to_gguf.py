"""A Maya as GGUF files: names, values and metadata. `tests/compatibility/llama_cpp_on_cpu.py` runs llama.cpp."""

import json

import pytest
import torch
from torch.nn import functional

from modeling_maya import MayaForConditionalGeneration
from modeling_maya.llava_cohere.convert import convert
from tests.compatibility import llama_cpp_on_cpu as comparison
from tests.helpers.tiny_maya import tiny_maya

from .test_to_llava import save_maya

gguf = pytest.importorskip("gguf")
# What llama.cpp can hold of a tiny Maya.
FIELDS = {"vision_feature_select_strategy": "full", "text": {"head_dim": 8}}


def silent(line):
    """Print nothing."""


def values(tensor):
    """The values of a tensor in a GGUF file, as PyTorch's tensor in its shape."""
    shape = [int(size) for size in reversed(tensor.shape)]
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        return torch.frombuffer(bytearray(tensor.data), dtype=torch.bfloat16).reshape(shape)
    return torch.from_numpy(tensor.data.copy()).reshape(shape)


def export(folder, output, **options):
    """The readers of an export's two files."""
    convert(folder, output, to="gguf", log=silent, **options)
    assert {path.name for path in output.iterdir()} == {
        *("model.gguf", "mmproj.gguf", "config.json", "conversion.json")
    }
    return gguf.GGUFReader(output / "model.gguf"), gguf.GGUFReader(output / "mmproj.gguf")


def save(folder, **fields):
    """Save a tiny Maya whose heads fill its width."""
    model, processor = tiny_maya(**FIELDS | fields)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layers", [1, 2])
def test_every_weight_arrives(tmp_path, layers):
    folder = save(tmp_path / "maya", projector_num_layers=layers)
    model = MayaForConditionalGeneration.from_pretrained(folder)
    decoder, tower = export(folder, tmp_path / "gguf")
    stored = {
        tensor.name: values(tensor) for reader in (decoder, tower) for tensor in reader.tensors
    }
    own = model.state_dict()
    used = model.config.vision_layers_used
    equal = {
        "token_embd.weight": "model.language_model.embed_tokens.weight",
        "output_norm.weight": "model.language_model.norm.weight",
        "blk.1.attn_output.weight": "model.language_model.layers.1.self_attn.o_proj.weight",
        "blk.0.ffn_down.weight": "model.language_model.layers.0.mlp.down_proj.weight",
        "v.patch_embd.weight": "model.vision_tower.embeddings.patch_embedding.weight",
        "v.position_embd.weight": "model.vision_tower.embeddings.position_embedding.weight",
        f"v.blk.{used - 1}.ffn_up.bias": f"model.vision_tower.encoder.layers.{used - 1}.mlp.fc1.bias",
    }
    for name, key in equal.items():
        assert torch.equal(stored[name], own[key])
    # Each tensor of Maya is there once, and nothing of the layers that Maya does not read.
    read = [key for key in own if "projector" not in key and "lm_head" not in key]
    assert len(stored) == len(read) + 4
    # Two layers with llama.cpp's GELU between them give the projector's result.
    features = torch.randn(5, model.config.vision_config.hidden_size)
    hidden = functional.linear(features, stored["mm.0.weight"], stored["mm.0.bias"])
    found = functional.linear(functional.gelu(hidden), stored["mm.2.weight"], stored["mm.2.bias"])
    expected = model.model.multi_modal_projector(features[None])[0].detach()
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_another_dtype(tmp_path):
    folder = save(tmp_path / "maya")
    own = MayaForConditionalGeneration.from_pretrained(folder).state_dict()
    decoder, tower = export(folder, tmp_path / "gguf", dtype="bfloat16")
    stored = {
        tensor.name: values(tensor) for reader in (decoder, tower) for tensor in reader.tensors
    }
    key = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(stored["blk.0.attn_q.weight"], own[key].bfloat16())
    exact = ("blk.0.attn_norm.weight", "v.patch_embd.weight", "v.position_embd.weight", "mm.0.bias")
    assert all(stored[name].dtype == torch.float32 for name in exact)


def test_the_metadata(tmp_path):
    folder = save(tmp_path / "maya")
    decoder, tower = export(folder, tmp_path / "gguf")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    read = {key: field.contents() for key, field in decoder.fields.items()}
    assert read["general.architecture"] == "command-r"
    assert read["command-r.logit_scale"] == text["logit_scale"] == 4.0
    assert read["command-r.block_count"] == text["num_hidden_layers"]
    assert read["tokenizer.ggml.pre"] == "command-r"
    assert read["tokenizer.ggml.eos_token_id"] == text["eos_token_id"]
    assert read["tokenizer.ggml.tokens"][text["bos_token_id"]] == "<BOS_TOKEN>"
    assert read["tokenizer.ggml.token_type"][text["bos_token_id"]] == 3
    assert len(read["tokenizer.ggml.tokens"]) == text["vocab_size"]
    # llama.cpp adds the first token; a template that wrote it, too, would double it.
    assert read["tokenizer.ggml.add_bos_token"] is True
    assert "bos_token" not in read["tokenizer.chat_template"]
    assert "<|START_OF_TURN_TOKEN|>" in read["tokenizer.chat_template"]
    vision = {key: field.contents() for key, field in tower.fields.items()}
    assert vision["clip.projector_type"] == "mlp"
    assert vision["clip.vision.feature_layer"] == [vision["clip.vision.block_count"]]
    assert str(tmp_path) not in str(read) + str(vision)


def test_a_dry_run_writes_nothing(tmp_path):
    lines = []
    convert(save(tmp_path / "maya"), tmp_path / "gguf", to="gguf", dry_run=True, log=lines.append)
    assert "mmproj.gguf" in "\n".join(lines)
    assert not (tmp_path / "gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"tower": "clip"},
            "vision_config.model_type: expected 'siglip_vision_model'.*found 'clip_vi",
        ),
        ({"decoder": "llama"}, "text_config.model_type: expected 'cohere'.*found 'llama'"),
        (
            {"vision_feature_select_strategy": "default"},
            "select_strategy: expected 'full'.*found 'default'",
        ),
        ({"tie_word_embeddings": False}, "tie_word_embeddings: expected True.*found False"),
        ({"projector_num_layers": 3}, "projector_num_layers: expected 1 or 2.*found 3"),
        ({"projector_hidden_act": "silu"}, "projector_hidden_act: expected .*found 'silu'"),
        ({"aspect": "square"}, "image_aspect: expected 'pad'.*found 'square'"),
    ],
)
def test_what_llama_cpp_cannot_hold_is_refused(tmp_path, arguments, match):
    folder = save_maya(tmp_path / "maya", **FIELDS | arguments)
    with pytest.raises(ValueError, match=match):
        convert(folder, tmp_path / "gguf", to="gguf", log=silent)
    assert not (tmp_path / "gguf").exists()


def test_another_tokenizer_is_refused(tmp_path):
    folder = save(tmp_path / "maya")
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(stored))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: pre_tokenizer: expected that of Aya-23"
    ):
        convert(folder, tmp_path / "gguf", to="gguf", log=silent)


def test_the_comparison_finds_differences():
    answer = {"prompt": 9, "answer": [1, 2], "logprobs": [-0.5, -0.25]}
    expected = {"tokens": [[1], [2, 3]], "answers": [answer] * 3}
    assert comparison.differences(expected, expected) == ({}, 0.0)
    found = {
        "tokens": [[1], [2, 4]],
        "answers": [
            answer | {"prompt": 10},
            answer | {"answer": [1, 3]},
            answer | {"logprobs": [-0.5, -0.25 - 2 * comparison.TOLERANCE]},
        ],
    }
    wrong, largest = comparison.differences(found, expected)
    assert set(wrong) == {"tokens", "0", "1", "logprobs"}
    assert largest == pytest.approx(2 * comparison.TOLERANCE)
    assert comparison.agreement(found, expected) == pytest.approx(2 / 3, abs=1e-4)
    broken = {"tokens": [[1], [2, 3]], "answers": [answer | {"logprobs": [float("nan"), 0.0]}] * 3}
    assert "logprobs" in comparison.differences(broken, expected)[0]


def test_the_results():
    text = comparison.RESULTS.read_text(encoding="utf-8")
    found = json.loads(text)
    assert {name: row["verdict"] for name, row in found["cases"].items()} == dict.fromkeys(
        [*comparison.CASES, comparison.MINI], "same"
    )
    assert f"llama-cpp-python=={found['engine']['llama-cpp-python']}" == comparison.PACKAGE
    assert "/tmp" not in text
    mini = found["cases"][comparison.MINI]
    page = (comparison.REPOSITORY / "docs" / "serve.md").read_text(encoding="utf-8")
    quantized = round(mini["agreement"][comparison.QUANTIZED] * mini["requests"])
    assert f"{mini['requests']} of its pictures as transformers, {quantized} after" in page
    assert f"differ by up to {mini['largest_logprob_difference']:.4f}" in page
