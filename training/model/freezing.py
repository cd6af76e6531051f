"""What learns and how fast: an ordered list of (pattern, rate or frozen), as data.

The first rule whose pattern is found in a parameter's name decides. Every parameter must be decided
and every rule must decide something, so a misspelt pattern is an error and never a frozen model.

Adapter matrices are not for the rules: the stage's `adapter` gives their rates. Rules go on seeing
the layers beneath under their own names.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..recipe import AdapterRecipe, Rule

# Parts of a Maya, as they are named in checkpoints, tables and logs.
PARTS = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")
# What peft calls the matrices of an adapter, and the name of a layer under one.
MATRIX = re.compile(r"\.lora_(A|B|magnitude_vector)\.")
UNDER = ".base_layer."
LAYER = re.compile(r"\blanguage_model\.layers\.(\d+)\.")


@dataclass
class FreezeTableRow:
    """One line of the table: a part, the rate its parameters learn at (None: frozen), how many."""

    part: str
    rate: float | None
    parameters: int
    tensors: int


def rates(
    names: Sequence[str], rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[float | None]:
    """The rate of each parameter name, None for frozen.

    With an `adapter`, names may be those of a model that holds it, and the rules may freeze
    everything.

    Raises ValueError for a pattern that is no regular expression or decides nothing, for more
    `top_layers` than the decoder has, for a name no rule finds, and when everything is frozen.
    """
    names = [name.replace(UNDER, ".") for name in names]
    layers = [int(found[1]) if (found := LAYER.search(name)) else -1 for name in names]
    depth = max(layers, default=-1) + 1
    for i, rule in enumerate(rules):
        if rule.top_layers is not None and rule.top_layers > depth:
            raise ValueError(
                f"train[{i}].top_layers: found {rule.top_layers}, but the decoder has {depth} layers"
            )
    compiled = []
    for i, rule in enumerate(rules):
        try:
            compiled.append(re.compile(rule.pattern))
        except re.error as error:
            raise ValueError(
                f"train[{i}].pattern: {rule.pattern!r} is not a regular expression: {error}"
            ) from None
    used = [False] * len(rules)
    result: list[float | None] = []
    undecided = []
    for name, layer in zip(names, layers, strict=True):
        if adapter is not None and (matrix := MATRIX.search(name)):
            result.append(adapter.rate * (adapter.lora_plus_ratio if matrix[1] == "B" else 1.0))
            continue
        for i, pattern in enumerate(compiled):
            if layer < depth - (rules[i].top_layers or math.inf):
                continue
            if pattern.search(name):
                used[i] = True
                rate = rules[i].rate
                result.append(None if rate == "frozen" else float(rate))
                break
        else:
            undecided.append(name)
    if undecided:
        raise ValueError(
            f"train: no pattern finds {len(undecided)} parameters, such as {undecided[0]!r}; "
            "add a last rule {pattern: '.*', rate: frozen}"
        )
    for i, rule in enumerate(rules):
        if not used[i]:
            raise ValueError(
                f"train[{i}].pattern: {rule.pattern!r} decides no parameter (it finds none, or "
                f"earlier rules took them all); names look like {_example(names)}"
            )
    if adapter is None and all(rate is None for rate in result):
        raise ValueError("train: every parameter is frozen; expected at least one rule with a rate")
    return result


def apply_rules(
    model: nn.Module, rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[FreezeTableRow]:
    """Set requires_grad of every parameter of `model`; returns the table. Raises as `rates`."""
    for _, parameter, rate in parameter_rates(model, rules, adapter):
        parameter.requires_grad_(rate is not None)
    return table(model, rules, adapter)


def table(
    model: nn.Module, rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[FreezeTableRow]:
    """Parts and rates in model order, tied parameters counted once, adapter matrices apart."""
    rows: dict[tuple[str, float | None], FreezeTableRow] = {}
    for name, parameter, rate in parameter_rates(model, rules, adapter):
        part = _part(name)
        if adapter is not None and (matrix := MATRIX.search(name)):
            part = f"{part} adapter {matrix[1].split('_')[0]}"
        row = rows.setdefault((part, rate), FreezeTableRow(part, rate, 0, 0))
        # Weights of 4 bits are stored two in a byte, in another shape than their own.
        packed = getattr(parameter, "quant_state", None)
        row.parameters += parameter.numel() if packed is None else packed.shape.numel()
        row.tensors += 1
    return list(rows.values())


def parameter_rates(
    model: nn.Module, rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[tuple[str, nn.Parameter, float | None]]:
    """(name, parameter, rate) in model order, tied parameters once. Raises as `rates`."""
    named = list(model.named_parameters())
    found = rates([name for name, _ in named], rules, adapter)
    return [(*pair, rate) for pair, rate in zip(named, found, strict=True)]


def format_table(rows: Sequence[FreezeTableRow]) -> str:
    """The table as it is printed before step 1."""
    width = max([24, *(len(row.part) + 2 for row in rows)])
    lines = [f"{'part':{width}}{'':10}{'parameters':>16}{'tensors':>9}  rate"]
    for row in rows:
        state = "frozen" if row.rate is None else "trained"
        rate = "" if row.rate is None else f"{row.rate:g}"
        lines.append(
            f"{row.part:{width}}{state:10}{row.parameters:>16,}{row.tensors:>9}  {rate}".rstrip()
        )
    trained = sum(r.parameters for r in rows if r.rate is not None)
    total = sum(r.parameters for r in rows)
    lines.append(f"{'all':{width}}{'':10}{total:>16,}{sum(r.tensors for r in rows):>9}")
    lines.append(f"{trained:,} of {total:,} parameters are trained")
    return "\n".join(lines)


def parameter_groups(
    model: nn.Module,
    rules: Sequence[Rule],
    weight_decay: float,
    adapter: AdapterRecipe | None = None,
) -> list[dict]:
    """Optimizer groups: one per rate, weights apart from vectors, which do not decay (biases, norms,
    DoRA's magnitudes)."""
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for _, parameter, rate in parameter_rates(model, rules, adapter):
        if rate is not None and parameter.requires_grad:
            groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]


def _part(name: str) -> str:
    """The part of a Maya that a parameter belongs to; elsewhere the first part of its name."""
    return next((part for part in PARTS if part in name.split(".")), name.split(".")[0])


def _example(names: Sequence[str]) -> str:
    """The first name of every part."""
    first = {_part(name): name for name in reversed(names)}
    return ", ".join(reversed(first.values()))
