"""peft adapters: chat, continued training and merge; one-line errors for wrong bases and adapters."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file

from maya_vlm.model_card.hub.publish import check_model
from maya_vlm.training.inference.chat import chat
from maya_vlm.training.inference.load import load
from maya_vlm.training.inference.merge import merge
from maya_vlm.training.run.train import train
from modeling_maya import MayaConfig, MayaForConditionalGeneration
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture
from tests.run.tiny_run import make_data, write

MODULES = r".*language_model.*\.(q_proj|v_proj)"
PROJECTOR = "multi_modal_projector"


def save_adapter(base: Path, folder: Path, config=None, **fields) -> Path:
    """Write an adapter with random values, using only peft."""
    config = config or LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, **fields)
    model = get_peft_model(MayaForConditionalGeneration.from_pretrained(base), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def values(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def edit(file: Path, **fields) -> None:
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**found, **fields}), encoding="utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_maya(tmp_path_factory.mktemp("base") / "maya")


@pytest.fixture
def adapter(base, tmp_path) -> Path:
    return save_adapter(base, tmp_path / "adapter")


@pytest.mark.parametrize("whole", [None, [PROJECTOR]])
def test_merged_is_base_and_adapter(base, tmp_path, whole):
    adapter = save_adapter(base, tmp_path / "adapter", modules_to_save=whole)
    merged = merge(str(adapter), tmp_path / "merged")
    before, after = values(base), values(merged)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name
        for name in before
        if ("language_model" in name and ("q_proj" in name or "v_proj" in name))
        or (whole and PROJECTOR in name)
    }
    low = load_file(adapter / "adapter_model.safetensors")
    name = "model.language_model.layers.0.self_attn.q_proj"
    product = (
        low[f"base_model.model.{name}.lora_B.weight"]
        @ low[f"base_model.model.{name}.lora_A.weight"]
    )
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 2 * product)
    check_model(merged)
    # Chat and evaluation load the same model.
    network, _ = load(str(adapter))
    assert all(
        torch.equal(value, after[key])
        for key, value in network.state_dict().items()
        if key in after
    )


def test_the_commands(base, adapter, tmp_path, capsys):
    picture = tmp_path / "picture.png"
    tiny_picture(2).save(picture)
    maya = Path(sys.executable).with_name("maya")
    done = subprocess.run(
        [str(maya), "merge", str(adapter), str(tmp_path / "merged")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = [
        chat(str(f), str(picture), "Why?", max_new_tokens=6) for f in (adapter, tmp_path / "merged")
    ]
    assert said[0] == said[1]
    done = subprocess.run(
        [str(maya), "merge", str(adapter), str(tmp_path / "merged")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "expected a new or empty folder" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_base_seen_from_the_adapter_and_one_that_is_named(base, adapter, tmp_path):
    expected = values(merge(str(adapter), tmp_path / "one"))
    shutil.copytree(base, adapter / "beside")
    edit(adapter / "adapter_config.json", base_model_name_or_path="beside")
    found = values(merge(str(adapter), tmp_path / "two"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    edit(adapter / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.raises(
        FileNotFoundError, match=r"base_model_name_or_path: no model at /gone/base: .* --base"
    ):
        merge(str(adapter), tmp_path / "three")
    found = values(merge(str(adapter), tmp_path / "three", str(base)))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_dtype(adapter, tmp_path):
    merged = merge(str(adapter), tmp_path / "merged", dtype="bfloat16")
    assert {value.dtype for value in values(merged).values()} == {torch.bfloat16}
    with pytest.raises(
        ValueError, match="dtype: expected float32, bfloat16, float16, found 'int8'"
    ):
        merge(str(adapter), tmp_path / "other", dtype="int8")


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def whole_model_too(folder: Path) -> None:
    save_tiny_maya(folder)


def setting(**fields):
    return lambda folder: edit(folder / "adapter_config.json", **fields)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "adapter_model.safetensors: cut short"),
        (pickled, r"found only a pickle \(adapter_model.bin\), which may hold code and is never read"),
        (without_weights, "expected adapter_model.safetensors"),
        (whole_model_too, "holds a full model and an adapter"),
        (setting(peft_type=None), "peft_type: expected a kind of adapter"),
        (setting(peft_type="NEW"), "cannot be loaded"),
        (setting(r=8), r"tensors do not fit|cannot be loaded"),
        (setting(target_modules="nothing"), "cannot be loaded"),
        (setting(base_model_name_or_path=None), "expected the base's folder or repository, found None"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json: not JSON"),
    ],
)  # fmt: skip
def test_damaged_adapters(adapter, tmp_path, damage, words):
    damage(adapter)
    for use in (lambda: merge(str(adapter), tmp_path / "merged"), lambda: load(str(adapter))):
        with pytest.raises((ValueError, OSError), match=words) as error:
            use()
        assert str(error.value).isprintable()
        assert str(adapter) in str(error.value)
    assert not (tmp_path / "merged").exists()
    assert not list(tmp_path.glob(".merged*"))


def test_bases_that_do_not_fit(base, adapter, tmp_path):
    other = save_tiny_maya(tmp_path / "other")
    config = MayaConfig.from_pretrained(other)
    config.text_config.num_hidden_layers = 1
    MayaForConditionalGeneration(config).save_pretrained(other)
    with pytest.raises(ValueError, match=r"4 tensors do not fit, such as .*layers\.1\."):
        merge(str(adapter), tmp_path / "merged", str(other))
    with pytest.raises(
        ValueError,
        match=r"expected a full model as base, found .*, an adapter: merge that one first",
    ):
        merge(str(adapter), tmp_path / "merged", str(adapter))
    with pytest.raises(ValueError, match=r"expected an adapter .*found a whole model"):
        merge(str(base), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_other_kinds_are_merged_or_refused(base, tmp_path, kind):
    if kind == "ia3":
        config = IA3Config(target_modules=MODULES, feedforward_modules=[])
        save_adapter(base, tmp_path / "adapter", config)
        merged = merge(str(tmp_path / "adapter"), tmp_path / "merged")
        name = "model.language_model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(values(base)[name], values(merged)[name])
        return
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2,
                                token_dim=32, num_attention_heads=4)  # fmt: skip
    save_adapter(base, tmp_path / "adapter", config)
    with pytest.raises(ValueError, match=r"cannot be merged|cannot be loaded"):
        merge(str(tmp_path / "adapter"), tmp_path / "merged")


# ------------------------------------------------------------------------------ continued


def recipe(folder: Path, checkpoint: Path, **stage) -> str:
    data = make_data(folder / "data", images=2, languages=("en",))
    made = {
        "output_dir": str(folder / "run"),
        "model": {"checkpoint": str(checkpoint)},
        "stages": [
            {
                "name": "more",
                "batch_size": 2,
                "data": [{"path": str(data)}],
                "train": [{"pattern": ".*", "rate": "frozen"}],
                "args": {"max_steps": 1},
                **stage,
            }
        ],
    }
    return str(write(made, folder / "recipe.yaml"))


def form(**changes) -> dict:
    return {"rate": 1e-8, "r": 4, "alpha": 8, "target_modules": MODULES, **changes}


def test_a_stage_with_an_adapter_continues_it(adapter, tmp_path):
    run = train(recipe(tmp_path, adapter, adapter=form()))
    one = load_file(adapter / "adapter_model.safetensors")
    two = load_file(run / "more" / "adapter" / "adapter_model.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
    files = [folder / "adapter_config.json" for folder in (adapter, run / "more" / "adapter")]
    names = [json.loads(file.read_text())["base_model_name_or_path"] for file in files]
    assert names[0] == names[1]
    expected = values(merge(str(adapter), tmp_path / "merged"))
    for name, value in values(run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


def test_modules_that_were_saved_whole_go_on_learning(base, tmp_path):
    adapter = save_adapter(base, tmp_path / "adapter", modules_to_save=[PROJECTOR])
    rules = [{"pattern": PROJECTOR, "rate": 1e-8}, {"pattern": ".*", "rate": "frozen"}]
    run = train(recipe(tmp_path, adapter, adapter=form(), train=rules))
    expected = values(merge(str(adapter), tmp_path / "merged"))
    for name, value in values(run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)
    # If they were frozen, they would be lost.
    with pytest.raises(ValueError, match=r"tensors do not fit, such as .*multi_modal_projector"):
        train(
            recipe(tmp_path, adapter, adapter=form(), name="other"), output_dir=str(tmp_path / "o")
        )


def test_a_stage_without_one_starts_from_the_merged_model(adapter, tmp_path):
    train_rules = [{"pattern": PROJECTOR, "rate": 1e-8}, {"pattern": ".*", "rate": "frozen"}]
    run = train(recipe(tmp_path, adapter, train=train_rules))
    expected = values(merge(str(adapter), tmp_path / "merged"))
    for name, value in values(run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 8}, "the adapter to continue has r 4, the stage's has 8"),
        ({"alpha": 16}, "has lora_alpha 8, the stage's has 16"),
        ({"type": "dora"}, "has use_dora False, the stage's has True"),
        ({"target_modules": r".*language_model.*\.q_proj"}, "tensors do not fit"),
    ],
)
def test_an_adapter_of_another_form_is_not_continued(adapter, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        train(recipe(tmp_path, adapter, adapter=form(**changes)))
    assert not (tmp_path / "run" / "more").exists()


def test_an_adapter_of_a_decoder_is_no_checkpoint(tmp_path):
    from tests.helpers.tiny_decoders import save_decoder

    decoder = save_decoder(tmp_path / "decoder", "qwen3")
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(decoder), LoraConfig(target_modules=["q_proj"])
    )
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=r"model.checkpoint: .*model_type: expected 'maya', found 'qwen3'"
    ):
        train(recipe(tmp_path, tmp_path / "adapter"))
    with pytest.raises(ValueError, match="does not take images and text"):
        load(str(tmp_path / "adapter"))
