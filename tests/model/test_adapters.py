"""Adapters: which parameters learn and how fast; saved and merged exactly; resumed exactly."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageTextToText, CohereConfig, SiglipVisionConfig
from transformers.utils import is_bitsandbytes_available

from maya_vlm.training.model import adapters
from maya_vlm.training.model.adapters import (
    ADAPTER,
    WEIGHTS,
    add_adapter,
    bytes_saved,
    check_bitsandbytes,
    load_adapter,
    merge_adapter,
    quantization,
    save_adapter,
    target_layers,
    trained_modules,
)
from maya_vlm.training.model.freezing import apply_rules, format_table, parameter_groups
from maya_vlm.training.recipe import (
    RECIPES,
    AdapterRecipe,
    DataRecipe,
    Rule,
    StageRecipe,
    load_recipe,
)
from maya_vlm.training.run.memory import stage_memory
from maya_vlm.training.run.train import train
from maya_vlm.training.run.trainer import LineCallback, MayaTrainer
from modeling_maya import MayaConfig, MayaForConditionalGeneration
from tests.helpers.tiny import enable_checkpointing, tiny_inputs, tiny_model

from ..run.tiny_run import logged, make_recipe, training_log, write

PROJECTOR = [Rule("multi_modal_projector", 1e-3), Rule(".*", "frozen")]
LORA = AdapterRecipe(rate=2e-4, r=4, alpha=8)
DORA = AdapterRecipe(rate=2e-4, r=4, alpha=8, type="dora")

needs_bitsandbytes = pytest.mark.skipif(
    not is_bitsandbytes_available(), reason="quantized weights are bitsandbytes' work"
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Return the folder of a finished tiny Maya."""
    folder = tmp_path_factory.mktemp("base") / "maya"
    tiny_model().save_pretrained(folder)
    return folder


def adapted(model, adapter=LORA, rules=PROJECTOR, noise=0.0):
    """Return `model` with an adapter and rules applied; trainable parameters are moved by `noise`."""
    torch.manual_seed(1)
    add_adapter(model, adapter, rules)
    apply_rules(model, rules, adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(noise * torch.randn_like(parameter))
    return model.eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**tiny_inputs(tiny_model().config, [1, 2])).logits


# ------------------------------------------------------------------------------ which parameters learn


def test_the_table_shows_adapters_apart():
    adapter = AdapterRecipe(rate=2e-4, r=4, lora_plus_ratio=16, type="dora")
    model = add_adapter(tiny_model(), adapter, PROJECTOR)
    rows = apply_rules(model, PROJECTOR, adapter)
    found = {(row.part, row.rate): row.parameters for row in rows}
    plain = dict.fromkeys(("vision_tower", "language_model", "multi_modal_projector"), 0)
    for name, parameter in tiny_model().named_parameters():
        plain[name.split(".")[1]] += parameter.numel()
    layers = [m for n, m in tiny_model().named_modules() if "language" in n and "_proj" in n]
    assert found == {
        ("vision_tower", None): plain["vision_tower"],
        ("multi_modal_projector", 1e-3): plain["multi_modal_projector"],
        ("language_model", None): plain["language_model"],
        ("language_model adapter A", 2e-4): sum(4 * m.in_features for m in layers),
        ("language_model adapter B", 16 * 2e-4): sum(4 * m.out_features for m in layers),
        ("language_model adapter magnitude", 2e-4): sum(m.out_features for m in layers),
    }
    text = format_table(rows)
    assert "0.0032" in text
    widths = {line.index("trained") for line in text.splitlines()[1:-2] if "trained" in line}
    assert len(widths) == 1, text


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_adapter_and_projector_get_gradients(adapter, checkpointing):
    model = adapted(tiny_model(), adapter, noise=0.1).train()
    if checkpointing:
        enable_checkpointing(model)
    inputs = tiny_inputs(model.config, [1, 2])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    expected = {n for n, _ in model.named_parameters() if ".lora_" in n or "projector" in n}
    assert learned == expected
    assert len(expected) == (4 + 14 * 2 if adapter is LORA else 4 + 14 * 3)
    if checkpointing:
        plain = adapted(tiny_model(), adapter, noise=0.1).train()
        plain(**inputs, labels=inputs["input_ids"]).loss.backward()
        other = dict(plain.named_parameters())
        for name in expected:
            same = dict(model.named_parameters())[name].grad
            torch.testing.assert_close(same, other[name].grad, rtol=1e-5, atol=1e-7)


