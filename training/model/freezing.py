"""Freezing and learning rates: an ordered list of rules (pattern, rate or "frozen").

The first rule whose pattern occurs in a parameter's name decides. Every parameter must match a rule, and
every rule must decide a parameter, so a misspelled pattern is an error and never a frozen model.

Rules do not apply to adapter matrices, whose rates come from the stage's `adapter`. Rules see the layers
under an adapter by their original names.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..recipe import AdapterRecipe, Rule

# Parts of a Maya, named as in checkpoints, tables and logs.
PARTS = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")
# peft's names of an adapter's matrices and of the layer under an adapter.
MATRIX = re.compile(r"\.lora_(A|B|magnitude_vector)\.")
UNDER = ".base_layer."
LAYER = re.compile(r"\blanguage_model\.layers\.(\d+)\.")


@dataclass
class FreezeTableRow:
    """One line of the table: a part, its learning rate (None: frozen), and its number of parameters."""

    part: str
    rate: float | None
    parameters: int
    tensors: int


def rates(
    names: Sequence[str], rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[float | None]:
    """Return the learning rate of each parameter name, None for frozen.

    With an `adapter`, names may come from a model that holds it, and the rules may freeze everything.

    Raises:
        ValueError: if a pattern is not a regular expression or decides no parameter, `top_layers`
            exceeds the decoder's depth, a name matches no rule, or everything is frozen.
    """
    names = [name.replace(UNDER, ".") for name in names]
    layers = [int(found[1]) if (found := LAYER.search(name)) else -1 for name in names]
    depth = max(layers, default=-1) + 1
    for i, rule in enumerate(rules):
        if rule.top_layers is not None and rule.top_layers > depth:
            raise ValueError(
                f"train[{i}].top_layers: expected at most the decoder's {depth} layers, found {rule.top_layers}"
            )
    compiled = []
    for i, rule in enumerate(rules):
        try:
            compiled.append(re.compile(rule.pattern))
        except re.error as error:
            raise ValueError(
                f"train[{i}].pattern: expected a regular expression, found {rule.pattern!r}: {error}"
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
            f"train: expected a rule for every parameter, found none for {len(undecided)}, such as {undecided[0]!r}: "
            "add a last rule {pattern: '.*', rate: frozen}"
        )
    for i, rule in enumerate(rules):
        if not used[i]:
            raise ValueError(
                f"train[{i}].pattern: {rule.pattern!r} decides no parameter (no name matches, or "
                f"earlier rules decide all that match): names look like {_example(names)}"
            )
    if adapter is None and all(rate is None for rate in result):
        raise ValueError(
            "train: expected at least one rule with a rate, found every parameter frozen"
        )
    return result


def apply_rules(
    model: nn.Module, rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[FreezeTableRow]:
    """Set requires_grad of every parameter of `model`, and return the table. Errors are those of `rates`."""
    for _, parameter, rate in parameter_rates(model, rules, adapter):
        parameter.requires_grad_(rate is not None)
    return table(model, rules, adapter)


def table(
    model: nn.Module, rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[FreezeTableRow]:
    """Return parts and rates in model order; tied parameters count once, adapter matrices separately."""
    rows: dict[tuple[str, float | None], FreezeTableRow] = {}
    for name, parameter, rate in parameter_rates(model, rules, adapter):
        part = _part(name)
        if adapter is not None and (matrix := MATRIX.search(name)):
            part = f"{part} adapter {matrix[1].split('_')[0]}"
        row = rows.setdefault((part, rate), FreezeTableRow(part, rate, 0, 0))
        # Two 4-bit weights are stored in one byte, in a tensor of another shape.
        packed = getattr(parameter, "quant_state", None)
        row.parameters += parameter.numel() if packed is None else packed.shape.numel()
        row.tensors += 1
    return list(rows.values())


def parameter_rates(
    model: nn.Module, rules: Sequence[Rule], adapter: AdapterRecipe | None = None
) -> list[tuple[str, nn.Parameter, float | None]]:
    """Return (name, parameter, rate) in model order, tied parameters once. Errors are those of `rates`."""
    named = list(model.named_parameters())
    found = rates([name for name, _ in named], rules, adapter)
    return [(*pair, rate) for pair, rate in zip(named, found, strict=True)]


def format_table(rows: Sequence[FreezeTableRow]) -> str:
    """Return the text of the table that is printed before step 1."""
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
    """Return optimizer groups, one per rate and kind: vectors (biases, norms, DoRA's magnitudes) have no
    weight decay."""
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for _, parameter, rate in parameter_rates(model, rules, adapter):
        if rate is not None and parameter.requires_grad:
            groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]


def _part(name: str) -> str:
    """Return the part of a Maya that a parameter belongs to, or the first component of its name."""
    return next((part for part in PARTS if part in name.split(".")), name.split(".")[0])


def _example(names: Sequence[str]) -> str:
    """Return the first name of every part, as examples."""
    first = {_part(name): name for name in reversed(names)}
    return ", ".join(reversed(first.values()))
