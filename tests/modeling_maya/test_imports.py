"""What the code that is copied into saved folders imports."""

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
