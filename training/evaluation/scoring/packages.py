"""Optional packages, imported when they are first needed."""

import importlib
from types import ModuleType


def need(module: str, package: str, purpose: str) -> ModuleType:
    """Import an optional module.

    Raises:
        ModuleNotFoundError: in one line that names the package and the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{purpose}: the package {package} is not installed: pip install 'maya-vlm[eval]'",
            name=error.name,
        ) from None
