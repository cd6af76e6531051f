"""`--estimate`: compared with the memory of a real model, its gradients and its optimizer."""

import json
import math

import pytest
import torch

from maya_vlm.training import cli
from maya_vlm.training.model.assemble import build_maya
from maya_vlm.training.model.flops import forward_flops, trainable_parts, visible_pairs
from maya_vlm.training.model.freezing import apply_rules, parameter_groups
from maya_vlm.training.recipe import RECIPES, AdapterRecipe, Rule, StageRecipe
from maya_vlm.training.run.estimate import GIB, GPUS, Device, estimate, format_estimate
from maya_vlm.training.run.memory import (
    activation_bytes,
    optimizer_bytes,
    sharding,
    stage_memory,
)
from maya_vlm.training.run.work import Work, assumed_work
from modeling_maya import MayaConfig
from tests.helpers.tiny import enable_checkpointing, tiny_config, tiny_inputs, tiny_model

from .tiny_run import make_recipe, write

CONFIGS = RECIPES / "maya-8b" / "configs"
FROZEN = Rule(".*", "frozen")
PROJECTOR = [Rule("multi_modal_projector", 1e-3), FROZEN]
FINETUNE = [Rule("vision_tower", "frozen"), Rule(".*", 1e-3)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Block the network, and replace the measurement of the peak."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(
        "maya_vlm.training.run.estimate.this_device",
        lambda cuda: Device("CPU", 1e11, 4 * GIB, "given"),
    )


def stage(rules, adapter=None, **args) -> StageRecipe:
    return StageRecipe(name="s", data=[], train=rules, adapter=adapter, args=args)


def nbytes(tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# ------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("rules", [PROJECTOR, FINETUNE])
def test_weights_gradients_and_adamw_are_those_of_a_step(rules):
    model = tiny_model().train()
    apply_rules(model, rules)
    optimizer = torch.optim.AdamW(parameter_groups(model, rules, 0.0), lr=1e-3)
    model(**tiny_inputs(model.config, images=[1, 1])).logits.sum().backward()
    optimizer.step()
    _, memory = stage_memory(model.config, stage(rules), torch.float32, mixed=False)
    assert memory.weights == nbytes(model.parameters())
    assert memory.gradients == nbytes(p.grad for p in model.parameters() if p.grad is not None)
    state = [v for s in optimizer.state.values() for k, v in s.items() if k != "step"]
    assert memory.optimizer == nbytes(state)
    assert memory.resident == memory.weights + memory.gradients + memory.optimizer


def make_optimizer(name: str, parameters):
    if name == "adamw_torch":
        return torch.optim.AdamW(parameters)
    if name == "sgd":
        return torch.optim.SGD(parameters)
    if name == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(parameters, scale_parameter=False, relative_step=False, lr=1e-3)
    import bitsandbytes

    return {
        "adamw_8bit": lambda: bitsandbytes.optim.AdamW8bit(parameters),
        "paged_adamw_8bit": lambda: bitsandbytes.optim.PagedAdamW8bit(parameters),
        "paged_adamw_32bit": lambda: bitsandbytes.optim.PagedAdamW(parameters),
        "lion_8bit": lambda: bitsandbytes.optim.Lion8bit(parameters),
        "lion_32bit": lambda: bitsandbytes.optim.Lion(parameters),
        "ademamix": lambda: bitsandbytes.optim.AdEMAMix(parameters),
        "ademamix_8bit": lambda: bitsandbytes.optim.AdEMAMix8bit(parameters),
        "rmsprop_bnb_8bit": lambda: bitsandbytes.optim.RMSprop8bit(parameters),
    }[name]()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("adamw_torch", torch.float32),
        ("adamw_torch", torch.bfloat16),
        ("sgd", torch.float32),
        ("adafactor", torch.float32),
        ("adamw_8bit", torch.float32),
        ("adamw_8bit", torch.bfloat16),
        ("paged_adamw_8bit", torch.float32),
        ("paged_adamw_32bit", torch.bfloat16),
        ("lion_8bit", torch.float32),
        ("lion_32bit", torch.float32),
        ("ademamix", torch.float32),
        ("ademamix_8bit", torch.float32),
        ("rmsprop_bnb_8bit", torch.float32),
    ],
)
def test_optimizer_state_is_as_large_as_the_real_one(name, dtype):
    # One tensor that 8-bit optimizers quantize, with an incomplete last block, and small tensors.
    shapes = {"a.weight": (61, 100), "b.weight": (20, 30), "b.bias": (30,)}
    trained = [(n, torch.nn.Parameter(torch.randn(s, dtype=dtype))) for n, s in shapes.items()]
    optimizer = make_optimizer(name, [p for _, p in trained])
    for _, parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    state = {
        id(v): v
        for s in optimizer.state.values()
        for k, v in s.items()
        if isinstance(v, torch.Tensor)
        and k != "step"
        and not k.startswith(("qmap", "unorm", "RMS"))
    }
    assert optimizer_bytes(name, trained, dtype.itemsize) == nbytes(state.values())


