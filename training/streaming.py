"""Datasets that are read as they are trained on, from a folder or the Hub: `streaming: true`.

Shuffling. A dataset is cut into blocks of about `shuffle_buffer / 8` images (joined.py). An epoch visits the
blocks in an order drawn from (seed, epoch), eight at a time: these are read, and their groups are
shuffled by (seed, epoch, number of the eight). So memory holds at most twice `shuffle_buffer` images
with their texts, or what the files' own row groups hold if that is more, and near rows may meet in a
step though far ones only by whole blocks.

Nothing of this depends on what was read before: from the number of a step follow its groups, on any
process or worker and after any restart, each group exactly once an epoch. A checkpoint needs no state of
the stream. Every process and worker reads the texts of all groups it sees the steps of, as `packing`
needs their lengths, and the images of whole blocks.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from PIL import Image

from processing_maya.image_processing_maya import to_rgb

from .groups import (
    READ,
    Conversation,
    GroupData,
    Reader,
    check_languages,
    image_reference,
    reader,
    split_groups,
)
from .images import load_image
from .joined import Filters, Joined, Rows
from .recipe import DataRecipe, StageRecipe
from .tables import (
    DatasetFiles,
    StorageError,
    Table,
    find_files,
    is_language,
    is_list,
    is_text,
    is_texts,
    no_language,
    row_name,
)

# Blocks whose groups are shuffled together.
TOGETHER = 8


def open_groups(
    stage: StageRecipe, seed: int, pinned: Path | None = None
) -> "GroupData | StreamedGroups":
    """The data of a stage, streamed where its recipe says so.

    Args:
        pinned: a JSON file of the streams' files; made if it is not there. A run that continues
            reads the commit of a Hub dataset that it began with.
    """
    if not stage.data[0].streaming:
        return GroupData(stage.data, seed=seed, on_bad_row=stage.on_bad_row)
    if pinned is not None and pinned.is_file():
        files = [DatasetFiles(**f) for f in json.loads(pinned.read_text(encoding="utf-8"))]
    else:
        files = [find_files(r.path, r.config, r.split, r.revision) for r in stage.data]
        if pinned is not None:
            temporary = pinned.with_name(pinned.name + ".tmp")
            temporary.write_text(json.dumps([vars(f) for f in files]), encoding="utf-8")
            os.replace(temporary, pinned)
    return StreamedGroups(stage.data, files, stage.shuffle_buffer)


@dataclass
class _Stream:
    """One dataset: its blocks, how its rows are read, and the number of its first row."""

    recipe: DataRecipe
    joined: Joined
    read: Reader
    pictures: str  # the column of images
    first: int

    @property
    def columns(self) -> list[str]:
        return [c for c in READ if c in self.joined.columns]


@dataclass
class _Window:
    """Blocks in memory: their groups in training order, and where each conversation is."""

    groups: list[np.ndarray]
    rows: dict[int, Rows]  # by source
    place: dict[int, tuple[int, int]]  # conversation -> (source, row)
    names: dict[int, set[str]] = field(default_factory=dict)  # of images, by source
    images: dict[int, dict[str, Any]] = field(default_factory=dict)  # read when first asked for


class StreamedGroups:
    """What `GroupData` is, for datasets that stay where they are.

    Conversations are addressed by their row's number over all tables; those of a step can be read
    once `plan` has given them.

    Args:
        files: of each recipe's dataset. buffer: images that are shuffled together.

    Raises:
        ValueError, OSError: as `Joined`, and for columns of no known shape.
    """

    def __init__(self, recipes: Sequence[DataRecipe], files: Sequence[DatasetFiles], buffer: int):
        self.sources: list[_Stream] = []
        self.report: list[str] = []
        languages: Counter[str] = Counter()
        tasks: Counter[str] = Counter()
        first = 0
        for recipe, found in zip(recipes, files, strict=True):
            read, pictures, task = reader(recipe, Table(found.rows[:1]).columns)
            check_languages(recipe)
            filters = Filters(
                tuple(recipe.languages), tuple(recipe.tasks), recipe.limit, recipe.language, task
            )
            joined = Joined(recipe.path, found, filters, block=max(1, buffer // TOGETHER))
            self.sources.append(_Stream(recipe, joined, read, pictures, first))
            first += int(joined.offsets[-1])
            languages += joined.languages
            tasks += joined.tasks
            if joined.dropped:
                text = ", ".join(f"{k} {v:,}" for k, v in sorted(joined.dropped.items()))
                self.report.append(
                    f"{recipe.path}: left out, as the recipe's languages and tasks say: {text}"
                )
            if joined.key is None and pictures in joined.columns:
                self.report.append(
                    f"{recipe.path}: {pictures}: the rows hold their images themselves, so none is shared; "
                    "to share them, stream paths of images (a text, or a list of texts) or leave "
                    "streaming out"
                )
            if recipe.limit is not None:
                count = f"{joined.image_count:,} images"
                if joined.key is None:
                    count = f"{joined.conversations:,} rows with images, as these have no names"
                self.report.append(f"{recipe.path}: limit {recipe.limit}: the first {count}")
        self._counts = languages, tasks
        self.languages, self.tasks = list(languages), list(tasks)
        if not self.languages:
            first_joined = self.sources[0].joined
            raise ValueError(
                f"{recipes[0].path}: {first_joined.language}: expected languages' BCP-47 codes, such as "
                "en or pt-BR, found none; repair the rows"
            )
        self.blocks = [(s, b) for s, source in enumerate(self.sources) for b in range(len(source.joined))]  # fmt: skip
        self._windows: dict[_Name, _Window] = {}

    def __len__(self) -> int:
        return sum(source.joined.conversations for source in self.sources)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": {}}

    def summary(self) -> str:
        """Conversations per language and task, and images, in a few words."""
        images = sum(source.joined.image_count for source in self.sources)
        languages, tasks = (", ".join(f"{k} {v:,}" for k, v in c.items()) for c in self._counts)
        return (
            f"{len(self):,} conversations about {images:,} images, streamed in {len(self.blocks):,} "
            f"blocks; languages: {languages}; tasks: {tasks}"
        )

    def plan(
        self,
        groups: int | None,
        group_size: int,
        seed: int,
        shuffled: bool = True,
    ) -> "StreamPlan":
        """As `GroupData.plan`, read when asked for; not shuffled: in the order of the tables."""
        return StreamPlan(self, groups, group_size, seed, shuffled)

    def conversation(self, index: int) -> Conversation:
        """Conversation `index` of a group that `plan` gave lately. Raises ValueError naming a row that
        is a bad one."""
        window, number, row = self._find(index)
        source, rows = self.sources[number], window.rows[number]
        identity, _, path = self.name(index)
        named = source.joined.language
        language = rows.table[named][row].as_py() if named else None
        if language is not None and not is_language(language):
            reason = no_language(f"row {identity!r} of {path}", str(named), language)
            raise ValueError(f"{reason}; repair the row or remove it")
        values = {
            name: rows.table[name][row].as_py()
            for name in rows.table.column_names
            if name in READ and name != source.pictures
        }
        images = self._images_of(source, rows.table, row, index)
        if source.pictures in rows.table.column_names:
            values[source.pictures] = list(images)
        messages = source.read(values, row_name(identity, rows.language[row], path))
        return Conversation(
            id=identity,
            language=rows.language[row],
            task=rows.task[row],
            messages=messages,
            images=images,
            source=number,
        )

    def name(self, index: int) -> tuple[str, str, str]:
        """(row id, language, path of its dataset) of conversation `index`; without an id, the row's
        number, and where the language is none, what is in its place."""
        window, number, row = self._find(index)
        source, rows = self.sources[number], window.rows[number]
        known = rows.table["id"][row].as_py() if "id" in rows.table.column_names else None
        identity = str(index - source.first if known is None else known)
        return identity, rows.language[row], source.recipe.path

    def load_image(self, source: int, key: Any, row_id: str) -> Image.Image:
        """The RGB image `key` of a source.

        Raises ValueError naming the row if it cannot be read, and OSError naming the file if the table
        of images cannot.
        """
        recipe, table = self.sources[source].recipe, self.sources[source].joined.images
        if table is not None and isinstance(key, str):
            # Read first and not below: a broken file or connection must not pass for a bad row.
            try:
                self._window_of(source, key)
            except pa.ArrowException as error:
                reason = " ".join(str(error).split())
                raise StorageError(
                    f"{table.files[0]}: images cannot be read: {reason}; write the table anew"
                ) from None
        try:
            return to_rgb(self._open(source, key))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"row {row_id!r} of {recipe.path}: its image cannot be read: {error}; "
                "repair the file or remove the row"
            ) from None

    # -------------------------------------------------------------------------- inside

    def _find(self, index: int) -> tuple[_Window, int, int]:
        for window in reversed(self._windows.values()):
            if index in window.place:
                return window, *window.place[index]
        raise KeyError(f"conversation {index} is not in the windows read last")

    def _images_of(self, source: _Stream, table: Any, row: int, index: int) -> tuple[Any, ...]:
        """Keys of a row's images: their names, or (conversation, number) of those that the row holds."""
        held = source.pictures in table.column_names
        if held and not table[source.pictures][row].is_valid:
            return ()
        if source.joined.images is not None:
            name = table[source.joined.key][row].as_py()
            return (name,) if name else ()
        if not held:
            return ()
        if is_text(table.schema, source.pictures):
            name = table[source.pictures][row].as_py()
            return (name,) if name else ()
        if is_texts(table.schema, source.pictures):
            return tuple(table[source.pictures][row].as_py())
        kind = table.schema.field(source.pictures).type
        count = len(table[source.pictures][row]) if is_list(kind) else 1
        return tuple((index, number) for number in range(count))

    def _open(self, number: int, key: Any) -> Image.Image:
        source = self.sources[number]
        recipe, joined = source.recipe, source.joined
        value: Any = key
        if isinstance(key, tuple):
            window, _, row = self._find(key[0])
            value = window.rows[number].table[source.pictures][row].as_py()
            value = value[key[1]] if isinstance(value, list) else value
        elif joined.images is not None:
            window = self._window_of(number, key)
            if key not in window.images[number]:
                raise FileNotFoundError(f"{key!r} is not in the images of {recipe.path}")
            value = window.images[number][key].as_py()
        value = image_reference(value)
        if isinstance(value, bytes) or value.startswith(("http://", "https://", "data:")):
            return load_image(value)
        place = Path(recipe.path)
        folder = recipe.image_folder or (str(place) if place.is_dir() else str(place.parent))
        if recipe.image_folder is None and joined.tables[0].remote:
            raise FileNotFoundError(
                f"{value!r} is a path, and {recipe.path} has no images/*.parquet; give image_folder"
            )
        return load_image(value, root=folder)

    def _window_of(self, number: int, name: str) -> _Window:
        """The window with the rows about an image, its images read."""
        joined = self.sources[number].joined
        for window in reversed(self._windows.values()):
            if number not in window.rows:
                continue
            if number not in window.names:
                column = window.rows[number].table[joined.key].to_pylist()
                window.names[number] = {n for n in column if n is not None}
            if name in window.names[number]:
                if number not in window.images:
                    window.images[number] = joined.read_images(list(window.names[number]))
                return window
        raise KeyError(f"no row about image {name!r} is in the windows read last")

    def _window(self, name: "_Name") -> _Window:
        """Read a window, or find it read."""
        if name in self._windows:
            return self._windows[name]
        rows: dict[int, Rows] = {}
        place: dict[int, tuple[int, int]] = {}
        for number in sorted({s for s, _ in name.blocks}):
            source = self.sources[number]
            found = source.joined.read([b for s, b in name.blocks if s == number], source.columns)
            rows[number] = found
            numbers = (found.number + source.first).tolist()
            place.update((n, (number, i)) for i, n in enumerate(numbers))
        random = np.random.default_rng(name.seed)
        groups: list[np.ndarray] = []
        for number, block in name.blocks:
            inside = np.flatnonzero(rows[number].block == block)
            chosen = rows[number].number[inside] + self.sources[number].first
            if len(chosen):
                groups += split_groups(chosen, rows[number].key[inside], name.group_size, random)
        if name.shuffled:
            random.shuffle(groups)  # type: ignore[arg-type]
        self._windows[name] = _Window(groups, rows, place)
        return self._windows[name]

    def _forget_all_but(self, names: Iterable["_Name"]) -> None:
        for name in set(self._windows) - set(names):
            del self._windows[name]


