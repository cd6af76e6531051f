"""A GroupSource in memory. It turns rows into groups: one image, K conversations, each with its language.

The plan depends only on the seed: it is the same for any number of processes, and resuming needs no
stored state.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..common.images import ImageStore, is_address
from ..common.languages import as_language, no_language
from ..common.telling import printable, shown
from ..recipe import DataRecipe
from ..rows.conversations import RowError, RowReader
from ..rows.open import Rows, open_pictures, open_rows
from ..rows.tables import no_images
from .noise import answers_from, with_answers
from .source import (
    Conversation,
    RowName,
    bad_row,
    check_data,
    left_out,
    load_picture,
    split_groups,
    summarise,
)


@dataclass
class _Source:
    """One dataset: `rows[i]` is a row, `reader` reads it, `pictures` opens the entries of `image_keys`.

    Rows with the same images in the same order share one entry of `image_sets`, a tuple of indices into
    `image_keys`. `image_set` (n,) has that entry's index for every kept conversation, -1 without image.
    """

    recipe: DataRecipe
    rows: Rows
    reader: RowReader
    row_index: np.ndarray  # (n,) index into rows for every kept conversation
    image_keys: list[Any] = field(default_factory=list)  # distinct images
    pictures: ImageStore = field(default_factory=lambda: ImageStore(None))
    image_sets: list[tuple[int, ...]] = field(default_factory=list)
    image_set: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    no_language: dict[int, str] = field(
        default_factory=dict
    )  # row -> text of an invalid language cell
    refused: dict[int, str] = field(default_factory=dict)  # row -> why it is a bad row
    # (n,) the conversation whose answers each conversation has, if the recipe asks for noise
    answers: np.ndarray | None = None

    def named_pictures(self) -> Iterator[Any]:
        return iter(self.image_keys)

    def row_id(self, place: int) -> str:
        """Return a row's id, or its number if it has none."""
        identity = self.rows[place].get("id")
        return str(self.rows.number(place) if identity is None else identity)


class GroupData:
    """A `GroupSource` in memory.

    Args:
        on_bad_row: with "stop", an unreadable row, or a cell that is not an image or language, raises
            here; with "skip", `conversation` raises for that row.

    Attributes:
        languages, tasks: names; `language` and `task` hold an index into them per conversation, -1
            for an invalid language.
        image: (n,) int64, the image of each conversation, numbered over all sources; -1 for none. A
            tuple of several images counts as one image.
    """

    streamed = False

    def __init__(
        self,
        recipes: Sequence[DataRecipe],
        seed: int = 0,
        on_bad_row: Literal["stop", "skip"] = "stop",
    ):
        self.sources: list[_Source] = []
        self.languages: list[str] = []
        self.tasks: list[str] = []
        self.report: list[str] = []
        parts: list[tuple[np.ndarray, ...]] = []
        # Sources with the same image folder share its images, so one file per language becomes groups.
        known: dict[tuple[str, Any], int] = {}
        for number, recipe in enumerate(recipes):
            source, languages, tasks, report = _open_source(recipe, seed, on_bad_row)
            count = len(source.row_index)
            self.report += report
            self.sources.append(source)
            parts.append(
                (
                    _index(languages, self.languages),
                    _index(tasks, self.tasks),
                    _common_numbers(source, known),
                    np.array([recipe.tasks.get(task, 1.0) for task in tasks], np.float32),
                    np.full(count, number, np.int16),
                    np.arange(count, dtype=np.int64),
                )
            )
        columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        self.language, self.task, self.image, self.weight, self._source, self._local = columns
        if not self.languages:
            raise ValueError(next(iter(self.sources[0].refused.values())))

    def __len__(self) -> int:
        return len(self.image)

    def conversation(self, index: int) -> Conversation:
        """See `GroupSource.conversation`."""
        number = int(self._source[index])
        source, local = self.sources[number], int(self._local[index])
        place, name = int(source.row_index[local]), self.name(index)
        if place in source.refused:
            raise ValueError(source.refused[place])
        row = source.rows[place]
        image_set = int(source.image_set[local])
        images = source.image_sets[image_set] if image_set >= 0 else ()
        try:
            messages = source.reader.messages(row, len(images))
            if source.answers is not None and source.answers[local] != local:
                other = int(source.answers[local])
                if int(source.row_index[other]) in source.refused:
                    raise ValueError(source.refused[int(source.row_index[other])])
                others = source.reader.messages(
                    source.rows[int(source.row_index[other])], len(images)
                )
                messages = with_answers(messages, others)
        except RowError as error:
            raise bad_row(name, error) from None
        return Conversation(
            id=name.id,
            language=name.language,
            task=self.tasks[self.task[index]],
            messages=messages,
            images=images,
            source=number,
        )

    def name(self, index: int) -> RowName:
        """See `GroupSource.name`."""
        number = int(self._source[index])
        source = self.sources[number]
        place = int(source.row_index[int(self._local[index])])
        language = int(self.language[index])
        return RowName(
            id=source.row_id(place),
            language=self.languages[language] if language >= 0 else source.no_language[place],
            path=source.recipe.path,
            row=source.rows.number(place),
            data=number,
        )

    def load_image(self, source: int, key: int, row_id: str) -> Image.Image:
        """See `GroupSource.load_image`."""
        item = self.sources[source]
        return load_picture(item.pictures, item.image_keys[key], row_id, item.recipe.path)

    def plan(
        self,
        groups: int | None,
        group_size: int,
        seed: int,
        shuffled: bool = True,
    ) -> list[tuple[int, np.ndarray]]:
        """See `GroupSource.plan`.

        Each epoch visits every conversation as often as its task's weight. The fraction of a weight is
        a probability, drawn again each epoch.
        """
        found: list[tuple[int, np.ndarray]] = []
        epoch = 0
        while True:
            parts = self._epoch(epoch, group_size, seed, shuffled)
            if groups is None:
                groups = len(parts)
            found += [(epoch, part) for part in parts[: groups - len(found)]]
            if len(found) >= groups:
                return found
            epoch += 1

    def _epoch(self, epoch: int, group_size: int, seed: int, shuffled: bool) -> list[np.ndarray]:
        random = np.random.default_rng([seed, epoch])
        copies = np.floor(self.weight + random.random(len(self), dtype=np.float32)).astype(np.int64)
        chosen: np.ndarray = np.repeat(np.arange(len(self)), copies)
        if not len(chosen):
            raise ValueError(
                "tasks: expected a conversation with a task weight above 0, found none"
            )
        parts = split_groups(chosen, self.image[chosen], group_size, random)
        if shuffled:
            random.shuffle(parts)  # type: ignore[arg-type]
        return parts

    def summary(self) -> str:
        """See `GroupSource.summary`."""
        languages = Counter(self.languages[i] for i in self.language.tolist() if i >= 0)
        tasks = Counter(self.tasks[i] for i in self.task.tolist())
        images = len(np.unique(self.image[self.image >= 0]))
        return summarise(len(self), f"{images:,} images", languages, tasks)


