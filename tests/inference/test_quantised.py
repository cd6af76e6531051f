"""A Maya loaded in 8 and 4 bits with bitsandbytes, as in docs/load.md: only the decoder's layers are quantized."""

import json
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize(
    ("bits", "layer", "tolerance"), [("8bit", "Linear8bitLt", 0.05), ("4bit", "Linear4bit", 0.3)]
)
def test_only_the_decoder_is_quantised(folder, tmp_path, bits, layer, tolerance):
    snippets = [part.split("```")[0] for part in PAGE.split("```python\n")[1:]]
    (lines,) = [snippet for snippet in snippets if "BitsAndBytesConfig" in snippet]
    lines = lines.replace("load_in_4bit", f"load_in_{bits}")
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


def test_the_page_quotes_what_was_measured():
    results = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "quantised.json"
    rows = {row["way"]: row for row in json.loads(results.read_text())["rows"]}
    text = " ".join(PAGE.split())
    for way in ("bfloat16", "bitsandbytes int8", "torchao int8"):
        assert f"{rows[way]['logits']:.3f} ({way})" in text
    eight, ao = (100 * rows[way]["same"] for way in ("bitsandbytes int8", "torchao int8"))
    assert f"{eight:.1f} % and {ao:.1f} % of the greedy answers" in text
    assert "error" in rows["bitsandbytes nf4"]