@dataclass(frozen=True)
class _Name:
    """What a window follows from. blocks: (source, block) pairs."""

    blocks: tuple[tuple[int, int], ...]
    seed: tuple[int, ...]
    group_size: int
    shuffled: bool


class StreamPlan(Sequence[tuple[int, np.ndarray]]):
    """Groups in training order, (epoch, conversations), found from their number alone.

    A slice of it, such as a step, is read when it is taken; what the slice before needed and this one
    does not is let go.
    """

    def __init__(
        self,
        data: StreamedGroups,
        groups: int | None,
        group_size: int,
        seed: int,
        shuffled: bool,
    ):
        self.data, self.group_size, self.seed, self.shuffled = data, group_size, seed, shuffled
        counts = [data.sources[s].joined.multiplicity[b] for s, b in data.blocks]
        self._counts = np.array(
            [int((c * -(-np.arange(len(c)) // group_size)).sum()) for c in counts], np.int64
        )
        self.per_epoch = int(self._counts.sum())
        self._length = self.per_epoch if groups is None else groups
        self._epoch: tuple[int, list[_Name], np.ndarray] = (-1, [], np.zeros(0, np.int64))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> tuple[int, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, np.ndarray]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self._take(range(len(self))[index])
        return self._take([range(len(self))[index]])[0]

    def _take(self, indices: Sequence[int]) -> list[tuple[int, np.ndarray]]:
        places = [self._find(i) for i in indices]
        self.data._forget_all_but(name for _, name, _ in places)
        return [(epoch, self.data._window(name).groups[i]) for epoch, name, i in places]

    def _find(self, index: int) -> tuple[int, _Name, int]:
        """(epoch, window, place in the window) of a group."""
        epoch, place = divmod(index, self.per_epoch)
        if self._epoch[0] != epoch:
            order = np.arange(len(self._counts))
            if self.shuffled:
                order = np.random.default_rng([self.seed, epoch]).permutation(order)
            names: list[_Name] = []
            starts = [0]
            for number in range(-(-len(order) // TOGETHER)):
                window = order[number * TOGETHER : (number + 1) * TOGETHER].tolist()
                blocks = tuple(self.data.blocks[i] for i in window)
                names.append(
                    _Name(blocks, (self.seed, epoch, number), self.group_size, self.shuffled)
                )
                starts.append(starts[-1] + int(self._counts[window].sum()))
            self._epoch = epoch, names, np.array(starts)
        _, windows, first = self._epoch
        number = int(np.searchsorted(first, place, side="right")) - 1
        return epoch, windows[number], place - int(first[number])