def test_embeddings_keep_32_bits_under_an_8_bit_optimizer():
    weight = torch.nn.Parameter(torch.empty(512, 16))
    few = optimizer_bytes("adamw_8bit", [("model.layers.0.weight", weight)], 4)
    assert optimizer_bytes("adamw_8bit", [("model.embed_tokens.weight", weight)], 4) == 8 * 8192
    assert few == 2 * (8192 + 4 * 32)


def test_an_adapter_is_counted_and_quantized_weights_are_small():
    config = tiny_config()
    rules, args = PROJECTOR, (torch.float32, False)
    _, plain = stage_memory(config, stage(rules), *args)
    adapter = AdapterRecipe(rate=1e-3, r=4, type="dora")
    model, memory = stage_memory(config, stage(rules, adapter), *args)
    extra = nbytes(p for n, p in model.named_parameters() if ".lora_" in n)
    assert extra > 0
    assert memory.weights - plain.weights == extra
    assert memory.gradients - plain.gradients == extra
    assert memory.optimizer - plain.optimizer == 2 * extra
    adapter = AdapterRecipe(rate=1e-3, r=4, type="dora", quantize="nf4")
    _, small = stage_memory(config, stage(rules, adapter), *args)
    layers = nbytes(
        p
        for n, p in model.named_parameters()
        if "language_model.layers" in n and p.ndim == 2 and ".lora_" not in n
    )
    assert memory.weights - small.weights == pytest.approx(layers * 7 / 8, rel=0.03)


def test_mixed_precision_keeps_what_learns_in_float32():
    _, memory = stage_memory(tiny_config(), stage(PROJECTOR), torch.bfloat16, mixed=True)
    _, exact = stage_memory(tiny_config(), stage(PROJECTOR), torch.float32, mixed=False)
    learned = exact.gradients
    assert memory.gradients == learned
    assert memory.weights == (exact.weights - learned) // 2 + learned
    assert memory.optimizer == exact.optimizer
    assert memory.buffers > exact.buffers


def test_sharding_divides():
    config, args = tiny_config(), (torch.bfloat16, True)
    alone = stage_memory(config, stage(FINETUNE), *args)[1]
    ddp = stage_memory(config, stage(FINETUNE), *args, "ddp", 4)[1]
    assert ddp.resident == alone.resident
    assert ddp.buffers == alone.buffers + alone.gradients
    fsdp = stage_memory(config, stage(FINETUNE), *args, "fsdp", 4)[1]
    assert fsdp.resident == pytest.approx(alone.resident / 4, rel=1e-3)
    zero2 = stage_memory(config, stage(FINETUNE), *args, "zero2", 4)[1]
    zero3 = stage_memory(config, stage(FINETUNE), *args, "zero3", 4)[1]
    assert zero2.optimizer == zero3.optimizer > fsdp.optimizer
    assert zero2.weights == pytest.approx(4 * zero3.weights, rel=1e-3)


