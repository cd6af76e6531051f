"""Maya on disk: names of the weights, what is saved and loaded, with and without this package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from modeling_maya import MayaForConditionalGeneration, MayaModel
from tests.helpers.tiny import DECODERS, TOWERS, tiny_inputs, tiny_model

# These names are in checkpoints, LoRA targets, freezing rules and logs: they never change.
DECODER_LAYER = [
    "input_layernorm.weight",
    "mlp.down_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.v_proj.weight",
]
TOWER_LAYER = [
    f"{part}.{kind}"
    for part in (
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
        "self_attn.k_proj",
        "self_attn.out_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    )
    for kind in ("bias", "weight")
]
SAVED_NAMES = sorted(
    [
        "model.language_model.embed_tokens.weight",
        "model.language_model.norm.weight",
        *(f"model.language_model.layers.{i}.{part}" for i in range(2) for part in DECODER_LAYER),
        *(
            f"model.multi_modal_projector.layers.{i}.{k}"
            for i in (0, 2)
            for k in ("bias", "weight")
        ),
        "model.vision_tower.embeddings.patch_embedding.bias",
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.vision_tower.embeddings.position_embedding.weight",
        *(
            f"model.vision_tower.encoder.layers.{i}.{part}"
            for i in range(3)
            for part in TOWER_LAYER
        ),
    ]
)


def saved(model, folder) -> dict[str, torch.Tensor]:
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def test_names_of_the_weights(tmp_path):
    assert sorted(saved(tiny_model(), tmp_path)) == SAVED_NAMES


def test_an_untied_head_is_saved_as_lm_head(tmp_path):
    names = sorted(saved(tiny_model(tie_word_embeddings=False), tmp_path))
    assert names == sorted([*SAVED_NAMES, "lm_head.weight"])


def test_a_tower_kept_whole_is_saved_whole(tmp_path):
    names = set(saved(tiny_model(vision_keep_unused_weights=True), tmp_path))
    extra = names - set(SAVED_NAMES)
    assert {name for name in extra if "encoder.layers.3." in name}
    assert "model.vision_tower.post_layernorm.weight" in extra
    assert "model.vision_tower.head.probe" in extra


@torch.no_grad()
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_save_and_load(tmp_path, decoder, tower):
    model = tiny_model(decoder, tower)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is MayaForConditionalGeneration
    inputs = tiny_inputs(model.config, images=[1, 0])
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0, atol=0)


@torch.no_grad()
def test_the_headless_model_loads_from_a_whole_one_and_back(tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "whole")
    headless = AutoModel.from_pretrained(tmp_path / "whole")
    assert type(headless) is MayaModel
    inputs = tiny_inputs(model.config, images=[1, 0])
    expected = model.model(**inputs).last_hidden_state
    torch.testing.assert_close(headless(**inputs).last_hidden_state, expected, rtol=0, atol=0)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")) is type(model)
    # Without a head on disk a model with a head of its own is not complete.
    headless.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"1 missing keys \(lm_head.weight\)"):
        MayaForConditionalGeneration.from_pretrained(tmp_path / "headless")


# A loading report that is not clean is an error


def edit(folder, change) -> None:
    """Save the weights of a folder again after `change(weights)`."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("auto", [AutoModelForImageTextToText, AutoModel])
def test_missing_and_unexpected_weights_are_errors(tmp_path, auto):
    tiny_model().save_pretrained(tmp_path)
    name = "model.multi_modal_projector.layers.2.weight"
    edit(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(ValueError, match=r"1 missing keys \(.*layers\.2\.weight\)"):
        auto.from_pretrained(tmp_path)
    _, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert len(report["missing_keys"]) == 1

    tiny_model().save_pretrained(tmp_path)
    edit(tmp_path, lambda weights: weights.update({"model.mm_projector.0.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"1 unexpected keys \(.*mm_projector"):
        auto.from_pretrained(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("tower", ["siglip", "siglip2", "clip"])
def test_unused_vision_weights_on_disk_are_no_error(tmp_path, tower):
    """A tower saved whole loads into a model that leaves part of it out; other strangers in it do not."""
    whole = tiny_model(tower=tower, vision_keep_unused_weights=True)
    whole.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["vision_keep_unused_weights"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    lean = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert len(lean.model.vision_tower.encoder.layers) == 3
    inputs = tiny_inputs(lean.config, images=[1])
    torch.testing.assert_close(lean(**inputs).logits, whole(**inputs).logits, rtol=0, atol=0)

    stranger = "model.vision_tower.encoder.layers.4.mlp.fc1.weight"
    edit(tmp_path, lambda weights: weights.update({stranger: torch.ones(1)}))
    with pytest.raises(ValueError, match=r"1 unexpected keys \(.*layers\.4"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)


def test_another_decoder_than_the_weights_is_an_error(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="8 unexpected keys"):
        MayaForConditionalGeneration.from_pretrained(tmp_path)


def test_an_adapter_folder_loads_base_and_adapter(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(
            target_modules=r".*language_model.*\.(q|v)_proj",
            modules_to_save=["multi_modal_projector"],
            init_lora_weights=False,
        ),
    ).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    inputs = tiny_inputs(model.config, images=[1])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = adapted(**inputs).logits
        assert not torch.allclose(expected, model(**inputs).logits)
        torch.testing.assert_close(loaded(**inputs).logits, expected)


# Where this package is not installed

FRESH = """
import json, sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

source, target = sys.argv[1:]
assert "modeling_maya" not in sys.modules
report = {"config": type(AutoConfig.from_pretrained(source, trust_remote_code=True)).__name__}
inputs = torch.load(source + "/inputs.pt")
for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
    model = auto.from_pretrained(source, trust_remote_code=True)
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    report[auto.__name__] = [type(model).__name__, generated.tolist()]
headless = AutoModel.from_pretrained(source, trust_remote_code=True)
report["AutoModel"] = [type(headless).__name__, headless.training]
from_config = AutoModel.from_config(headless.config, trust_remote_code=True)
assert type(from_config).__name__ == "MayaModel"
assert "modeling_maya" not in sys.modules
model.save_pretrained(target)
torch.save(inputs, target + "/inputs.pt")
print(json.dumps(report))
"""


def test_a_folder_loads_without_this_package_and_again_when_saved_from_there(tmp_path):
    model = tiny_model()
    inputs = tiny_inputs(model.config, images=[1, 2, 0])
    generated = model.generate(**inputs, do_sample=False, max_new_tokens=5).tolist()
    model.save_pretrained(tmp_path / "first")
    torch.save(inputs, tmp_path / "first" / "inputs.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    # An installed package would still be on the path: a module that refuses stands in its way.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "modeling_maya.py").write_text("raise ImportError('not for this test')")
    environment["PYTHONPATH"] = str(tmp_path / "path")
    for source, target in (("first", "second"), ("second", "third")):
        done = subprocess.run(
            [sys.executable, "-c", FRESH, str(tmp_path / source), str(tmp_path / target)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1]) == {
            "config": "MayaConfig",
            "AutoModelForImageTextToText": ["MayaForConditionalGeneration", generated],
            "AutoModelForCausalLM": ["MayaForConditionalGeneration", generated],
            "AutoModel": ["MayaModel", False],
        }
        config = json.loads((tmp_path / target / "config.json").read_text())
        assert (
            config["auto_map"]
            == json.loads((tmp_path / "first" / "config.json").read_text())["auto_map"]
        )
        files = {"configuration_maya.py", "modeling_maya.py", "model.safetensors", "config.json"}
        assert files <= set(os.listdir(tmp_path / target))
