"""A GroupSource read during training, from a folder or the Hub: `streaming: true`.

Shuffling: a dataset is cut into blocks of about `shuffle_buffer / 8` images (joined.py). An epoch visits
the blocks in an order drawn from (seed, epoch), in windows of eight. The groups of a window are shuffled
by (seed, epoch, number of the window). So memory holds at most twice `shuffle_buffer` images with their
texts, or the files' own row groups if these are larger. Neighboring rows may meet in a step; distant rows
only by whole blocks.

No step depends on what was read before: its number determines its groups, in any process or worker and
after any restart, each group exactly once per epoch. A checkpoint therefore needs no state of the stream.
Every process and worker reads the texts of all groups in its steps, because `packing` needs their
lengths, and the images of whole blocks.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from PIL import Image

from ..common.images import ImageStore, StorageError, is_address
from ..common.languages import as_language, no_language
from ..common.places import is_content
from ..common.telling import one_line, printable
from ..recipe import DataRecipe
from ..rows.conversations import Picture, RowError, RowReader, picture_of
from ..rows.open import open_pictures, schema_reader
from ..rows.parquet import is_list, item_type
from ..rows.tables import DatasetFiles, ParquetTable
from .joined import Filters, GroupedTables, GroupRows
from .source import (
    Conversation,
    RowName,
    bad_row,
    check_data,
    left_out,
    load_picture,
    split_groups,
    summarise,
    unreadable_image,
)

# Number of blocks in a window; their groups are shuffled together.
TOGETHER = 8


@dataclass
class _Stream:
    """One dataset: its blocks, the reader of its rows, and the number of its first row."""

    recipe: DataRecipe
    joined: GroupedTables
    reader: RowReader
    first: int
    number: int  # index of the dataset in the stage
    pictures: ImageStore = field(default_factory=lambda: ImageStore(None))

    @property
    def columns(self) -> list[str]:
        wanted = dict.fromkeys(("id", *self.reader.wanted))
        return [c for c in wanted if c in self.joined.columns]

    @property
    def held(self) -> list[str]:
        """Columns whose cells hold image bytes."""
        schema = self.joined.tables[0].schema
        return [c for c in self.reader.pictured if is_content(item_type(schema.field(c).type))]

    @property
    def own(self) -> bool:
        """Whether rows hold their images, or name them in other ways than one column."""
        reader = self.reader
        return self.joined.key is None and bool(reader.pictured or reader.addresses or reader.parts)

    def named_pictures(self) -> Iterator[Any]:
        if self.joined.images is not None or self.held:
            return
        columns = [c for c in self.reader.wanted_for_pictures if c in self.joined.columns]
        for table in self.joined.tables:
            for part in table.scan(columns):
                for row in part.to_pylist():
                    try:
                        pictures = self.reader.pictures(row)
                    except RowError:  # reported when the row is read for training
                        continue
                    yield from pictures


class _Held(bytes):
    """Placeholder for image bytes in a row; `place` is (conversation, column, number in its cell)."""

    place: tuple[int, str, int]


@dataclass
class _Window:
    """Blocks in memory: their groups in training order, and the position of each conversation."""

    groups: list[np.ndarray]
    rows: dict[int, GroupRows]  # source -> rows
    place: dict[int, tuple[int, int]]  # conversation -> (source, row)
    names: dict[int, set[str]] = field(default_factory=dict)  # source -> names of images
    images: dict[int, dict[str, Any]] = field(
        default_factory=dict
    )  # source -> images, read on first use


class StreamedGroups:
    """A `GroupSource` of datasets that are read during training.

    A conversation's number is its row's number over all tables.

    Args:
        files: the files of each recipe's dataset.
        buffer: number of images that are shuffled together.

    Raises:
        ValueError, OSError: as `GroupedTables`, and if columns have no known shape.
    """

    streamed = True

    def __init__(self, recipes: Sequence[DataRecipe], files: Sequence[DatasetFiles], buffer: int):
        self.sources: list[_Stream] = []
        self.report: list[str] = []
        languages: Counter[str] = Counter()
        tasks: Counter[str] = Counter()
        first = 0
        for recipe, found in zip(recipes, files, strict=True):
            check_data(recipe)
            try:
                reader = schema_reader(ParquetTable(found.rows[:1]).schema, recipe.columns)
            except ValueError as error:
                raise ValueError(f"{recipe.path}: {error}") from None
            folder = recipe.image_folder
            if folder is not None and Path(folder).absolute() != Path(recipe.path).absolute():
                # The images are in that folder, not in the dataset's own table.
                found = DatasetFiles(found.rows, [])
            filters = Filters(
                tuple(recipe.languages),
                tuple(recipe.tasks),
                recipe.limit,
                recipe.language,
                reader.task,
            )
            pictures = (*reader.pictured, *reader.addresses)
            block = max(1, buffer // TOGETHER)
            joined = GroupedTables(recipe.path, found, filters, block, pictures)
            stream = _Stream(recipe, joined, reader, first, len(self.sources))
            if joined.images is None:
                stream.pictures = ImageStore(open_pictures(recipe, streamed=True))
            self.sources.append(stream)
            first += int(joined.offsets[-1])
            languages += joined.languages
            tasks += joined.tasks
            if joined.dropped:
                self.report.append(left_out(recipe.path, "languages and tasks", joined.dropped))
            if joined.key is None and stream.held:
                self.report.append(
                    f"{recipe.path}: {stream.held[0]}: each row holds its own image bytes, so no image is shared: "
                    "to share images, stream their paths (a text, or a list of texts) or leave "
                    "streaming out"
                )
            if recipe.limit is not None:
                count = f"{joined.image_count:,} images"
                if joined.key is None:
                    count = (
                        f"{joined.conversations:,} rows with images, because these have no names"
                    )
                self.report.append(f"{recipe.path}: limit {recipe.limit}: the first {count}")
        self._counts = languages, tasks
        self.languages, self.tasks = list(languages), list(tasks)
        if not self.languages:
            first_joined = self.sources[0].joined
            raise ValueError(
                f"{recipes[0].path}: {first_joined.language}: expected languages' BCP-47 codes, such as "
                "en or pt-BR, found none: repair the rows"
            )
        numbers = [range(len(source.joined)) for source in self.sources]
        self.blocks = [(s, b) for s, blocks in enumerate(numbers) for b in blocks]
        self._windows: dict[_WindowKey, _Window] = {}

    def __len__(self) -> int:
        return sum(source.joined.conversations for source in self.sources)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_windows": {}}

    def summary(self) -> str:
        """See `GroupSource.summary`."""
        count = sum(source.joined.image_count for source in self.sources)
        images = f"{count:,} images"
        if any(source.own for source in self.sources):
            # Their number is unknown until the rows are read.
            own = "the images in the rows themselves"
            images = f"{images} and {own}" if count else own
        about = f"{images}, streamed in {len(self.blocks):,} blocks"
        return summarise(len(self), about, *self._counts)

    def plan(
        self,
        groups: int | None,
        group_size: int,
        seed: int,
        shuffled: bool = True,
    ) -> "StreamPlan":
        """See `GroupSource.plan`; groups are read on access. Unshuffled means the order of the tables."""
        return StreamPlan(self, groups, group_size, seed, shuffled)

    def conversation(self, index: int) -> Conversation:
        """See `GroupSource.conversation`; only for groups of the windows read last."""
        window, number, row = self._find(index)
        source, rows = self.sources[number], window.rows[number]
        name = self.name(index)
        named = source.joined.language
        language = rows.table[named][row].as_py() if named else None
        if language is not None and as_language(language) is None:
            raise ValueError(
                f"row {printable(repr(name.id))} of {name.path}: {named}: {no_language(language)}: repair "
                "the row or remove it"
            )
        try:
            values = self._values(source, rows.table, row, index)
            images = self._images_of(source, rows.table, row, values)
            messages = source.reader.messages(values, len(images))
        except RowError as error:
            raise bad_row(name, error) from None
        return Conversation(
            id=name.id,
            language=name.language,
            task=rows.task[row],
            messages=messages,
            images=images,
            source=number,
        )

    def name(self, index: int) -> RowName:
        """See `GroupSource.name`."""
        window, number, row = self._find(index)
        source, rows = self.sources[number], window.rows[number]
        known = rows.table["id"][row].as_py() if "id" in rows.table.column_names else None
        place = index - source.first
        return RowName(
            id=str(place if known is None else known),
            language=rows.language[row],
            path=source.recipe.path,
            row=place,
            data=number,
        )

    def load_image(self, source: int, key: Any, row_id: str) -> Image.Image:
        """See `GroupSource.load_image`."""
        stream = self.sources[source]
        path, table = stream.recipe.path, stream.joined.images
        if table is None or not isinstance(key, _Named):
            return load_picture(stream.pictures, self._held(key), row_id, path)
        try:
            found = self._in_table(source, key)
        except pa.ArrowException as error:
            raise StorageError(
                one_line(f"{table.files[0]}: images cannot be read: {error}: write the table again")
            ) from None
        if found is None:
            reason = f"{printable(repr(str(key)))} is not in the images of {path}"
            raise unreadable_image(row_id, path, reason)
        try:
            picture = picture_of(found.as_py(), 0)
        except RowError as error:
            raise unreadable_image(row_id, path, error) from None
        return load_picture(stream.pictures, picture, row_id, path)

    # -------------------------------------------------------------------------- internals

    def _find(self, index: int) -> tuple[_Window, int, int]:
        for window in reversed(self._windows.values()):
            if index in window.place:
                return window, *window.place[index]
        raise KeyError(f"conversation {index} is not in the windows read last")

    def _values(self, source: _Stream, table: pa.Table, row: int, index: int) -> dict[str, Any]:
        """Return a row's cells. If only one column holds images, their bytes become placeholders."""
        held = source.held
        alone = held[0] if len(held) == 1 else None
        values = {c: table[c][row].as_py() for c in table.column_names if c != alone}
        if alone is not None and alone in table.column_names:
            values[alone] = _light(table[alone][row], index, alone)
        return values

    def _images_of(
        self, source: _Stream, table: pa.Table, row: int, values: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Return keys of a row's images: names, or positions in the row. Raise RowError for a bad row."""
        pictures = source.reader.pictures(values)
        if source.joined.images is None:
            return pictures
        named = [p for p in pictures if isinstance(p, str) and not is_address(p)]
        if len(named) < len(pictures) or len(named) > 1:
            return tuple(_Named(p) if p in named else p for p in pictures)
        # Without a column of names, the image table is joined by the rows' ids.
        if not pictures and (source.reader.pictured or source.reader.addresses):
            return ()
        name = table[source.joined.key][row].as_py()
        return (_Named(name),) if name else ()

    def _held(self, key: Picture) -> Picture:
        """Return the image that a placeholder stands for; other keys unchanged."""
        if not isinstance(key, _Held):
            return key
        index, column, number = key.place
        window, source, row = self._find(index)
        return picture_of(window.rows[source].table[column][row].as_py(), number)

    def _in_table(self, number: int, name: str) -> Any:
        """Return an entry of the image table, or None. All images of a window are read at once."""
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
                return window.images[number].get(name)
        return joined.read_images([name]).get(name)

    def _window(self, name: "_WindowKey") -> _Window:
        """Return a window, reading it if needed."""
        if name in self._windows:
            return self._windows[name]
        rows: dict[int, GroupRows] = {}
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


class _Named(str):
    """The name of an image in the image table."""


def _light(cell: Any, index: int, column: str) -> Any:
    """Return an image cell with placeholders for bytes, which a row's messages do not need."""
    if not cell.is_valid:
        return None
    if is_list(cell.type):
        return [_placeholder(v, (index, column, number)) for number, v in enumerate(cell.values)]
    return _placeholder(cell, (index, column, 0))


def _placeholder(value: Any, place: tuple[int, str, int]) -> Any:
    if not value.is_valid:
        return None
    struct = pa.types.is_struct(value.type)
    content = value["bytes"] if struct else value
    held = _Held(repr(place).encode()) if content.is_valid and len(content.as_buffer()) else b""
    if isinstance(held, _Held):
        held.place = place
    if not struct:
        return held
    others = [value.type.field(i).name for i in range(value.type.num_fields)]
    return {n: held or None if n == "bytes" else value[n].as_py() for n in others}


@dataclass(frozen=True)
class _WindowKey:
    """The inputs that determine a window. blocks: (source, block) pairs."""

    blocks: tuple[tuple[int, int], ...]
    seed: tuple[int, ...]
    group_size: int
    shuffled: bool


class StreamPlan(Sequence[tuple[int, np.ndarray]]):
    """Groups in training order, (epoch, conversations), computed from their number alone.

    A slice, such as a step, is read when it is taken; data that only the previous slice needed is
    released.
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
        self._epoch: tuple[int, list[_WindowKey], np.ndarray] = (-1, [], np.zeros(0, np.int64))

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
        for name in set(self.data._windows) - {name for _, name, _ in places}:
            del self.data._windows[name]
        return [(epoch, self.data._window(name).groups[i]) for epoch, name, i in places]

    def _find(self, index: int) -> tuple[int, _WindowKey, int]:
        """Return (epoch, window, position in the window) of a group."""
        epoch, place = divmod(index, self.per_epoch)
        if self._epoch[0] != epoch:
            order = np.arange(len(self._counts))
            if self.shuffled:
                order = np.random.default_rng([self.seed, epoch]).permutation(order)
            names: list[_WindowKey] = []
            starts = [0]
            for number in range(-(-len(order) // TOGETHER)):
                window = order[number * TOGETHER : (number + 1) * TOGETHER].tolist()
                blocks = tuple(self.data.blocks[i] for i in window)
                names.append(
                    _WindowKey(blocks, (self.seed, epoch, number), self.group_size, self.shuffled)
                )
                starts.append(starts[-1] + int(self._counts[window].sum()))
            self._epoch = epoch, names, np.array(starts)
        _, windows, first = self._epoch
        number = int(np.searchsorted(first, place, side="right")) - 1
        return epoch, windows[number], place - int(first[number])
