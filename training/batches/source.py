"""GroupSource, the interface of a stage's data, whether in memory or streamed."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ..common.images import ImageStore, StorageError, is_address
from ..common.languages import is_language, no_language
from ..common.telling import printable, shown
from ..recipe import DataRecipe
from ..rows.conversations import NAMED
from ..rows.tables import row_name
from .noise import check_noise


@dataclass(frozen=True)
class Conversation:
    """Turns about the images of one row.

    messages: chat-template messages; images without an {"type": "image"} part belong before the first
        question.
    images: keys for `load_image` of its source, in the order of the image parts.
    """

    id: str
    language: str
    task: str
    messages: list[dict[str, Any]]
    images: tuple[Any, ...]
    source: int


@dataclass(frozen=True)
class RowName:
    """Identifies the row of a conversation. Several rows may share an id; `data` and `row` are unique.

    id: the row's number if it has no id.
    language: the cell's text if it is not a language.
    row: number in its file or dataset, from 0.
    data: number of its dataset in the stage.
    """

    id: str
    language: str
    path: str
    row: int
    data: int


class Dataset(Protocol):
    """One dataset of a stage."""

    @property
    def recipe(self) -> DataRecipe: ...

    def named_pictures(self) -> Iterator[Any]:
        """Yield the images that rows name or hold, except those in the dataset's image table."""


class GroupSource(Protocol):
    """All conversations of a stage, from all its datasets, each addressed by one number.

    Attributes:
        languages: languages of the rows.
        report: lines on what was dropped when the data was opened.
        streamed: whether a conversation can be read only after `plan` has returned its group.
    """

    languages: list[str]
    report: list[str]
    streamed: bool

    @property
    def sources(self) -> Sequence[Dataset]: ...

    def __len__(self) -> int: ...

    def conversation(self, index: int) -> Conversation:
        """Read conversation `index` from its row. Raise ValueError, with the row's name, for a bad row."""

    def name(self, index: int) -> RowName:
        """Return the name of conversation `index`'s row."""

    def load_image(self, source: int, key: Any, row_id: str) -> Image.Image:
        """Load image `key` of a source, in its own PIL mode.

        Raises:
            ValueError: naming the row, if the image cannot be read.
            OSError: naming the folder, archive or table, if that cannot be read.
        """

    def plan(
        self, groups: int | None, group_size: int, seed: int, shuffled: bool = True
    ) -> Sequence[tuple[int, np.ndarray]]:
        """Return groups in training order: (epoch, indices of conversations about one image).

        Args:
            groups: how many to return, or None for one pass over the data.
            shuffled: random order of groups; otherwise the order of the data.
        """

    def summary(self) -> str:
        """Return one line with the numbers of images and of conversations per language and task."""


def left_out(path: str, keys: str, dropped: Counter[str]) -> str:
    """Return a line for a report; `keys` are the recipe keys that drop rows."""
    text = ", ".join(f"{printable(k)} {v:,}" for k, v in sorted(dropped.items()))
    return f"{path}: rows dropped by the recipe's {keys}: {text}"


def bad_row(name: RowName, reason: object) -> ValueError:
    """Return the error for a bad row, with the row's name."""
    return ValueError(
        f"{row_name(name.id, name.language, name.path)}: {reason}: repair the row or remove it"
    )


def load_picture(pictures: ImageStore, picture: str | bytes, row_id: str, path: str) -> Image.Image:
    """Load a row's image, in its own PIL mode. Errors are those of `GroupSource.load_image`."""
    try:
        return pictures.load(picture)
    except StorageError:
        raise
    except (ValueError, OSError) as error:
        if isinstance(error, ConnectionError) and not is_address(str(picture)):
            raise
        raise unreadable_image(row_id, path, error) from None


def summarise(
    count: int, about: str, languages: Mapping[str, int], tasks: Mapping[str, int]
) -> str:
    """Build the text of `GroupSource.summary`; `about` describes the images and how they are read."""
    counts = (
        ", ".join(f"{printable(name)} {number:,}" for name, number in each.items())
        for each in (languages, tasks)
    )
    return (
        f"{count:,} conversations about {about}; languages: {next(counts)}; tasks: {next(counts)}"
    )


def unreadable_image(row_id: str, path: str, reason: object) -> ValueError:
    """Return the error for an image that cannot be read, with the row's name."""
    return ValueError(
        f"row {printable(repr(row_id))} of {path}: its image cannot be read: "
        f"{str(reason).removesuffix('.')}: repair the file or remove the row"
    )


def split_groups(
    chosen: np.ndarray, image: np.ndarray, group_size: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Group conversations by image, in random order, and split groups into near-equal parts.

    Args:
        chosen: (n,) conversations.
        image: (n,) image of each conversation. Those with -1 become groups of one, since nothing is shared.
        group_size: largest size of a part.
    """
    key = image.copy()
    alone = key < 0
    key[alone] = image.max(initial=-1) + 1 + np.arange(alone.sum())
    order = np.lexsort((random.random(len(chosen)), key))
    chosen, key = chosen[order], key[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    parts: list[np.ndarray] = []
    for block in np.split(chosen, starts[1:]):
        parts += np.array_split(block, -(-len(block) // group_size))
    return parts


def check_data(recipe: DataRecipe) -> None:
    """Raise ValueError for values of a recipe's data section that fit no dataset."""
    path = recipe.path
    for name, values in (("language", [recipe.language]), ("languages", recipe.languages)):
        for value in values:
            if not is_language(value):
                raise ValueError(f"{path}: {name}: {no_language(value)}: correct the recipe")
    if recipe.limit is not None and recipe.limit < 1:
        raise ValueError(f"{path}: limit: expected 1 image or more, found {recipe.limit}")
    for task, rate in recipe.tasks.items():
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"{path}: tasks.{printable(task)}: expected how often its rows are seen, 0 or more, found "
                f"{rate:g}"
            )
    check_noise(recipe)
    for name in recipe.columns:
        if name not in NAMED:
            raise ValueError(
                f"{path}: columns: expected some of {', '.join(NAMED)}, found {shown(name)}"
            )