def test_lora_plus_rates_are_those_of_the_optimizer():
    adapter = AdapterRecipe(rate=2e-4, r=4, lora_plus_ratio=16, type="dora")
    model = adapted(tiny_model(), adapter)
    groups = parameter_groups(model, PROJECTOR, 0.1, adapter)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            assert found.pop(id(parameter)) == (2e-4, 0.1), name
        elif ".lora_B." in name:
            assert found.pop(id(parameter)) == (16 * 2e-4, 0.1), name
        elif ".lora_magnitude_vector." in name:
            assert found.pop(id(parameter)) == (2e-4, 0.0), name
        elif "multi_modal_projector" in name:
            # peft's own LoRA+ optimizer would use B's rate for the biases.
            decay = 0.1 if name.endswith("weight") else 0.0
            assert found.pop(id(parameter)) == (1e-3, decay), name
    assert not found


def test_everything_but_the_adapter_may_be_frozen():
    rules = [Rule(".*", "frozen")]
    model = adapted(tiny_model(), LORA, rules)
    assert trained_modules(model) == []
    with pytest.raises(ValueError, match="found every parameter frozen"):
        apply_rules(tiny_model(), rules)


# ------------------------------------------------------------------------------ which layers


@pytest.mark.parametrize(
    ("wanted", "count", "ends"),
    [
        (None, 14, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["q_proj", "v_proj"], 4, {"q_proj", "v_proj"}),
        (["self_attn.q_proj"], 2, {"q_proj"}),
        (r"layers\.1\..*(q|v)_proj", 2, {"q_proj", "v_proj"}),
        (r"mlp", 6, {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_target_modules(wanted, count, ends, tmp_path, base):
    """The vision tower has layers with the same names, but never gets an adapter."""
    adapter = AdapterRecipe(rate=1e-3, r=2, target_modules=wanted)
    targets = target_layers(tiny_model(), adapter, PROJECTOR)
    assert len(targets) == count
    assert {name.rpartition(".")[2] for name in targets} == ends
    model = adapted(tiny_model(), adapter, noise=0.1)
    inside = {n.partition(".lora_")[0] for n, _ in model.named_parameters() if ".lora_" in n}
    assert inside == set(targets)
    assert all(name.startswith("model.language_model.") for name in inside)
    # On the base, the saved pattern matches the same layers.
    save_adapter(model, tmp_path)
    loaded = PeftModel.from_pretrained(MayaForConditionalGeneration.from_pretrained(base), tmp_path)
    torch.testing.assert_close(logits(loaded.eval()), logits(model))


def test_the_default_is_one_readable_pattern(tmp_path):
    save_adapter(adapted(tiny_model()), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == (
        r"model\.language_model\..*\.(down_proj|gate_proj|k_proj|o_proj|q_proj|up_proj|v_proj)"
    )
    assert config["modules_to_save"] == ["model.multi_modal_projector"]


@pytest.mark.parametrize(
    ("change", "rules", "message"),
    [
        ({"target_modules": "out_proj"}, PROJECTOR, "linear layers of the decoder, found 'out_proj': use some of down_proj, "),
        ({"target_modules": ["q_proj", "qq_proj"]}, PROJECTOR, "linear layers of the decoder, found 'qq_proj'"),
        ({}, [Rule("projector", 0.1), Rule("q_proj", 0.1, top_layers=1), Rule(".*", "frozen")],
         r"layers.1.self_attn.q_proj.weight learns at 0.1, but its layer gets an adapter"),
        ({}, [Rule("embed_tokens", 0.1), Rule(".*", "frozen")], "an adapter cannot store embeddings or head, which may be one"),
        ({"quantize": "nf4", "target_modules": ["q_proj"]}, [Rule("mlp.up", 0.1), Rule(".*", "frozen")],
         "up_proj.weight learns at 0.1, but its layer is quantized"),
        ({}, [Rule("projektor", 0.1), Rule(".*", "frozen")], r"train\[0\].pattern: .*decides no parameter"),
    ],
)  # fmt: skip
def test_bad_targets(change, rules, message):
    adapter = AdapterRecipe(rate=1e-3, **change)
    with pytest.raises(ValueError, match=message):
        add_adapter(tiny_model(), adapter, rules)


# ------------------------------------------------------------------------------ saving, merging


@pytest.mark.parametrize("adapter", [LORA, DORA], ids=["lora", "dora"])
def test_merged_is_the_same_model(adapter, base, tmp_path):
    model = adapted(MayaForConditionalGeneration.from_pretrained(base), adapter, noise=0.1)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model)
    assert (expected - logits(tiny_model())).abs().max() > 1, "the adapter has no effect"

    loaded = AutoModelForImageTextToText.from_pretrained(base)
    loaded = PeftModel.from_pretrained(loaded, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)

    merge_adapter(str(base), tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    merged, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "merged", output_loading_info=True
    )
    assert not any(report.values()), report
    assert not [n for n, _ in merged.named_parameters() if "lora" in n or "base_layer" in n]
    torch.testing.assert_close(logits(merged.eval()), expected, rtol=1e-4, atol=2e-5)
    for name, value in tiny_model().state_dict().items():
        changes = "projector" in name or name.endswith("_proj.weight") and "language" in name  # noqa: RUF021
        assert torch.equal(value, merged.state_dict()[name]) != changes, name


def test_other_modules_that_learn_are_saved_whole(base, tmp_path):
    """Train norms of the decoder, the tower's last layer, and one further bias."""
    rules = [
        Rule(r"language_model\..*norm", 1e-3),
        Rule(r"vision_tower\.encoder\.layers\.2\.", 1e-3),
        Rule(r"vision_tower\.encoder\.layers\.1\.mlp\.fc1\.bias", 1e-3),
        Rule(".*", "frozen"),
    ]
    model = adapted(MayaForConditionalGeneration.from_pretrained(base), LORA, rules, noise=0.1)
    assert set(trained_modules(model)) == {
        "model.vision_tower.encoder.layers.1.mlp.fc1",
        "model.vision_tower.encoder.layers.2",
        *(f"model.language_model.layers.{i}.input_layernorm" for i in (0, 1)),
        "model.language_model.norm",
    }
    save_adapter(model, tmp_path)
    merged = merge_adapter(str(base), tmp_path).eval()
    torch.testing.assert_close(logits(merged), logits(model), rtol=1e-4, atol=2e-5)


def test_a_saved_adapter_is_loaded_bit_for_bit_or_refused(tmp_path):
    model = adapted(tiny_model(), DORA, noise=0.1)
    save_adapter(model, tmp_path)
    other = adapted(tiny_model(), DORA)
    load_adapter(other, tmp_path)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
    with pytest.raises(ValueError, match=r"14 tensors do not fit, such as .*magnitude"):
        load_adapter(adapted(tiny_model(), LORA), tmp_path)
    wide = AdapterRecipe(rate=1e-3, r=8, type="dora")
    with pytest.raises(ValueError, match=r"28 tensors do not fit.* expected \(8, 48\), found \(4,"):
        load_adapter(adapted(tiny_model(), wide), tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    save_adapter(adapted(tiny_model()), tmp_path / "adapter")
    deeper = tiny_model(text={"num_hidden_layers": 3})
    deeper.save_pretrained(tmp_path / "deeper")
    with pytest.raises(ValueError, match=r"14 tensors do not fit, such as .*layers\.2"):
        merge_adapter(str(tmp_path / "deeper"), tmp_path / "adapter")


# ------------------------------------------------------------------------------ quantization


class Decoder(nn.Module):
    """A model with one linear layer at the name of a Maya's decoder layer."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.model = nn.ModuleDict({"language_model": nn.ModuleDict({"up": layer})})


@needs_bitsandbytes
@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("nf4", False), ("int8", True)])
def test_bytes_saved_are_what_bitsandbytes_takes(kind, double):
    import bitsandbytes

    adapter = AdapterRecipe(rate=1e-3, quantize=kind, double_quant=double)
    plain = nn.Linear(1024, 512, bias=False)
    expected = 4 * 1024 * 512 - bytes_saved(Decoder(plain), adapter, 4)
    if kind == "int8":
        _, constants, _ = bitsandbytes.functional.int8_vectorwise_quant(plain.weight.data.half())
        taken = 1024 * 512 + 4 * constants.numel()
    else:
        packed, state = bitsandbytes.functional.quantize_4bit(
            plain.weight.data, quant_type="nf4", compress_statistics=double
        )
        taken = packed.nbytes + state.absmax.nbytes
        taken += state.state2.absmax.nbytes if double else 0
    assert taken == expected


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_only_the_decoder_is_quantized_and_the_base_stays_exact(kind, base, tmp_path):
    adapter = AdapterRecipe(rate=1e-3, r=4, alpha=8, quantize=kind)
    model = MayaForConditionalGeneration.from_pretrained(
        base, dtype=torch.float32, quantization_config=quantization(adapter, torch.float32)
    )
    for module in model.modules():
        # On CPUs with bfloat16, bitsandbytes has an inference path that needs wider matrices.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    adapted(model, adapter, noise=0.1)
    # The table counts weights, not the bytes that store them.
    rows = apply_rules(model, PROJECTOR, adapter)
    plain = sum(p.numel() for p in tiny_model().parameters())
    assert sum(row.parameters for row in rows if "adapter" not in row.part) == plain
    packed = {n for n, p in model.named_parameters() if not p.dtype.is_floating_point}
    layers = target_layers(tiny_model(), adapter, PROJECTOR)
    assert packed == {f"{name}.base_layer.weight" for name in layers}

    inputs = tiny_inputs(model.config, [1, 2])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {n for n, _ in model.named_parameters() if ".lora_" in n or "projector" in n}

    save_adapter(model, tmp_path)
    merged = merge_adapter(str(base), tmp_path).eval()
    state, old, new = load_file(tmp_path / WEIGHTS), tiny_model().state_dict(), merged.state_dict()
    for name in layers:
        b, a = (state[f"base_model.model.{name}.lora_{x}.weight"] for x in "BA")
        exact = old[f"{name}.weight"] + 8 / 4 * b @ a
        torch.testing.assert_close(new[f"{name}.weight"], exact, rtol=1e-6, atol=1e-6)
    # The trained model had rounded weights: it is close to the merged model, closer than the base.
    apart = (logits(model) - logits(merged)).abs().mean()
    assert 0 < apart < (logits(tiny_model()) - logits(merged)).abs().mean()


def test_bitsandbytes_is_asked_for_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(adapters, "is_bitsandbytes_available", lambda: False)
    data = [DataRecipe("x")]

    def stage(**changes) -> StageRecipe:
        return StageRecipe("finetune", data, PROJECTOR, **changes)

    check_bitsandbytes(stage(adapter=LORA, args={"optim": "adamw_torch_fused"}))
    for optimizer in ("adamw_8bit", "paged_adamw_8bit", "paged_lion_32bit", "adamw_bnb_8bit"):
        with pytest.raises(ValueError, match=f"finetune: args.optim {optimizer} needs the package"):
            check_bitsandbytes(stage(args={"optim": optimizer}))
    with pytest.raises(ValueError, match=r"adapter\.quantize int8 needs the package"):
        check_bitsandbytes(stage(adapter=AdapterRecipe(rate=1e-3, quantize="int8")))
    monkeypatch.setattr(adapters, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_bitsandbytes(stage(adapter=LORA))
    with pytest.raises(
        ValueError, match="quantize int8: every process must hold quantized weights unsharded"
    ):
        check_bitsandbytes(stage(adapter=AdapterRecipe(rate=1e-3, quantize="int8")))


# ------------------------------------------------------------------------------ whole runs


def recipe_file(folder: Path, adapter: dict, **args) -> Path:
    """Return the tiny recipe with an adapter in its second stage."""
    recipe = make_recipe(folder)
    recipe["stages"][1] |= {
        "train": [
            {"pattern": "multi_modal_projector", "rate": 0.01},
            {"pattern": ".*", "rate": "frozen"},
        ],
        "adapter": {"rate": 0.01, "r": 4, "alpha": 8, **adapter},
    }
    recipe["stages"][1]["args"] |= args
    return write(recipe, folder / "recipe.yaml")


def losses(folder: Path) -> list[list]:
    return [[line["step"], line["mean_loss"]] for line in logged(folder / "finetune")]


def stopped_at(step: int, path: Path, output: Path, monkeypatch) -> None:
    """Run until `step` of finetune is logged, then stop."""

    def on_log(self, args, state, control, **kwargs):
        if self.stage == "finetune" and state.global_step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LineCallback, "on_log", on_log)
        with pytest.raises(KeyboardInterrupt):
            train(str(path), output_dir=str(output))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return recipe and folder of a finished run with LoRA+, dropout and gradient checkpointing."""
    folder = tmp_path_factory.mktemp("lora")
    adapter = {"dropout": 0.2, "lora_plus_ratio": 4}
    path = recipe_file(folder, adapter, gradient_checkpointing=True)
    groups: list[tuple[float, int]] = []
    original = MayaTrainer.create_optimizer

    def watch(self, *args, **kwargs):
        optimizer = original(self, *args, **kwargs)
        if self.adapter is not None:
            groups.extend((g["lr"], len(g["params"])) for g in optimizer.param_groups)
        return optimizer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MayaTrainer, "create_optimizer", watch)
        return path, train(str(path)), groups


def test_a_run_with_lora(finished):
    _, folder, groups = finished
    assert sorted(set(groups)) == [(0.01, 2), (0.01, 16), (0.04, 14)]
    parts = {row["part"]: row["rate"] for row in training_log(folder / "finetune")["table"]}
    assert parts["language_model adapter A"] == 0.01
    assert parts["language_model adapter B"] == 0.04
    assert parts["language_model"] is None
    stage = folder / "finetune"
    assert {p.name for p in (stage / ADAPTER).iterdir()} >= {
        "adapter_config.json",
        WEIGHTS,
        "processor_config.json",
        "chat_template.jinja",
    }
    assert not list((folder / ".work").rglob("*.safetensors"))

    merged = AutoModelForImageTextToText.from_pretrained(folder)
    both = PeftModel.from_pretrained(
        MayaForConditionalGeneration.from_pretrained(folder / "pretrain"), stage / ADAPTER
    )
    ids = [t for t in range(8, 24) if t != merged.config.image_token_id]
    image = [merged.config.image_token_id] * merged.config.image_seq_length
    inputs = {
        "input_ids": torch.tensor([ids[:2] + image + ids[2:]]),
        "pixel_values": torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)),
    }
    with torch.no_grad():
        one, two = merged.eval()(**inputs).logits, both.eval()(**inputs).logits
    torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    before = load_file(folder / "pretrain" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        changes = "projector" in name or name.endswith("_proj.weight") and "language" in name  # noqa: RUF021
        assert torch.equal(value, after[name]) != changes, name


def test_stopped_and_continued_is_the_same_run(finished, tmp_path, monkeypatch, capsys):
    path, straight, _ = finished
    output = tmp_path / "stopped"
    stopped_at(3, path, output, monkeypatch)
    saved = output / ".work" / "finetune" / "checkpoint-2"
    assert (saved / WEIGHTS).is_file()
    assert not (saved / "model.safetensors").exists(), "frozen weights are saved repeatedly"
    train(str(path), output_dir=str(output))
    assert "continuing from" in capsys.readouterr().out
    assert losses(output) == losses(straight)
    one, two = (f / "finetune" / ADAPTER / WEIGHTS for f in (output, straight))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.slow
@needs_bitsandbytes
def test_a_run_with_quantized_weights_and_8_bit_optimizer(tmp_path, monkeypatch):
    path = recipe_file(tmp_path, {"quantize": "nf4"}, optim="paged_adamw_8bit")
    output = tmp_path / "stopped"
    stopped_at(3, path, output, monkeypatch)
    folder = train(str(path), output_dir=str(output))
    assert len(losses(folder)) == 4
    learned = load_file(folder / "finetune" / ADAPTER / WEIGHTS)
    # TRL would store trained weights in bfloat16; then their last 16 bits would be zero.
    for name, value in learned.items():
        assert value.dtype == torch.float32, name
        assert not torch.equal(value, value.bfloat16().float()), name
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    straight = train(str(path))
    assert losses(folder) == losses(straight)


@needs_bitsandbytes
def test_8_bit_state_but_for_embeddings(tmp_path):
    """Full finetuning: of the tensors large enough for 8-bit state, only the embeddings keep 32 bits."""
    recipe = make_recipe(tmp_path)
    recipe["stages"][1]["args"] |= {"optim": "adamw_8bit", "max_steps": 1}
    states: dict[str, torch.dtype] = {}
    original = MayaTrainer.save_model

    def watch(self, *args, **kwargs):
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            if "state1" in state and parameter.numel() >= 4096:
                states[name] = state["state1"].dtype
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MayaTrainer, "save_model", watch)
        train(str(write(recipe, tmp_path / "recipe.yaml")))
    embeddings = {n for n in states if "embed_tokens" in n}
    assert len(embeddings) == 1
    assert states[embeddings.pop()] == torch.float32


def test_memory_counts_adapters_and_quantized_weights(finished, tmp_path, monkeypatch):
    import psutil

    _, folder, _ = finished
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Little", (), {"available": 1000}))
    mapping = make_recipe(tmp_path)
    mapping["model"] = {"checkpoint": str(folder)}
    mapping["stages"] = [
        mapping["stages"][1]
        | {"train": [{"pattern": ".*", "rate": "frozen"}], "adapter": {"rate": 0.1, "r": 4}}
    ]
    learned = load_file(folder / "finetune" / ADAPTER / WEIGHTS)
    size = sum(value.numel() for name, value in learned.items() if ".lora_" in name)
    model = MayaForConditionalGeneration.from_pretrained(folder)
    total = sum(p.numel() for p in model.parameters()) + size
    file = write(mapping, tmp_path / "r.yaml")
    with pytest.raises(MemoryError, match=f"of {total:,} parameters \\({size:,} trained\\)"):
        train(str(file))


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_the_8b_recipes_say_what_they_take(name):
    path = RECIPES / "maya-8b" / f"{name}.yaml"
    text = CohereConfig(
        vocab_size=256000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        logit_scale=0.0625,
    )
    config = MayaConfig(
        text_config=text, vision_config=SiglipVisionConfig(image_size=256), image_token_id=7
    )
    stage = load_recipe(path).stages[0]
    _, memory = stage_memory(config, stage, torch.bfloat16, mixed=True)
    words = " ".join(path.read_text().replace("# ", "").split())
    assert f"take {memory.resident / 2**30:.0f} GiB" in words
    if millions := re.search(r"(\d+) million", words):
        assert round(memory.gradients / 4 / 1e6) == int(millions[1])
