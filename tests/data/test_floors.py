"""The layers of training/data: imports follow the order in its docstring."""

import ast
from pathlib import Path

import pytest

from maya_vlm.training import data

ROOT = Path(data.__file__).parent
# The lines of the docstring after "imports only from lower layers:".
FLOORS = [
    {name.strip() for name in line.split(",")}
    for line in (data.__doc__ or "").partition("imports only from lower layers:\n")[2].splitlines()
    if line.strip()
]
HEIGHT = {name: len(FLOORS) - number for number, names in enumerate(FLOORS) for name in names}
FILES = [file for file in sorted(ROOT.rglob("*.py")) if "mini_dataset" not in file.parts]


def floor_of(parts: tuple[str, ...]) -> str:
    """Return the layer of a module in `training.data`."""
    return parts[0] if parts and (ROOT / parts[0]).is_dir() else "top"


def imported(file: Path) -> set[str]:
    """Return the layers that a file imports, including imports in functions."""
    package = file.relative_to(ROOT).parts[:-1]
    floors = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(package) + 1:
            base = package[: len(package) - node.level + 1]
            module = (*base, *(node.module or "").split("."))
            names = [module] if node.module else [(*base, alias.name) for alias in node.names]
            floors |= {floor_of(tuple(filter(None, name))) for name in names}
    return floors


def test_every_floor_has_its_place():
    folders = {f.name for f in ROOT.iterdir() if (f / "__init__.py").is_file()}
    assert set(HEIGHT) == folders - {"mini_dataset"} | {"top"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_lead_down(file):
    own = floor_of(file.relative_to(ROOT).parts)
    for other in imported(file) - {own}:
        assert HEIGHT[other] < HEIGHT[own], f"{file}: {own} imports {other}"
