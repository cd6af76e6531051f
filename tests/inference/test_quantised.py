"""A Maya loaded in 8 and 4 bits, as in docs/load.md: only the decoder's layers are quantized."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, TorchAoConfig

from modeling_maya import MayaForConditionalGeneration
from tests.helpers.tiny import enlarge, tiny_config, tiny_inputs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "load.md").read_text(encoding="utf-8")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    enlarge(MayaForConditionalGeneration(tiny_config(text=WIDE))).save_pretrained(folder)
    return folder


def kinds(model, part):
    """Return the class names of a part's linear layers."""
    return {
        type(module).__name__
        for name, module in model.named_modules()
        if name.startswith(part) and "Linear" in type(module).__name__
    }


def snippet():
    """The page's lines that load with bitsandbytes."""
    found = [part.split("```")[0] for part in PAGE.split("```python\n")[1:]]
    (lines,) = [each for each in found if "BitsAndBytesConfig" in each]
    return lines


@pytest.mark.parametrize(
    ("bits", "layer", "tolerance"), [("8bit", "Linear8bitLt", 0.05), ("4bit", "Linear4bit", 0.3)]
)
def test_only_the_decoder_is_quantised(folder, tmp_path, bits, layer, tolerance):
    lines = snippet().replace("load_in_4bit", f"load_in_{bits}")
    lines = lines.replace('"runs/mini"', repr(str(folder))).replace(
        "torch.bfloat16", "torch.float32"
    )
    scope: dict = {}
    exec(lines, scope)
    model = scope["model"].eval()
    assert kinds(model, "model.language_model") == {layer}
    for part in ("model.vision_tower", "model.multi_modal_projector", "lm_head"):
        assert kinds(model, part) == {"Linear"}
    # bitsandbytes repacks 4-bit weights on the CPU at their first use, and would save them in this form.
    model.save_pretrained(tmp_path)
    full = MayaForConditionalGeneration.from_pretrained(folder).eval()
    inputs = tiny_inputs(full.config, [1, 2])
    with torch.no_grad():
        wanted, found = full(**inputs).logits, model(**inputs).logits
    seen = inputs["attention_mask"].bool()
    off = (found - wanted)[seen].norm() / wanted[seen].norm()
    assert 0 < off < tolerance
    again = MayaForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, found)


def test_torchao_loads_answers_and_saves(folder, tmp_path):
    quantization = pytest.importorskip(
        "torchao.quantization", reason="the int8 weights of docs/load.md are torchao's"
    )
    (options,) = re.findall(r"`quantization_config=(TorchAoConfig\(.*kept\))`", PAGE)
    (kept,) = re.findall(r"^kept = .*$", snippet(), re.MULTILINE)
    scope = {"TorchAoConfig": TorchAoConfig, **vars(quantization)}
    exec(f"{kept}\nconfig = {options}", scope)
    auto = AutoModelForImageTextToText
    model = auto.from_pretrained(folder, quantization_config=scope["config"], dtype=torch.float32)

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            decoder = name.startswith("model.language_model.")
            assert (type(module.weight).__name__ == "Int8Tensor") == decoder, name
    full = MayaForConditionalGeneration.from_pretrained(folder).eval()
    kept_alone = {
        name: value
        for name, value in full.state_dict().items()
        if not name.startswith("model.language_model.layers")
    }
    assert {name.split(".")[1] for name in kept_alone} > {"vision_tower", "multi_modal_projector"}
    for name, value in kept_alone.items():
        assert torch.equal(model.state_dict()[name], value), name

    inputs = tiny_inputs(full.config, [1, 2])
    length = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    with torch.no_grad():
        wanted, found = full(**inputs).logits, model(**inputs).logits
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 4), value=1)
        again = model(answer, inputs["pixel_values"], mask).logits[:, length - 1 : -1]
    seen = inputs["attention_mask"].bool()
    assert 0 < (found - wanted)[seen].norm() / wanted[seen].norm() < 0.05
    # Before the last token the answer may not end.
    again[..., full.config.text_config.eos_token_id] = -torch.inf
    assert torch.equal(answer[:, length:], again.argmax(-1))

    model.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}
    loaded = auto.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, found)


def test_the_page_quotes_what_was_measured():
    results = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "quantised.json"
    record = json.loads(results.read_text())
    rows, tiny = ({row["way"]: row for row in part["rows"]} for part in (record, record["tiny"]))
    text = " ".join(PAGE.split())
    for way in ("bfloat16", "bitsandbytes int8", "torchao int8"):
        assert f"{rows[way]['logits']:.3f} ({way})" in text
    eight, ao = (100 * rows[way]["same"] for way in ("bitsandbytes int8", "torchao int8"))
    assert f"{eight:.1f} % and {ao:.1f} % of the greedy answers" in text
    assert "error" in rows["bitsandbytes nf4"]
    assert f"model of width {record['tiny']['hidden_size']} with random weights" in text
    four, eight = (tiny[f"bitsandbytes {way}"]["logits"] for way in ("nf4", "int8"))
    assert f"changes the logits by {four:.3f}, bitsandbytes int8 by {eight:.3f}" in text
    # A figure belongs to a commit.
    assert record["package"]["modified"] is False
