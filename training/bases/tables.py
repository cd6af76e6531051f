"""Read the tables of the mini dataset, the training data of both base models."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_splits(
    folder: Path, config: str, columns: Sequence[str]
) -> dict[str, dict[str, list[Any]]]:
    """Return split -> column -> values of a configuration; images stay encoded.

    Raises:
        ValueError: if the configuration does not load or lacks a column.
    """
    import datasets

    try:
        # Use a separate cache: the shared one returns old rows for a folder that has changed, or for
        # another folder of the same name.
        with tempfile.TemporaryDirectory() as cache:
            splits = datasets.load_dataset(
                str(folder), config, cache_dir=cache, keep_in_memory=True
            )
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{folder}: configuration {config!r} cannot be loaded: {reason}"
        ) from error
    found: dict[str, dict[str, list[Any]]] = {}
    for name, split in splits.items():
        if missing := [column for column in columns if column not in split.column_names]:
            raise ValueError(
                f"{folder}: configuration {config!r}: expected the columns {', '.join(missing)}, found "
                f"{', '.join(split.column_names)}"
            )
        for column in columns:
            if isinstance(split.features[column], datasets.Image):
                split = split.cast_column(column, datasets.Image(decode=False))
        found[str(name)] = {column: list(split[column]) for column in columns}
    return found
