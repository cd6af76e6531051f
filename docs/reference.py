"""Pages that are made from the code: keys of recipes, plans and studies, tasks, the command line.

The explanation of a key is the text under its field, or the line about it in the docstring of its class. Nothing
is typed here, so a key cannot be forgotten.
"""

import argparse
import ast
import dataclasses
import inspect
import itertools
import json
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A checkout need not be installed.
if "maya_vlm" not in sys.modules:
    sys.path.insert(0, str(ROOT))


def pages() -> dict[str, str]:
    """Return name -> Markdown of every generated page."""
    from maya_vlm.training.ablation.study import Study
    from maya_vlm.training.data.plan import Plan
    from maya_vlm.training.recipe import Recipe

    return {
        "recipes": _keys(
            Recipe,
            "Recipes, key by key",
            "A recipe is one YAML file that `maya train` runs. `--set KEY=VALUE` changes any key, with the names or "
            "numbers of list items: `--set stages.finetune.args.max_steps=500`.",
        ),
        "plans": _keys(
            Plan,
            "Plans of datasets, key by key",
            "A plan is one YAML file that `maya data build` runs.",
        ),
        "studies": _keys(
            Study,
            "Studies, key by key",
            "A study is one YAML file that `maya ablate` runs.",
        ),
        "tasks": tasks_page(),
        "findings": findings_page(),
        "commands": commands_page(),
    }


def write_pages(folder: Path) -> None:
    """Write the generated pages into a folder."""
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = folder / f"{name}.md"
        # Sphinx reads a page again only if it has changed.
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------ keys


def _keys(cls: type, title: str, intro: str) -> str:
    parts = [f"# {title}", "", intro, ""]
    for place, kind in sections(cls):
        parts += [f"## {f'`{place}`' if place else 'Top level'}", ""]
        parts += [_summary(kind), ""]
        parts += ["| key | type | default | what it decides |", "| --- | --- | --- | --- |"]
        explained = explanations(kind)
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            if item.init:
                told = explained.get(item.name, "")
                row = [f"`{item.name}`", _type(hints[item.name]), _default(item), _cell(told)]
                parts.append(f"| {' | '.join(row)} |")
        parts.append("")
    return "\n".join(parts)


def sections(
    cls: type, place: str = "", seen: set[type] | None = None
) -> Iterator[tuple[str, type]]:
    """Yield (key, dataclass) of a dataclass and of those in its fields, each class once."""
    seen = set() if seen is None else seen
    if cls in seen:
        return
    seen.add(cls)
    yield place, cls
    for name, hint in typing.get_type_hints(cls).items():
        many = typing.get_origin(hint) is list
        for kind in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(kind):
                yield from sections(
                    kind, f"{place + '.' if place else ''}{name}{'[]' if many else ''}", seen
                )


def explanations(cls: type) -> dict[str, str]:
    """Return field -> its explanation: the text under it, or its line in the class's docstring."""
    found = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        statements = typing.cast(ast.ClassDef, body).body
        for before, after in itertools.pairwise(statements):
            text = after.value if isinstance(after, ast.Expr) else None
            of_field = isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)
            if of_field and isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[before.target.id] = text.value
        names = [item.name for item in dataclasses.fields(base)]
        found |= {k: v for k, v in _in_docstring(base, names).items() if k not in found}
    return found


def _in_docstring(cls: type, names: list[str]) -> dict[str, str]:
    """Return what lines `name: text` and `name, other: text` of a docstring say of fields."""
    found: dict[str, str] = {}
    current: list[str] = []
    for line in inspect.cleandoc(cls.__doc__ or "").splitlines():
        match = re.match(r"\s*(\w+(?:, \w+)*): (.*)", line)
        known = [name for name in (match[1].split(", ") if match else []) if name in names]
        if match and known:
            current = known
            found |= dict.fromkeys(known, match[2])
        elif line.startswith("    ") and current:
            for name in current:
                found[name] += f" {line.strip()}"
        elif not line.strip() or not line.startswith(" "):
            current = []
    return found


def _summary(cls: type) -> str:
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _type(hint: Any) -> str:
    from maya_vlm.training.common.schema import type_name

    return _cell(type_name(hint))


def _default(item: Any) -> str:
    if item.default is not dataclasses.MISSING:
        return f"`{item.default!r}`" if item.default is not None else "none"
    if item.default_factory is dataclasses.MISSING:
        return "required"
    made = item.default_factory()
    return (
        "empty"
        if made in ([], {}, ())
        else "its own defaults"
        if dataclasses.is_dataclass(made)
        else f"`{made!r}`"
    )


