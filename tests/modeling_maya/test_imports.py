"""Who imports whom in the two Hub packages."""

import ast
from pathlib import Path

import pytest

import modeling_maya
import processing_maya

MODELING, PROCESSING = (Path(p.__file__).parent for p in (modeling_maya, processing_maya))


def imported(path):
    """Modules that a file imports; those of its own package begin with dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize(
    "path", [*MODELING.glob("*_maya.py"), *PROCESSING.glob("*_maya.py")], ids=lambda path: path.stem
)
def test_hub_code_imports_hub_code_beside_it(path):
    for name in imported(path):
        if name.startswith("."):
            assert name.endswith("_maya"), name
            assert name.count(".") == 1, name
        else:
            assert name.partition(".")[0] not in ("modeling_maya", "processing_maya"), name


def test_processing_does_not_know_modeling():
    for path in PROCESSING.glob("*.py"):
        assert not any(name.startswith("modeling_maya") for name in imported(path)), path


def test_only_the_converter_knows_both_packages():
    for path in MODELING.glob("*.py"):
        assert not any(name.startswith("processing_maya") for name in imported(path)), path
