"""The table of trained parts: rules apply in order, every name is decided, typos are errors."""

import pytest

from maya_vlm.training.model.freezing import apply_rules, format_table, parameter_groups
from maya_vlm.training.recipe import Rule
from tests.helpers.tiny import tiny_model


def test_first_rule_decides_and_the_table_says_so():
    model = tiny_model()
    rules = [
        Rule("multi_modal_projector", 1e-3),
        Rule(r"language_model\.layers\.1\.", 1e-4),
        Rule(".*", "frozen"),
    ]
    rows = apply_rules(model, rules)
    for name, parameter in model.named_parameters():
        learns = "multi_modal_projector" in name or ".layers.1." in name and "language" in name  # noqa: RUF021
        assert parameter.requires_grad == learns, name
    found = {(r.part, r.rate): r.parameters for r in rows}
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    layer = sum(p.numel() for p in model.model.language_model.layers[1].parameters())
    assert found[("multi_modal_projector", 1e-3)] == projector
    assert found[("language_model", 1e-4)] == layer
    assert sum(found.values()) == sum(p.numel() for p in model.parameters())
    text = format_table(rows)
    assert f"{projector + layer:,} of" in text
    assert "vision_tower" in text
    assert "frozen" in text
    groups = parameter_groups(model, rules, weight_decay=0.1)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {
        (1e-3, 0.1),
        (1e-3, 0.0),
        (1e-4, 0.1),
        (1e-4, 0.0),
    }
    assert sum(p.numel() for g in groups for p in g["params"]) == projector + layer


@pytest.mark.parametrize(("decoder", "depth"), [("cohere", 3), ("llama", 5), ("qwen3", 12)])
def test_top_layers_counts_from_the_end(decoder, depth):
    model = tiny_model(decoder, text={"num_hidden_layers": depth})
    rules = [
        Rule("self_attn", 1e-5, top_layers=1),
        Rule(".*", 1e-4, top_layers=2),
        Rule(".*", "frozen"),
    ]
    apply_rules(model, rules)
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    top = [f"model.language_model.layers.{i}." for i in (depth - 2, depth - 1)]
    assert learns == {n for n, _ in model.named_parameters() if n.startswith(tuple(top))}
    groups = parameter_groups(model, rules, weight_decay=0.0)
    attention = {id(p) for n, p in model.named_parameters() if n.startswith(top[1] + "self_attn")}
    assert {id(p) for g in groups if g["lr"] == 1e-5 for p in g["params"]} == attention


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("vision_tower", "frozen")], "expected a rule for every parameter, found none for .* add a last rule"),
        ([Rule("multi_modal_projektor", 0.1), Rule(".*", "frozen")], r"train\[0\].pattern: .*decides no"),
        ([Rule(".*", "frozen")], "found every parameter frozen"),
        ([Rule("(", 0.1)], "expected a regular expression"),
        ([Rule(".*", 0.1), Rule("vision_tower", "frozen")], r"train\[1\].pattern"),
        ([Rule(".*", 0.1, top_layers=3), Rule(".*", "frozen")], r"train\[0\].top_layers: expected at most the decoder's 2 layers, found 3"),
        ([Rule("vision_tower", 0.1, top_layers=1), Rule(".*", "frozen")], r"train\[0\].pattern: .*decides no"),
    ],
)  # fmt: skip
def test_bad_rules(rules, message):
    with pytest.raises(ValueError, match=message):
        apply_rules(tiny_model(), rules)