def _cell(text: str) -> str:
    """Return text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ------------------------------------------------------------------------------ tasks


def tasks_page() -> str:
    """Return the page of evaluation tasks and their protocols."""
    from maya_vlm.training.evaluation.tasks import TASKS

    parts = ["# Tasks and protocols", ""]
    parts += [
        "A protocol is chosen with `--tasks NAME:PROTOCOL`; the first one is the default.",
        "",
    ]
    for kind in TASKS.values():
        parts += [f"## `{kind.name}`: {_cell(kind.title)}", ""]
        parts += ["| protocol | score | source |", "| --- | --- | --- |"]
        for protocol, source in kind.protocols.items():
            task = kind(protocol)
            score = _cell(task.metrics[task.metric]["title"])
            parts.append(f"| `{task.key}` | {score} | {_cell(source)} |")
        parts += ["", f"Languages: {' '.join(kind.languages)}", ""]
    return "\n".join(parts)


# ------------------------------------------------------------------------------ findings


def findings_page() -> str:
    """Return the page of what the studies found, from the reports in docs/findings."""
    from maya_vlm.training.ablation.estimate import estimate_cells, estimate_table
    from maya_vlm.training.ablation.report import verdict
    from maya_vlm.training.ablation.study import STUDIES, find_study, read_study

    parts, finished = ["# Findings", ""], []
    parts += [
        "What the studies of this package found, all runs counted. A difference is listed if its p value stays below "
        "0.05 after the correction for all comparisons of its study.",
        "",
    ]
    for path in sorted((ROOT / "docs" / "findings").glob("*/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        study, name = report["study"], path.parent.name
        parts += [f"## {study['title']}", "", f"**Question.** {study['question']}", ""]
        parts += [f"**The papers.** {study['paper'].strip()}", ""]
        parts += ["**Found.**", "", *(f"- {line}" for line in _differences(report)), ""]
        file = find_study(name)
        if claim := read_study(file).claim:
            parts += [f"**{verdict(report, claim)}**", ""]
        states = [run["state"] for run in report["runs"]]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        seeds = len(study["seeds"])
        parts += [
            f"**How sure.** {len(states)} runs, {seeds} seeds a cell: {counts}. {study['scope'].strip()}",
            "",
        ]
        full = read_study(file, full_size=True)
        cells = estimate_cells(full, "h100", None, False)
        cost = "; ".join(list(estimate_table(full, cells))[len(cells) + 1 :])
        command = f"maya ablate {name} --full-size --estimate --gpu h100"
        parts += [f"**To be sure at full size.** {cost} (`{command}`).", ""]
        parts += [f"[All numbers](../findings/{name}/report.md)", ""]
        finished.append(name)
    open_questions = [each for each in sorted(STUDIES.glob("*.yaml")) if each.stem not in finished]
    if open_questions:
        parts += ["## Shipped studies without results yet", ""]
        parts += [
            f"- `maya ablate {each.stem}`: {read_study(each).question}" for each in open_questions
        ]
    return "\n".join(parts)


def _differences(report: dict[str, Any]) -> Iterator[str]:
    """Yield a line for every measure of a study: the cells that differ from the baseline, or that none does."""
    for measure in report["measures"]:
        better = {True: "higher", False: "lower", None: "neither higher nor lower"}
        sure = [
            f"`{cell}` {found['difference']:+.3g}"
            for cell, found in measure["differences"].items()
            if found["corrected"] is not None and found["corrected"] < 0.05
        ]
        told = ", ".join(sure) or "no difference that the seeds do not explain"
        is_better = better[measure["higher_is_better"]]
        yield f"{measure['name']} ({is_better} is better), against `{report['baseline']}`: {told}"


# ------------------------------------------------------------------------------ commands


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every subcommand, by its words: `data build`."""
    from maya_vlm.training.cli import build_parser

    found: dict[str, argparse.ArgumentParser] = {}

    def walk(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    found[" ".join((*words, name))] = inner
                    walk(inner, (*words, name))

    walk(build_parser(), ())
    return found


def commands_page() -> str:
    """Return the page of the command line: the help of every subcommand."""
    parts = ["# The command line", ""]
    parts += ["Every subcommand's `--help`. `maya --traceback` shows where an error came from.", ""]
    for name, parser in commands().items():
        parser.formatter_class = lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=90)
        parts += [f"## `maya {name}`", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(parts)