def _common_numbers(source: _Source, known: dict[tuple[str, Any], int]) -> np.ndarray:
    """Return (n,) image numbers of all conversations, shared by all sources; -1 stays -1."""
    place, group = source.recipe.image_folder or source.recipe.path, source.image_set
    lookup: np.ndarray = np.full(
        len(source.image_sets) + 1, -1, np.int64
    )  # the last entry maps -1 to -1
    for value in np.unique(group[group >= 0]).tolist():
        keys = tuple(source.image_keys[image] for image in source.image_sets[value])
        name = ("" if all(isinstance(key, bytes) for key in keys) else place, keys)
        lookup[value] = known.setdefault(name, len(known))
    return lookup[group]


def _index(values: Sequence[str | None], names: list[str]) -> np.ndarray:
    known: dict[str | None, int] = {None: -1, **{name: i for i, name in enumerate(names)}}
    for value in dict.fromkeys(values):
        if value is not None and value not in known:
            known[value] = len(names)
            names.append(value)
    return np.array([known[v] for v in values], np.int16)


# ------------------------------------------------------------------------------ opening


def _open_source(
    recipe: DataRecipe, seed: int, on_bad_row: Literal["stop", "skip"]
) -> tuple[_Source, list[str | None], list[str], list[str]]:
    """Open a source; return it, its conversations' languages (None if invalid) and tasks, and a report."""
    check_data(recipe)
    # Rows.
    rows = open_rows(recipe)
    if len(rows) == 0:
        raise ValueError(f"{recipe.path}: split {recipe.split!r}: expected rows, found none")
    if len(rows.unreadable) == len(rows):
        raise ValueError(f"{recipe.path}: no row can be read: {rows.unreadable[0]}")
    source = _Source(recipe, rows, _row_reader(recipe, rows), np.arange(len(rows)))
    for i, reason in rows.unreadable.items():
        _refuse(source, i, reason, on_bad_row)

    count = len(rows)
    # Language and task of every row.
    named = "lang" if "lang" in rows.columns else "language"
    cells = rows.column(named) if named in rows.columns else [None] * count
    codes = [as_language(v) for v in cells]
    unknown = {i for i, v in enumerate(cells) if v is not None and codes[i] is None}
    languages = [
        shown(v) if i in unknown else recipe.language if v is None else str(codes[i])
        for i, v in enumerate(cells)
    ]
    default = source.reader.task
    task = rows.column("task") if "task" in rows.columns else []
    tasks = [str(v or default) for v in task] or [default] * count

    # Filters by language and task.
    keep: np.ndarray = np.ones(count, bool)
    report = []
    for name, wanted, values in (
        ("languages", recipe.languages, languages),
        ("tasks", list(recipe.tasks), tasks),
    ):
        present = set(values)
        for value in wanted:
            if value not in present:
                raise ValueError(
                    f"{recipe.path}: {name}: expected values in split {recipe.split!r}, found {value!r}: "
                    f"use some of {printable(', '.join(sorted(present)))}"
                )
        if wanted:
            mask = np.array([v in set(wanted) for v in values])
            dropped = Counter(np.array(values)[~mask & keep].tolist())
            keep &= mask
            if dropped:
                report.append(left_out(recipe.path, name, dropped))

    # Images, and the limit on them.
    _find_images(source, on_bad_row)
    group = source.image_set
    if recipe.limit is not None:
        images = np.unique(group[keep & (group >= 0)])
        if keep.any() and not len(images):
            raise ValueError(no_images(recipe.path))
        chosen = np.random.default_rng(seed).permutation(images)[: recipe.limit]
        mask = np.isin(group, chosen)
        report.append(
            f"{recipe.path}: limit {recipe.limit}: {len(chosen):,} of {len(images):,} images"
        )
        keep &= mask
    # The language, task and image of an unreadable row are unknown, so no filter drops it.
    keep[list(rows.unreadable)] = True
    index = np.flatnonzero(keep)
    if not len(index):
        raise ValueError(
            f"{recipe.path}: expected rows after languages, tasks and limit, found none"
        )
    # Rows with an invalid language.
    for i in (i for i in index.tolist() if i in unknown):
        source.no_language[i] = shown(cells[i])
        reason = f"{named}: {no_language(cells[i])}: repair the row or remove it"
        _refuse(source, i, reason, on_bad_row)
    source.row_index, source.image_set = index, group[index]
    known = [None if i in unknown else languages[i] for i in index.tolist()]
    kept = [tasks[i] for i in index]
    # Wrong texts on purpose.
    if recipe.noise is not None:
        source.answers, replaced = answers_from(recipe.noise, source.image_set, known, kept, seed)
        told = ", ".join(f"{name} {number:,}" for name, number in replaced.items())
        report.append(f"{recipe.path}: noise: of {len(index):,} texts replaced: {told}")
    return source, known, kept, report


