"""Who imports whom: no circle, no private name of another file, arrows between rooms one way.

Read from the source: imports inside functions count too, as they only hide a circle.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "training": "maya_vlm.training",
    "model_card": "maya_vlm.model_card",
    "modeling_maya": "modeling_maya",
    "processing_maya": "processing_maya",
}
# Room -> the rooms that it may import. Rooms of training/ by their folder, or by the file's name where
# the file stands in training/ itself. The layers of training/data/ are in tests/data/test_floors.py.
HUB = {"modeling_maya", "processing_maya", "llava_cohere"}
GROUND = {"common", *HUB}
ROOMS = {
    "processing_maya": set(),
    "modeling_maya": {"llava_cohere"},  # registers the original's checkpoints with the Auto classes
    "llava_cohere": {"modeling_maya", "processing_maya"},
    "common": HUB,
    "rows": GROUND,
    "arguments": GROUND,
    "recipe": {"arguments", *GROUND},
    "model": {"recipe", *GROUND},
    "batches": {"rows", "model", "recipe", *GROUND},
    "run": {"batches", "rows", "model", "recipe", "arguments", *GROUND},
    "inference": GROUND,
    "evaluation": {"inference", *GROUND},
    "ablation": {"run", "evaluation", "recipe", *GROUND},
    "bases": {"arguments", *GROUND},
    "data": {"rows", *GROUND},
    # Cards say what results, recipes and datasets hold.
    "model_card": {"evaluation", "inference", "recipe", "data", *GROUND},
}
ROOMS["cli"] = {*ROOMS, *GROUND}


class Import(NamedTuple):
    """`importer` takes `name` ("" for the module itself) of `imported`."""

    importer: str
    imported: str
    name: str


def modules() -> dict[str, Path]:
    """Module name -> its file, of all packages."""
    found = {}
    for folder, package in PACKAGES.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found[name] = file
    return found


MODULES = modules()


def imports(module: str) -> Iterator[Import]:
    file = MODULES[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    yield Import(module, alias.name, "")
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            target = ".".join([*(base if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                if f"{target}.{alias.name}" in MODULES:
                    yield Import(module, f"{target}.{alias.name}", "")
                elif target in MODULES:
                    yield Import(module, target, alias.name)


ALL = [found for module in MODULES for found in imports(module)]


def shown(module: str) -> str:
    return module.removeprefix("maya_vlm.")


def room(module: str) -> str:
    """The room of a module; "" for the package training itself."""
    if module.startswith("modeling_maya.llava_cohere"):
        return "llava_cohere"
    parts = shown(module).split(".")
    return ".".join(parts[1:2]) if parts[0] == "training" else parts[0]


def circles() -> list[list[str]]:
    """Strongly connected modules, by Tarjan's algorithm."""
    reached = defaultdict(set)
    for found in ALL:
        # A package's __init__ is imported before its modules by Python itself.
        if found.importer != found.imported:
            reached[found.importer].add(found.imported)
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    connected: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in reached[module]:
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            start = stack.index(module)
            connected.append(stack[start:])
            del stack[start:]

    for module in MODULES:
        if module not in number:
            visit(module)
    return [sorted(map(shown, found)) for found in connected if len(found) > 1]


def test_no_import_circle():
    assert circles() == []


def test_no_private_name_of_another_file():
    private = [
        f"{shown(found.importer)} imports {found.name} of {shown(found.imported)}"
        for found in ALL
        if found.name.startswith("_") and not found.name.startswith("__")
    ]
    assert private == []


def test_arrows_between_rooms_go_one_way():
    against = [
        f"{shown(found.importer)} -> {shown(found.imported)}"
        for found in ALL
        if (source := room(found.importer)) != (target := room(found.imported))
        and target
        and target not in ROOMS.get(source, set())
    ]
    assert against == []


def test_rooms_that_are_named_are_there():
    assert {room(module) for module in MODULES} - {""} == set(ROOMS)
