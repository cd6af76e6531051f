"""Read the tables of the mini dataset, which both bases are made from."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_splits(
    folder: Path, config: str, columns: Sequence[str]
) -> dict[str, dict[str, list[Any]]]:
    """Split -> column -> values of a configuration; pictures stay undecoded.

    Raises ValueError for a configuration that does not load, and for a column that it lacks.
    """
    import datasets

    try:
        # A cache of its own: the shared one takes a changed folder, or another of the same name,
        # for the one that it has read before.
        with tempfile.TemporaryDirectory() as cache:
            splits = datasets.load_dataset(
                str(folder), config, cache_dir=cache, keep_in_memory=True
            )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder}: configuration {config!r} does not load: {reason}") from error
    found: dict[str, dict[str, list[Any]]] = {}
    for name, split in splits.items():
        if missing := [column for column in columns if column not in split.column_names]:
            raise ValueError(
                f"{folder}: configuration {config!r} has no column {', '.join(missing)}; found "
                f"{', '.join(split.column_names)}"
            )
        for column in columns:
            if isinstance(split.features[column], datasets.Image):
                split = split.cast_column(column, datasets.Image(decode=False))
        found[str(name)] = {column: list(split[column]) for column in columns}
    return found
