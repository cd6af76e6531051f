"""The formulas count the FLOPs that torch counts while the model runs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from maya_vlm.training.batches.collator import GroupCollator
from maya_vlm.training.batches.groups import GroupData
from maya_vlm.training.batches.packing import pack_group
from maya_vlm.training.model.adapters import add_adapter
from maya_vlm.training.model.attention import dense_mask
from maya_vlm.training.model.flops import (
    DECODERS,
    device_peak,
    forward_flops,
    measure_peak,
    trainable_parts,
    training_flops,
    visible_pairs,
)
from maya_vlm.training.model.freezing import apply_rules
from maya_vlm.training.recipe import AdapterRecipe, Rule, load_recipe
from maya_vlm.training.run.train import train
from processing_maya import MayaProcessor
from tests.helpers.tiny import (
    PROJECTORS,
    TOWERS,
    enable_checkpointing,
    tiny_config,
    tiny_inputs,
    tiny_model,
)

from ..run.tiny_run import make_recipe, training_log, write

# Llama's rotary angles are a matrix product; the formulas omit nothing else of a tiny model's count.
TOLERANCE = 0.02
FROZEN = Rule(".*", "frozen")


def make(decoder: str, tower: str = "siglip", **overrides):
    model = tiny_model(decoder, tower, **overrides).train()
    # torch counts eager attention, the whole square; it does not count the CPU's fused attention.
    model.model.language_model.set_attn_implementation("eager")
    model.model.vision_tower.set_attn_implementation("eager")
    return model


def work(model) -> tuple[dict, dict]:
    """Return one row about two images, and its arguments for `training_flops`."""
    inputs = tiny_inputs(model.config, images=[2], text_tokens=11)
    inputs.pop("attention_mask")
    tokens = inputs["input_ids"].shape[1]
    return inputs, {"tokens": tokens, "pairs": tokens**2, "positions": tokens, "images": 2}


def counted(model, backward: bool) -> int:
    inputs, _ = work(model)
    # A Q-Former's attention is always fused; torch counts its matrices if they are computed one by one.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.set_grad_enabled(backward),
    ):
        logits = model(**inputs, use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def formula(model, **options) -> float:
    flops = forward_flops(model.config)
    learns = trainable_parts(
        ((n, p.shape, p.requires_grad) for n, p in model.named_parameters()), model.config, flops
    )
    return training_flops(flops, learns, **work(model)[1], **options)


@pytest.mark.parametrize("decoder", ["cohere", "cohere2", "llama", "qwen3"])
@pytest.mark.parametrize("tower", [t for t in TOWERS if t != "dinov2"])
def test_forward(decoder, tower):
    model = make(decoder, tower)
    expected = forward_flops(model.config).total(**work(model)[1])
    assert counted(model, backward=False) == pytest.approx(expected, rel=TOLERANCE)


def test_forward_of_other_shapes():
    """More projector layers, another feature layer, a dropped patch, a full tower."""
    for overrides in (
        {"projector_num_layers": 3, "vision_feature_layer": 2},
        {"vision_feature_select_strategy": "default"},
        *PROJECTORS.values(),
    ):
        model = make("cohere", **overrides)
        expected = forward_flops(model.config).total(**work(model)[1])
        assert counted(model, backward=False) == pytest.approx(expected, rel=TOLERANCE)
    whole = forward_flops(tiny_config(vision_keep_unused_weights=True))
    assert whole.tower > forward_flops(tiny_config()).tower


RULES = {
    "projector": [Rule("multi_modal_projector", 1.0), FROZEN],
    "decoder and projector": [Rule("vision_tower", "frozen"), Rule(".*", 1.0)],
    "all": [Rule(".*", 1.0)],
    "tower": [Rule("vision_tower", 1.0), FROZEN],
    "attention": [
        Rule(r"language_model.*self_attn", 1.0),
        Rule("multi_modal_projector", 1.0),
        FROZEN,
    ],
    "top layer": [Rule("language_model", 1.0, top_layers=1), FROZEN],
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("decoder", ["cohere", "llama"])
def test_training(decoder, rules, checkpointing):
    model = make(decoder)
    apply_rules(model, RULES[rules])
    if checkpointing:
        enable_checkpointing(model, use_reentrant=False)
    expected = formula(model, checkpointing=checkpointing)
    assert counted(model, backward=True) == pytest.approx(expected, rel=TOLERANCE)


def test_training_adapters():
    model = make("cohere")
    rules = [Rule("multi_modal_projector", 1.0), FROZEN]
    adapter = AdapterRecipe(rate=1.0, r=4, alpha=4)
    plain = formula(model)
    add_adapter(model, adapter, rules)
    apply_rules(model, rules, adapter)
    assert counted(model, backward=True) == pytest.approx(formula(model), rel=TOLERANCE)
    assert formula(model) != pytest.approx(plain, rel=TOLERANCE)


def test_what_is_frozen_costs_less():
    model = make("cohere")
    costs = []
    for rules in ("projector", "decoder and projector", "all"):
        apply_rules(model, RULES[rules])
        costs.append(formula(model))
    assert costs == sorted(costs)


def test_pairs_are_those_of_the_mask():
    prefix, branches = 7, [3, 1, 4]
    branch = [0] * prefix + [j + 1 for j, n in enumerate(branches) for _ in range(n)]
    mask = dense_mask(torch.zeros(1, len(branch), dtype=torch.long), torch.tensor([branch]))
    assert visible_pairs(prefix, branches) == int(mask.sum())
    assert visible_pairs(5) == 15


def test_an_unknown_architecture_is_refused():
    with pytest.raises(
        ValueError,
        match=r"expected a vision tower of a known type, found 'dinov2': known are siglip",
    ):
        forward_flops(tiny_config(tower="dinov2"))
    config = tiny_config()
    config.text_config.model_type = "mamba"
    with pytest.raises(
        ValueError,
        match=rf"expected a decoder of a known type, found 'mamba': known are {DECODERS[0]}",
    ):
        forward_flops(config)


def test_a_peak_is_measured():
    before = torch.get_rng_state()
    assert measure_peak(torch.device("cpu"), torch.float32, seconds=0.0) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_known_gpu_has_its_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("maya_vlm.training.model.flops.measure_peak", lambda *_, **__: 7.0)
    peak, source = device_peak(torch.device("cuda", 0), torch.bfloat16)
    assert peak == 989.4e12
    assert source == "NVIDIA H200, data sheet, dense bfloat16"
    assert device_peak(torch.device("cuda", 0), torch.float32) == (7.0, "cuda, measured, float32")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "another")
    assert device_peak(torch.device("cuda", 0), torch.bfloat16)[0] == 7.0
    assert device_peak(torch.device("cpu"), torch.float32)[0] == 7.0


def test_the_log_counts_what_was_computed(tmp_path, monkeypatch):
    """Count the first step's tokens, pairs, learned positions and images by hand from its groups."""
    asked, given = [], []

    def spy(*arguments, **work):
        asked.append(work)
        given.append(arguments)
        return training_flops(*arguments, **work)

    monkeypatch.setattr("maya_vlm.training.run.trainer.training_flops", spy)
    monkeypatch.setattr("maya_vlm.training.run.trainer.device_peak", lambda *_: (1e3, "a test"))
    path = write(make_recipe(tmp_path), tmp_path / "r.yaml")
    folder = train(str(path), ["stages.0.args.max_steps=1", "stages.1.args.max_steps=1"])
    recipe = load_recipe(path)
    assert len(asked) == 2
    for stage, found, model in zip(recipe.stages, asked, given, strict=True):
        processor = MayaProcessor.from_pretrained(folder)
        data = GroupData(stage.data, seed=recipe.seed)
        collator = GroupCollator(data, processor)
        groups = [
            [collator.encode(i) for i in part.tolist()]
            for _, part in data.plan(stage.batch_size, stage.group_size, recipe.seed)
        ]
        trees = [tree for g in groups for tree in pack_group(g, collator.image_token)]
        assert max(len(tree.branches) for tree in trees) > 1
        assert found == {
            "tokens": sum(len(tree) for tree in trees),
            "pairs": sum(visible_pairs(len(t.prefix), [len(b) for b in t.branches]) for t in trees),
            "positions": sum(int(e.trained.sum()) for g in groups for e in g),
            "images": len({e.images for g in groups for e in g}),
        }
        whole = training_log(folder / stage.name)
        flops = training_flops(*model, **found)
        first = whole["log"][0]
        rate = first["model_flops_per_second"] / flops * found["tokens"]
        assert rate == pytest.approx(
            first["tokens_per_second"], abs=0.06
        )  # logged with one decimal
        assert first["peak_flops_per_second"] == 1e3
        share = first["model_flops_per_second"] / first["peak_flops_per_second"]
        assert first["model_flop_utilisation"] == share
        assert whole["peak"] == "a test"


@pytest.mark.parametrize(("dtype", "mixed"), [("bfloat16", False), ("float32", True)])
def test_the_peak_is_of_the_precision_that_is_computed_in(tmp_path, monkeypatch, dtype, mixed):
    asked = []
    monkeypatch.setattr(
        "maya_vlm.training.run.trainer.device_peak",
        lambda device, kind: asked.append(kind) or (1e3, "a test"),
    )
    recipe = make_recipe(tmp_path)
    recipe["model"]["dtype"] = dtype
    recipe["stages"] = recipe["stages"][:1]
    recipe["stages"][0]["args"] |= {"max_steps": 1, "bf16": mixed}
    train(str(write(recipe, tmp_path / "r.yaml")))
    assert asked == [torch.bfloat16]
