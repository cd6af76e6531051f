"""The scores as metrics of the `evaluate` library, one file each.

`evaluate.load(path(name))` loads a metric without a network. `evaluate` copies the file to another folder, so each
file imports this package by its installed name. Write one import a line: the library's scanner fails at `import a, b`.
"""

from pathlib import Path


def names() -> list[str]:
    """Return the names of the metrics that can be loaded."""
    return sorted(file.stem for file in Path(__file__).parent.glob("[!_]*.py"))


def path(name: str) -> str:
    """Return the path of a metric's file, for `evaluate.load`.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in names():
        raise ValueError(f"metric: expected one of {', '.join(names())}, found {name!r}")
    return str(Path(__file__).parent / f"{name}.py")