def test_how_a_stage_is_sharded():
    assert sharding({}, 1, {}) == "none"
    assert sharding({}, 2, {}) == "ddp"
    assert sharding({"fsdp": "full_shard"}, 1, {}) == "none"
    assert sharding({"fsdp": "full_shard"}, 2, {}) == "fsdp"
    assert sharding({"fsdp": "full_shard"}, 2, {}, cuda=False) == "ddp"
    assert sharding({}, 2, {"ACCELERATE_USE_FSDP": "true"}) == "fsdp"
    deepspeed = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert sharding({}, 2, deepspeed) == "zero3"
    assert sharding({}, 2, {**deepspeed, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}) == "zero2"


def saved_bytes(model, inputs) -> int:
    """Return the bytes that autograd keeps after one forward pass, without the weights; each storage counts once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = model(**inputs, use_cache=False, logits_to_keep=1).logits.sum()
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("rules", [PROJECTOR, FINETUNE, [Rule(".*", 1e-3)]])
@pytest.mark.parametrize("decoder", ["cohere", "cohere2", "llama", "qwen3"])
def test_activations_are_not_more_than_estimated(decoder, rules):
    text = {"num_hidden_layers": 4}
    if decoder == "cohere2":
        text["layer_types"] = ["sliding_attention", "full_attention"] * 2
    model = tiny_model(decoder, text=text).train()
    apply_rules(model, rules)
    inputs = tiny_inputs(model.config, images=[3], text_tokens=40)
    inputs.pop("attention_mask")
    flops = forward_flops(model.config)
    learns = trainable_parts(
        ((n, p.shape, p.requires_grad) for n, p in model.named_parameters()), model.config, flops
    )
    tokens = inputs["input_ids"].shape[1]
    # The test's loss does not use the head.
    options = {"tokens": tokens, "images": 3, "width": 4, "stream": 4, "tile": 0}
    whole = activation_bytes(model.config, learns, checkpointing=False, **options)
    found = saved_bytes(model, inputs)
    assert found <= whole <= 4 * found
    enable_checkpointing(model, use_reentrant=False)
    less = activation_bytes(model.config, learns, checkpointing=True, **options)
    assert saved_bytes(model, inputs) <= less < whole


# ------------------------------------------------------------------------------ recipes


def test_a_recipe_with_its_data(tmp_path):
    recipe = make_recipe(tmp_path)
    path = write(recipe, tmp_path / "r.yaml")
    before = sorted(tmp_path.rglob("*"))
    pretrain, finetune = estimate(str(path))
    assert sorted(tmp_path.rglob("*")) == before
    model, _ = build_maya(
        recipe["model"]["vision_tower"], recipe["model"]["language_model"], chat_template="aya"
    )
    for found, mapping in zip((pretrain, finetune), recipe["stages"], strict=True):
        assert found.rows == apply_rules(model, [Rule(**rule) for rule in mapping["train"]])
        assert found.processes == 1
        assert found.sharding == "none"
        assert found.seconds > 0
        assert found.memory.activations > 0
    # Six images with three conversations each: every group has a prefix and three branches.
    assert (pretrain.work.groups_per_epoch, pretrain.work.steps) == (6, 4)
    assert pretrain.work.images == 1
    assert pretrain.work.tokens < pretrain.work.longest + 1
    assert pretrain.row_tokens >= 2 * pretrain.work.tokens
    # Without max_steps, the steps of an epoch are counted: three steps of two groups.
    (again, _) = estimate(str(path), ["stages.0.args.max_steps=-1"])
    assert again.work.steps == 3
    assert again.seconds == pytest.approx(pretrain.seconds * 3 / 4)
    printed = format_estimate([pretrain, finetune])
    assert "stage pretrain: 1 process on CPU" in printed
    assert "4 steps; an epoch is 6 groups" in printed
    assert "assumed: 40% of a peak of 0.1 TFLOP/s (given)" in printed
    assert "?" not in printed


def test_more_work_takes_longer(tmp_path):
    path = str(write(make_recipe(tmp_path), tmp_path / "r.yaml"))
    plain = estimate(path)[1]
    again = estimate(path, ["stages.1.args.gradient_checkpointing=true"])[1]
    assert again.seconds > plain.seconds
    assert again.memory.activations < plain.memory.activations
    short = estimate(path, ["stages.1.args.max_length=40"])[1]
    assert short.row_tokens == 40
    assert short.memory.activations < plain.memory.activations


@pytest.mark.parametrize(
    ("name", "overrides", "trained"),
    [
        (
            "maya-8b/pretrain",
            ["stages.0.group_size=8", "stages.0.batch_size=32"],
            19_931_136,
        ),
        ("maya-8b/finetune", ["processes=8"], 8_047_964_160),
    ],
)
def test_the_8b_recipes_without_a_network(name, overrides, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def asked(*args):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("maya_vlm.training.common.models._download", asked)
    (found,) = estimate(name, overrides, gpu="h100")
    assert sum(row.parameters for row in found.rows if row.rate is not None) == trained
    assert sum(row.parameters for row in found.rows) == 8_028_033_024 + 19_931_136 + 78_753_792
    assert found.row_tokens == 2048
    assert ".json here" in found.missing
    printed = format_estimate([found])
    assert "H100 SXM 80 GB" in printed
    if name.endswith("finetune"):
        # 2.09 million rows in steps of 128; forward, backward and a second forward for all layers.
        assert found.work.steps == 16_329
        layers = 496 * 13.96e9 * (4 - 2 * 4096 * 14336 / (13.96e9 / 32))
        row = layers + 200 * 2.097e9 * 3 + 42e9 + 10.2e9 * 3
        assert found.seconds == pytest.approx(2.09e6 * row / (8 * 0.4 * 989.4e12), rel=0.03)
        assert "; assumed: PALO's about 2.09 million rows" in printed
        # Nearly all weights in float32 with two moments, in eight shards.
        assert found.sharding == "fsdp"
        assert found.memory.resident == pytest.approx(16 * trained / 8, rel=0.01)
    else:
        # The published data: 550,597 images in steps of 32, eight captions of 30 tokens and a newline.
        assert found.work.steps == 17_207
        assert found.work.tokens == 257 + 8 * 31
        assert "; assumed: the published 550,597 images" in printed
        # By hand: forward, backward to the inputs, and a second forward without each layer's last
        # product; the head three times; an image and its projector. Attention is less than 2 %.
        layers = 505 * 13.96e9 * (3 - 2 * 4096 * 14336 / (13.96e9 / 32))
        group = layers + 248 * 2.097e9 * 3 + 42e9 + 10.2e9 * 3
        assert found.seconds == pytest.approx(17_207 * 32 * group / (0.4 * 989.4e12), rel=0.02)
        assert found.memory.resident == pytest.approx(2 * 8.1267e9 + 14 * trained, rel=0.001)
        assert found.memory.total < GPUS["h100"].memory
    assert not list(tmp_path.iterdir())


def test_data_that_are_not_here_and_of_which_nothing_is_said(monkeypatch):
    monkeypatch.setattr("maya_vlm.training.run.estimate.assumed_work", lambda *_: None)
    (found,) = estimate("maya-8b/finetune", ["processes=8"], gpu="h100")
    assert found.work is None
    assert found.seconds is None
    printed = format_estimate([found])
    assert "steps and time need the data: no " in printed
    assert "tokens per second" in printed


@pytest.mark.parametrize(
    ("group_size", "parts"), [(1, [[4], [6], [9]]), (2, [[4, 6], [9]]), (5, [[4, 6, 9]])]
)
def test_assumed_conversations_of_an_image_are_split_as_the_data_would_be(
    group_size, parts, tmp_path
):
    file = tmp_path / "r.work.json"
    said = {"images_per_epoch": 10, "prefix": 2, "branches": [4, 6, 9], "source": "here"}
    file.write_text(json.dumps({"pretrain": said}))
    given = StageRecipe("pretrain", [], PROJECTOR, batch_size=4, group_size=group_size)
    work = assumed_work(file, given, 3)
    assert work == Work(
        groups_per_epoch=10 * len(parts),
        steps=math.ceil(10 * len(parts) / 4),
        tokens=5 + 19 / len(parts),
        pairs=sum(visible_pairs(5, part) for part in parts) / len(parts),
        positions=19 / len(parts),
        images=1.0,
        longest=5 + max(map(sum, parts)),
        assumed="here",
    )
    said["branches"] = []
    file.write_text(json.dumps({"pretrain": said}))
    with pytest.raises(ValueError, match=r"r.work.json: pretrain.branches: expected at least one"):
        assumed_work(file, given, 3)


def test_the_shipped_configs_agree():
    vision, text, maya = (
        json.loads((CONFIGS / f"{name}.json").read_text())
        for name in ("siglip-base-patch16-256-multilingual", "aya-23-8B", "maya-8b")
    )
    assert (maya["vision_config"], maya["text_config"]) == (vision, text)
    flops = forward_flops(MayaConfig.from_dict(maya))
    # Per token 13.96 and 2.10 GFLOP; per image 10, and 11 of the tower's 12 layers' 46.
    assert flops.layers * flops.layer == pytest.approx(13.96e9, rel=1e-3)
    assert flops.head == pytest.approx(2.10e9, rel=2e-3)
    assert flops.projector == pytest.approx(10.2e9, rel=1e-2)
    assert flops.tower == pytest.approx(46e9 * 11 / 12, rel=1e-2)


def test_bases_that_are_not_here(tmp_path):
    recipe = make_recipe(tmp_path)
    recipe["model"]["language_model"] = "someone/decoder"
    path = write(recipe, tmp_path / "r.yaml")
    with pytest.raises(
        ValueError, match=r"model.language_model: .*someone/decoder.* put its config.json"
    ) as error:
        estimate(str(path))
    assert "\n" not in str(error.value)
    (tmp_path / "configs").mkdir()
    text = json.loads((tmp_path / "bases" / "language" / "config.json").read_text())
    (tmp_path / "configs" / "decoder.json").write_text(json.dumps(text))
    found = estimate(str(path))
    assert found[0].work is None
    assert found[0].missing == "no tokenizer of someone/decoder here"
    assert found[0].memory.activations is None
    assert "activations need args.max_length" in format_estimate(found)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("decoder.json", "{", "decoder.json: not JSON: .*; correct it"),
        ("decoder.json", "[]", "decoder.json: expected a mapping, found list"),
        ("decoder.json", "{}", "decoder.json: expected the config.json of a model.*model_type"),
        ("decoder.json", '{"model_type": "horse"}', "decoder.json: expected the config.json of a model"),
        ("r.work.json", "{", "r.work.json: not JSON"),
        ("r.work.json", '{"pretrain": {"prefix": 3}}', "r.work.json: pretrain.images_per_epoch: expected a whole number, found nothing"),
        ("r.work.json", '{"pretrain": 3}', "r.work.json: pretrain: expected a mapping, found a number 3"),
    ],
)  # fmt: skip
def test_descriptions_that_are_damaged(tmp_path, name, text, message):
    recipe = make_recipe(tmp_path)
    recipe["model"]["language_model"] = "someone/decoder"
    path = write(recipe, tmp_path / "r.yaml")
    (tmp_path / "configs").mkdir()
    config = (tmp_path / "bases" / "language" / "config.json").read_text()
    (tmp_path / "configs" / "decoder.json").write_text(config)
    (tmp_path / "configs" / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        estimate(str(path))
    assert "\n" not in str(error.value)


def test_the_command(tmp_path, capsys):
    path = str(write(make_recipe(tmp_path), tmp_path / "r.yaml"))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["train", path, "--estimate", "--gpu", "l4", "--accelerate", "fsdp2"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("on L4 24 GB") == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert cli.main(["train", path, "--estimate", "--gpu", "m1"]) == 2
    assert "--gpu: expected one of a100, h100, h200, l4, found 'm1'" in capsys.readouterr().err
    assert cli.main(["train", path, "--gpu", "l4"]) == 2
    assert "--gpu: expected --estimate, found none" in capsys.readouterr().err
    assert cli.main(["train", "bases/vision_tower", "--estimate"]) == 2
    assert "kind: expected 'maya'" in capsys.readouterr().err
