"""Load single modules of the Hub packages without importing the packages.

Importing `processing_maya` imports torch and transformers, which takes seconds and memory that reading
rows does not need. Modules of it that need neither are loaded from their files.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def processing_module(name: str) -> ModuleType:
    """Return the module `processing_maya/<name>.py`, which must not import siblings."""
    package = importlib.util.find_spec("processing_maya")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"processing_maya_{name}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
