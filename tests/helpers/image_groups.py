"""Read a dataset image by image, joined by `training/batches/joined.py`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from maya_vlm.training.batches.joined import Filters, GroupedTables
from maya_vlm.training.rows.tables import find_files


@dataclass
class ImageGroup:
    """One image with its rows. image: the file's bytes, or its name if the dataset does not contain it
    (several names are separated by null characters), or None. rows: dictionaries without the image's
    bytes."""

    image: bytes | str | None
    rows: list[dict[str, Any]] = field(default_factory=list)


def image_groups(
    path: str, config: str | None = None, split: str = "train", filters: Filters | None = None
) -> Iterator[ImageGroup]:
    """Yield every image of a dataset with its rows in all languages, in stored order, with bounded memory.

    Args:
        path: a folder or Hub repository with the layout of joined.py.

    Raises:
        ValueError, OSError: as `find_files` and `GroupedTables`.
        FileNotFoundError: a row's image is not in the dataset's image table.
    """
    joined = GroupedTables(path, find_files(path, config, split), filters)
    for block in range(len(joined)):
        rows = joined.read([block], joined.columns)
        dicts = rows.table.to_pylist()
        order = np.argsort(
            np.where(rows.key < 0, rows.key.max(initial=0) + 1, rows.key), kind="stable"
        )
        names = [None] * len(dicts) if joined.key is None else joined.names(rows.table).to_pylist()
        found = joined.read_images([n for n in names if n is not None]) if joined.images else {}
        group, last = ImageGroup(None), -1
        for i in order.tolist():
            if rows.key[i] < 0 or rows.key[i] != last:
                if group.rows:
                    yield group
                name = names[i]
                group, last = ImageGroup(name), int(rows.key[i])
                if name is not None and joined.images is not None:
                    if name not in found:
                        raise FileNotFoundError(f"{path}: {name!r} is not in the table of images")
                    value = found[name].as_py()
                    group.image = value["bytes"] if isinstance(value, dict) else value
            group.rows.append(dicts[i])
        if group.rows:
            yield group