def _row_reader(recipe: DataRecipe, rows: Rows) -> RowReader:
    try:
        reader = rows.reader(recipe.columns)
    except ValueError as error:
        raise ValueError(f"{recipe.path}: {error}") from None
    if not reader.pictured and any((Path(recipe.path) / "images").glob("*.parquet")):
        raise ValueError(
            f"{recipe.path}: expected a column image with the names of images, because the dataset has an image "
            f"table (images/*.parquet), found {', '.join(rows.columns)}: name the column (columns: "
            "{image: NAME}), or stream the dataset"
        )
    return reader


def _refuse(source: _Source, place: int, reason: str, on_bad_row: Literal["stop", "skip"]) -> None:
    """Record why a row is bad, or raise ValueError if the policy is "stop"."""
    name = f"row {printable(repr(source.row_id(place)))} of {source.recipe.path}"
    if on_bad_row == "stop":
        raise ValueError(f"{name}: {reason}")
    source.refused.setdefault(place, f"{name}: {reason}")


# ------------------------------------------------------------------------------ images


@dataclass(frozen=True)
class _NoImage:
    """Placeholder for the images of a row whose images cannot be read."""

    row: int


def _find_images(source: _Source, on_bad_row: Literal["stop", "skip"]) -> None:
    """Set the images of each row, and the storage to open them from."""
    rows, reader = source.rows, source.reader
    known: dict[Any, int] = {}
    sets: dict[tuple[int, ...], int] = {(): -1}

    def number(picture: Any) -> int:
        if picture not in known:
            known[picture] = len(source.image_keys)
            source.image_keys.append(picture)
        return known[picture]

    columns = [c for c in reader.wanted_for_pictures if c in rows.columns]
    image_set: np.ndarray = np.full(len(rows), -1, np.int64)
    for i, row in enumerate(rows.cells(columns)):
        try:
            pictures: Sequence[Any] = reader.pictures(row)
        except RowError as error:
            _refuse(source, i, f"{error}: repair the row or remove it", on_bad_row)
            pictures = (_NoImage(i),)
        images = tuple(number(picture) for picture in pictures)
        image_set[i] = sets.setdefault(images, len(sets) - 1)
    source.image_sets, source.image_set = list(sets)[1:], image_set
    names = [k for k in source.image_keys if isinstance(k, str) and not is_address(k)]
    source.pictures = ImageStore(open_pictures(source.recipe, names))
