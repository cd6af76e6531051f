"""The scores as metrics of the library `evaluate`, one file each.

`evaluate.load(path(name))` loads one without a network. It copies the file elsewhere, so a file imports
this package by its installed name. Its import scanner fails at `import a, b`.
"""

from pathlib import Path


def names() -> list[str]:
    """The metrics that can be loaded."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))


def path(name: str) -> str:
    """The file of a metric, for `evaluate.load`. Raises ValueError for an unknown name."""
    if name not in names():
        raise ValueError(f"metric: expected one of {', '.join(names())}, found {name!r}")
    return str(Path(__file__).parent / f"{name}.py")
