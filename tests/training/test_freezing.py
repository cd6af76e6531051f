"""The table of what learns: ordered rules, nothing undecided, nothing misspelt."""

import pytest

from tests.tiny import tiny_model
from training.freezing import apply_rules, format_table, parameter_groups
from training.recipe import Rule


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


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([Rule("vision_tower", "frozen")], "no pattern finds .* add a last rule"),
        ([Rule("multi_modal_projektor", 0.1), Rule(".*", "frozen")], r"train\[0\].pattern: .*decides no"),
        ([Rule(".*", "frozen")], "every parameter is frozen"),
        ([Rule("(", 0.1)], "is not a regular expression"),
        ([Rule(".*", 0.1), Rule("vision_tower", "frozen")], r"train\[1\].pattern"),
    ],
)  # fmt: skip
def test_bad_rules(rules, message):
    with pytest.raises(ValueError, match=message):
        apply_rules(tiny_model(), rules)
