"""What learns and how fast: an ordered list of (pattern, rate or frozen), as data.

The first rule whose pattern is found in a parameter's name decides. Every parameter must be decided
and every rule must decide something, so a misspelt pattern is an error and never a frozen model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .recipe import Rule

# Parts of a Maya, as they are named in checkpoints, tables and logs.
PARTS = ("vision_tower", "multi_modal_projector", "language_model", "lm_head")


@dataclass
class Row:
    """One line of the table: a part, the rate its parameters learn at (None: frozen), how many."""

    part: str
    rate: float | None
    parameters: int
    tensors: int


def rates(names: Sequence[str], rules: Sequence[Rule]) -> list[float | None]:
    """The rate of each parameter name, None for frozen.

    Raises ValueError for a pattern that is no regular expression or decides nothing, for a name no
    rule finds, and when everything is frozen.
    """
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
    for name in names:
        for i, pattern in enumerate(compiled):
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
                "earlier rules took them all); names look like "
                f"{_example(names)}"
            )
    if all(rate is None for rate in result):
        raise ValueError("train: every parameter is frozen; expected at least one rule with a rate")
    return result


def apply_rules(model: nn.Module, rules: Sequence[Rule]) -> list[Row]:
    """Set requires_grad of every parameter of `model`; returns the table. Raises as `rates`."""
    named = list(model.named_parameters())
    for (_, parameter), rate in zip(named, rates([n for n, _ in named], rules), strict=True):
        parameter.requires_grad_(rate is not None)
    return table(model, rules)


def table(model: nn.Module, rules: Sequence[Rule]) -> list[Row]:
    """Parts and rates in model order, tied parameters counted once."""
    named = list(model.named_parameters())
    rows: dict[tuple[str, float | None], Row] = {}
    for (name, parameter), rate in zip(named, rates([n for n, _ in named], rules), strict=True):
        part = next((p for p in PARTS if p in name.split(".")), name.split(".")[0])
        row = rows.setdefault((part, rate), Row(part, rate, 0, 0))
        row.parameters += parameter.numel()
        row.tensors += 1
    return list(rows.values())


def format_table(rows: Sequence[Row]) -> str:
    """The table as it is printed before step 1."""
    lines = [f"{'part':24}{'':10}{'parameters':>16}{'tensors':>9}  rate"]
    for row in rows:
        state = "frozen" if row.rate is None else "trained"
        rate = "" if row.rate is None else f"{row.rate:g}"
        lines.append(
            f"{row.part:24}{state:10}{row.parameters:>16,}{row.tensors:>9}  {rate}".rstrip()
        )
    trained = sum(r.parameters for r in rows if r.rate is not None)
    total = sum(r.parameters for r in rows)
    lines.append(f"{'all':24}{'':10}{total:>16,}{sum(r.tensors for r in rows):>9}")
    lines.append(f"{trained:,} of {total:,} parameters are trained")
    return "\n".join(lines)


def parameter_groups(model: nn.Module, rules: Sequence[Rule], weight_decay: float) -> list[dict]:
    """Optimizer groups: one per rate, weights apart from biases and norms (which do not decay)."""
    named = list(model.named_parameters())
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for (_, parameter), rate in zip(named, rates([n for n, _ in named], rules), strict=True):
        if rate is not None and parameter.requires_grad:
            groups.setdefault((rate, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]


def _example(names: Sequence[str]) -> str:
    seen: dict[str, str] = {}
    for name in names:
        part = next((p for p in PARTS if p in name.split(".")), "")
        seen.setdefault(part, name)
    return ", ".join(seen.values())
