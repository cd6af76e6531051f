"""What the data of a stage is to everything after it, whether in memory or streamed: a `GroupSource`."""

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


@dataclass(frozen=True)
class Conversation:
    """Turns about the images of one row.

    messages: chat-template messages; images not placed by {"type": "image"} parts belong in front
    of the first question. images: keys for `load_image` of the data they are from, in the order of
    the image items.
    """

    id: str
    language: str
    task: str
    messages: list[dict[str, Any]]
    images: tuple[Any, ...]
    source: int


@dataclass(frozen=True)
class RowName:
    """Which row a conversation is: an id may be that of several rows, its number and its data are not.

    id: without one, the row's number. language: what is in its place, where it is none. row: number in its
    file or dataset, from 0. data: number of its dataset in the stage.
    """

    id: str
    language: str
    path: str
    row: int
    data: int


class Dataset(Protocol):
    """One of the datasets of a stage."""

    @property
    def recipe(self) -> DataRecipe: ...

    def named_pictures(self) -> Iterator[Any]:
        """The pictures that rows name, or hold, but for those in the dataset's table of images."""


class GroupSource(Protocol):
    """All conversations of a stage, from all its datasets, addressed by one number each.

    Attributes:
        languages: those of the rows. report: what was left out when the data was opened, a line each.
        streamed: whether a conversation can be read only once `plan` has given its group.
    """

    languages: list[str]
    report: list[str]
    streamed: bool

    @property
    def sources(self) -> Sequence[Dataset]: ...

    def __len__(self) -> int: ...

    def conversation(self, index: int) -> Conversation:
        """Conversation `index`, read from its row. Raises ValueError naming a row that is a bad one."""

    def name(self, index: int) -> RowName:
        """Which row conversation `index` is."""

    def load_image(self, source: int, key: Any, row_id: str) -> Image.Image:
        """The image `key` of a source, in its own mode.

        Raises:
            ValueError: the image cannot be read; names the row.
            OSError: its folder, archive or table cannot be read; names that.
        """

    def plan(
        self, groups: int | None, group_size: int, seed: int, shuffled: bool = True
    ) -> Sequence[tuple[int, np.ndarray]]:
        """Groups in training order: (epoch, conversation indices), all about one image.

        Args:
            groups: how many to return, or None for one pass over the data.
            shuffled: the groups in random order; else in the order of the data.
        """

    def summary(self) -> str:
        """Conversations per language and task, and images, in a few words."""


def left_out(path: str, keys: str, dropped: Counter[str]) -> str:
    """A line of a report. keys: the keys of the recipe that leave rows out."""
    text = ", ".join(f"{printable(k)} {v:,}" for k, v in sorted(dropped.items()))
    return f"{path}: left out, as the recipe's {keys} say: {text}"


def bad_row(name: RowName, reason: object) -> ValueError:
    return ValueError(
        f"{row_name(name.id, name.language, name.path)}: {reason}; repair the row or remove it"
    )


def load_picture(pictures: ImageStore, picture: str | bytes, row_id: str, path: str) -> Image.Image:
    """A row's picture, in its own mode. Raises as `GroupSource.load_image`."""
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
    """What `GroupSource.summary` says; about: the images, and how they are read."""
    counts = (
        ", ".join(f"{printable(name)} {number:,}" for name, number in each.items())
        for each in (languages, tasks)
    )
    return (
        f"{count:,} conversations about {about}; languages: {next(counts)}; tasks: {next(counts)}"
    )


def unreadable_image(row_id: str, path: str, reason: object) -> ValueError:
    return ValueError(
        f"row {printable(repr(row_id))} of {path}: its image cannot be read: "
        f"{str(reason).removesuffix('.')}; repair the file or remove the row"
    )


def split_groups(
    chosen: np.ndarray, image: np.ndarray, group_size: int, random: np.random.Generator
) -> list[np.ndarray]:
    """Conversations by their image, in random order, in near-equal parts of at most `group_size`.

    Args:
        chosen: (n,) conversations. image: (n,) of each; those of -1 are groups of one: nothing is
            shared.
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
    """Raises ValueError for values of a recipe's data that fit no dataset."""
    path = recipe.path
    for name, values in (("language", [recipe.language]), ("languages", recipe.languages)):
        for value in values:
            if not is_language(value):
                raise ValueError(f"{path}: {name}: {no_language(value)}; correct the recipe")
    if recipe.limit is not None and recipe.limit < 1:
        raise ValueError(f"{path}: limit: expected 1 image or more, found {recipe.limit}")
    for task, rate in recipe.tasks.items():
        if not (math.isfinite(rate) and rate >= 0):
            raise ValueError(
                f"{path}: tasks.{printable(task)}: expected how often its rows are seen, 0 or more, found "
                f"{rate:g}"
            )
    for name in recipe.columns:
        if name not in NAMED:
            raise ValueError(
                f"{path}: columns: expected some of {', '.join(NAMED)}, found {shown(name)}"
            )
