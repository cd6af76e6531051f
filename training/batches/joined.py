"""Join captions and images into groups, one image with its rows, by merging sorted tables.

A dataset is one table of texts per language, and a table of images if it contains them. All tables are
sorted, so rows about one image have about the same position in each. One pass over the identifying
columns cuts all tables into blocks at the same images, and counts the rows of each block. Then any block
can be read alone. Memory holds the cuts, never the rows.

A single table may have any order: neighboring rows with the same images form one group.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..common.languages import as_language
from ..common.places import is_content
from ..common.telling import shown
from ..rows.parquet import is_list
from ..rows.tables import (
    DatasetFiles,
    ParquetTable,
    SortedCursor,
    Unsorted,
    as_tables,
    flat,
    is_text,
    is_texts,
    no_images,
)

# Default number of distinct images in a block.
BLOCK = 256
# Number of remote tables that are read in parallel.
CONNECTIONS = 8


@dataclass(frozen=True)
class Filters:
    """Rules for the rows to keep.

    languages, tasks: keep only these; empty keeps all.
    limit: keep rows of the first `limit` images; if images have no names, the first `limit` rows with images.
    language, task: the values of rows that name none.
    """

    languages: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    language: str = "und"
    task: str = "chat"


@dataclass
class GroupRows:
    """Rows of some blocks that passed the filters.

    table: n rows.
    number: (n,) int64, the row's number over all tables.
    block: (n,), the row's block.
    key: (n,) int64, equal for rows about one image, ascending in the tables' order; -1 without image.
    language, task: n strings; an invalid language is kept as found.
    """

    table: pa.Table
    number: np.ndarray
    block: np.ndarray
    key: np.ndarray
    language: list[str]
    task: list[str]


class GroupedTables:
    """A dataset cut into blocks of whole groups.

    Args:
        pictures: the columns of images, in order of preference.

    Attributes:
        columns: columns of the rows.
        key: the column that names a row's image, None without one; a text, or a list of texts if
            `listed`.
        images: the image table; `image_key` is its column that matches the rows' `key`.
        starts: (blocks + 1, tables) int64, the first row of every block in every table.
        multiplicity: for every block, how many images have 0, 1, 2, ... rows.
        languages, tasks: number of kept rows per language and task.
        dropped: number of rows per language or task that the filters drop.
        image_count: distinct images, counted per block.
        language: the column of languages, None without one. Rows with an invalid cell are kept, because
            the reader refuses them by name, but `languages` does not count them.

    Raises:
        ValueError: naming file and row, if tables are not sorted alike; or if a filter matches no row.
        StorageError, ConnectionError: as `ParquetTable`, also when rows or images are read later.
    """

    def __init__(
        self,
        path: str,
        files: DatasetFiles,
        filters: Filters | None = None,
        block: int = BLOCK,
        pictures: Sequence[str] = ("image", "images"),
    ):
        self.path = path
        self.filters = filters or Filters()
        self.pictures = pictures
        self.images = ParquetTable(files.images) if files.images else None
        self.tables = as_tables(files.rows)
        names = [name for name in (*pictures, "image_sha256") if self._all_have(name)]
        self.listed = not names
        lists = [name for name in pictures if name in self.columns]
        if (
            self.listed and len(lists) == 1
        ):  # with two list columns, the images may be in the other one
            names = [c for c in lists if all(is_texts(t.schema, c) for t in self.tables)]
        self.key: str | None = names[0] if names else None
        self.language = next((c for c in ("lang", "language") if c in self.columns), None)
        self.image_key: str | None = None
        self.image_column: str | None = None
        if self.images is not None:
            self._match_images(self.images)
        self.order: str | None = None
        self.multiplicity: list[np.ndarray] = []
        orders = [name for name in ("image", "id") if self._all_have(name)]
        if self.key is None or self.listed:
            orders = []
        if len(self.tables) == 1 or not orders:
            # Read the tables one after the other: nothing is merged, so any order is fine.
            self.tables = [ParquetTable([f for table in self.tables for f in table.files])]
            self._index(None, block)
            return
        for order in orders:
            try:
                self._index(order, block)
                break
            except Unsorted as error:
                if order == orders[-1]:
                    raise ValueError(
                        f"{error}: expected tables of texts that are streamed together to be sorted by "
                        f"{' or by '.join(orders)}: sort them, or leave streaming out"
                    ) from None

    def __len__(self) -> int:
        return len(self.multiplicity)

    @property
    def columns(self) -> list[str]:
        """Columns of the rows."""
        return self.tables[0].columns

    def _all_have(self, column: str) -> bool:
        return all(is_text(table.schema, column) for table in self.tables)

    def _match_images(self, images: ParquetTable) -> None:
        """Find the image table's column of bytes, and the pair of columns that joins it to the rows."""
        holds = [f.name for f in images.schema if is_content(f.type)]
        pairs = [("image", "image"), ("path", "image"), ("id", "id"), ("image_sha256",) * 2]
        for theirs, ours in pairs:
            if is_text(images.schema, theirs) and self._all_have(ours) and holds:
                self.listed = False
                self.image_key, self.key, self.image_column = theirs, ours, holds[0]
                return
        raise ValueError(
            f"{images.files[0]}: expected a column of image bytes and a column of image names (image, path or "
            f"id) that the texts have too, found {', '.join(images.columns)}"
        )

    # -------------------------------------------------------------------------- one pass

    def _scanned(self) -> list[str]:
        wanted = (self.key, self.order, "lang", "language", "task")
        # Without a key column, the image columns say which rows have an image; only a limit needs them.
        held = self.pictures if self.key is None and self.filters.limit is not None else ()
        return [c for c in dict.fromkeys((*wanted, *held)) if c is not None and c in self.columns]

    def _index(self, order: str | None, block: int) -> None:
        self.order, self.multiplicity = order, []
        self.languages: Counter[str] = Counter()
        self.tasks: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.image_count = self.conversations = 0
        self._last: set[str] | None = None  # images of the last block within the limit
        self._stop: int | None = None  # first row beyond the limit, if images have no names
        self._rows = 0  # rows counted so far
        self._without = 0  # rows dropped by the limit because they have no image
        cuts = self._cut(block)
        cursors = [SortedCursor(table, self._scanned(), order) for table in self.tables]
        starts = [[0] * len(cursors)]
        for cut in [*cuts, None]:
            parts = [cursor.up_to(cut) for cursor in cursors]
            starts.append([cursor.row for cursor in cursors])
            if self._count([part for part in parts if len(part)]):
                break
        self.starts: np.ndarray = np.array(starts, np.int64)
        self.offsets: np.ndarray = np.r_[0, np.cumsum([len(t) for t in self.tables])]
        self._check_filters()
        self._bounds = None
        if self.images is not None:
            assert self.image_key is not None
            self._bounds = self.images.bounds(self.image_key)

    def _cut(self, block: int) -> list[Any]:
        """Return block ends: keys of the longest table after every `block` images, or row numbers."""
        guide = max(self.tables, key=len)
        if self.key is None:
            return list(range(block, len(guide), block))
        cuts: list[Any] = []
        row, seen, before = 0, 0, None
        for found in guide.scan([c for c in dict.fromkeys((self.key, self.order)) if c]):
            key = self.names(found)
            change = _changes(key, before)
            count = seen + np.cumsum(change)
            ends = change & (count > 1) & ((count - 1) % block == 0)
            for i in np.flatnonzero(ends).tolist():
                cuts.append(row + i if self.order is None else found[self.order][i].as_py())
            if len(key):
                seen, before = int(count[-1]), key[-1]
            row += len(key)
        return cuts

    def _count(self, parts: list[pa.Table]) -> bool:
        """Count a block. Return True once the limit is reached."""
        if not parts:
            self.multiplicity.append(np.zeros(1, np.int64))
            return False
        table = pa.concat_tables(parts, promote_options="permissive")
        language, task, keep = self._kept(table, self.dropped)
        limit, done = self.filters.limit, False
        if limit is not None and self.key is None:
            pictured = keep & _pictured(table, self.pictures)
            self._without += int((keep & ~pictured).sum())
            numbers, room = np.flatnonzero(pictured), limit - self.conversations
            keep = np.isin(np.arange(len(table)), numbers[:room])
            if len(numbers) >= room:
                self._stop = self._rows + (int(numbers[room - 1]) + 1 if room else 0)
                done = True
            self._rows += len(table)
        elif limit is not None:
            names = self.names(table).to_pylist()
            self._without += sum(k and n is None for n, k in zip(names, keep, strict=True))
            present = sorted({n for n, k in zip(names, keep, strict=True) if k and n is not None})
            left = set(present[: limit - self.image_count])
            keep &= np.array([n in left for n in names], bool)
            if self.image_count + len(present) >= limit:
                self._last, done = left, True
        key = self._keys(table, keep)
        sizes = np.unique(key[key >= 0], return_counts=True)[1]
        counts = np.bincount(sizes, minlength=2)
        counts[1] += int(((key < 0) & keep).sum())
        self.multiplicity.append(counts)
        self.image_count += len(sizes)
        self.conversations += int(keep.sum())
        self.languages.update(language.count(keep & language.known()))
        self.tasks.update(task.count(keep))
        return done

    def _kept(
        self, table: pa.Table, dropped: Counter[str] | None = None
    ) -> tuple["_Labels", "_Labels", np.ndarray]:
        """Return language and task of rows, and which rows the filters keep, apart from the limit."""
        filters = self.filters
        language = _Labels(table, self.language, filters.language, as_language)
        task = _Labels(table, "task", filters.task)
        keep: np.ndarray = np.ones(len(table), bool)
        for labels, wanted in ((language, filters.languages), (task, filters.tasks)):
            if wanted:
                mask = np.array([v in wanted for v in labels.names], bool)[labels.codes]
                if dropped is not None:
                    dropped.update(labels.count(keep & ~mask))
                keep &= mask
        return language, task, keep

    def names(self, table: pa.Table) -> pa.Array:
        """Return the name of each row's image, or its images' joined names; null without image."""
        column = flat(table[self.key])
        if not self.listed:
            if is_text(table.schema, str(self.key)):
                column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
            return column
        # Cast, because binary_join does not take large lists.
        joined = pc.binary_join(column.cast(pa.list_(pa.string())), "\0")
        return pc.if_else(pc.greater(pc.list_value_length(column), 0), joined, None)

    def _keys(self, table: pa.Table, keep: np.ndarray) -> np.ndarray:
        """Return (n,) int64, equal for rows that name one image; -1 without image or if not kept."""
        if self.key is None:
            return np.full(len(table), -1, np.int64)
        codes = self.names(table).dictionary_encode().indices
        return np.where(keep, codes.fill_null(-1).to_numpy(zero_copy_only=False), -1).astype(
            np.int64
        )

    def _check_filters(self) -> None:
        for name, wanted, found in (
            ("languages", self.filters.languages, self.languages),
            ("tasks", self.filters.tasks, self.tasks),
        ):
            missing = [v for v in wanted if v not in found]
            if missing and self._last is None and self._stop is None:
                raise ValueError(
                    f"{self.path}: {name}: expected values in the data, found {missing[0]!r}: "
                    f"use some of {', '.join(sorted({*found, *self.dropped}))}"
                )
        if not self.conversations and self._without:
            raise ValueError(no_images(self.path))
        if not self.conversations:
            raise ValueError(
                f"{self.path}: expected rows after languages, tasks and limit, found none"
            )

    # -------------------------------------------------------------------------- reading

    def read(self, blocks: Sequence[int], columns: Sequence[str]) -> GroupRows:
        """Read the rows of some blocks from every table, in the order of the tables."""
        wanted = [c for c in dict.fromkeys([*columns, *self._scanned()]) if c in self.columns]
        chosen = np.unique(np.asarray(blocks))

        def part(number: int) -> tuple[pa.Table, np.ndarray]:
            edges = self.starts[:, number]
            ranges: list[tuple[int, int]] = []
            for b in chosen.tolist():
                start, stop = int(edges[b]), int(edges[b + 1])
                if ranges and ranges[-1][1] == start:
                    ranges[-1] = (ranges[-1][0], stop)
                elif start < stop:
                    ranges.append((start, stop))
            return self.tables[number].read(ranges, wanted)

        if self.tables[0].remote and len(self.tables) > 1:
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                parts = list(pool.map(part, range(len(self.tables))))
        else:
            parts = [part(number) for number in range(len(self.tables))]
        block = [
            np.searchsorted(self.starts[1:, t], rows, side="right")
            for t, (_, rows) in enumerate(parts)
        ]
        number = [rows + self.offsets[t] for t, (_, rows) in enumerate(parts)]
        table = pa.concat_tables([p for p, _ in parts], promote_options="permissive")
        language, task, keep = self._kept(table)
        of_block: np.ndarray = np.concatenate(block)
        if self.filters.limit is not None and self.key is None:
            keep &= _pictured(table, self.pictures)
            if self._stop is not None:
                keep &= np.concatenate(number) < self._stop
        elif self.filters.limit is not None:
            names = self.names(table).to_pylist()
            last, left = len(self), self._last or ()
            if self._last is not None:
                last -= 1
            pairs = zip(names, of_block, strict=True)
            keep &= np.array([n is not None and (b < last or n in left) for n, b in pairs], bool)
        if not keep.all():
            table = table.filter(pa.array(keep))
        table = table.combine_chunks()
        return GroupRows(
            table=table,
            number=np.concatenate(number)[keep],
            block=of_block[keep],
            key=self._in_order(table, self._keys(table, np.ones(len(table), bool))),
            language=language.of(keep),
            task=task.of(keep),
        )

    def _in_order(self, table: pa.Table, key: np.ndarray) -> np.ndarray:
        """Renumber keys in the tables' sort order, whichever table an image appears in first."""
        if self.order is None:
            return key
        sequence = key[pc.sort_indices(table[self.order]).to_numpy()]
        found, first = np.unique(sequence, return_index=True)
        rank: np.ndarray = np.zeros(int(key.max(initial=-1)) + 2, np.int64)
        rank[found] = np.argsort(np.argsort(first))
        rank[-1] = -1
        return rank[key]

    def read_images(self, names: Sequence[str]) -> dict[str, Any]:
        """Read images by name: name -> Arrow scalar (bytes, or a struct of bytes and path).

        Names that are not in the image table are absent.
        """
        assert self.images is not None
        assert self.image_key is not None
        assert self.image_column is not None
        assert self._bounds is not None
        wanted = sorted(set(names))
        result: dict[str, Any] = {}
        value_set = pa.array(wanted, self.images.schema.field(self.image_key).type)
        for group, edges in enumerate(self._bounds):
            if edges is None:
                continue
            place = bisect_left(wanted, edges[0])
            if place == len(wanted) or wanted[place] > edges[1]:
                continue
            first, stop = self.images.first[group : group + 2].tolist()
            found, _ = self.images.read([(first, stop)], [self.image_key, self.image_column])
            found = found.filter(pc.is_in(found[self.image_key], value_set=value_set))
            content = flat(found[self.image_column])
            for name, value in zip(found[self.image_key].to_pylist(), content, strict=True):
                result.setdefault(name, value)
        return result


def _pictured(table: pa.Table, columns: Sequence[str]) -> np.ndarray:
    """Return (n,) bool: whether a row has a value in an image column."""
    result: np.ndarray = np.zeros(len(table), bool)
    for name in set(columns) & set(table.column_names):
        column = flat(table[name])
        if is_list(column.type):
            found = pc.greater(pc.list_value_length(column), 0).fill_null(False)
        else:
            found = column.is_valid()
        result |= found.to_numpy(zero_copy_only=False)
    return result


def _changes(key: pa.Array, before: Any) -> np.ndarray:
    """Return (n,) bool: whether a row names no image, or another one than the row before it."""
    if not len(key):
        return np.zeros(0, bool)
    same = pc.equal(key[1:], key[:-1]).fill_null(False).to_numpy(zero_copy_only=False)
    first = before is None or before.as_py() is None or before.as_py() != key[0].as_py()
    return np.r_[first, ~same]


class _Labels:
    """A column of few distinct texts, as codes (n,) int64 into names; empty cells become `default`.

    Args:
        valid: normalizes a text, or returns None for an unknown one. Without it, empty texts become
            `default` too.
    """

    def __init__(
        self,
        table: pa.Table,
        column: str | None,
        default: str,
        valid: Callable[[str], str | None] | None = None,
    ):
        self.codes: np.ndarray = np.zeros(len(table), np.int64)
        self.names, self.unknown = [default], [False]
        if column not in table.column_names:
            return
        cells = table[column]
        kind = cells.type.value_type if pa.types.is_dictionary(cells.type) else cells.type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
        if text:
            found = flat(cells.cast(pa.string())).dictionary_encode()
        else:
            values = [None if v is None else str(v) for v in cells.to_pylist()]
            found = pa.array(values, pa.string()).dictionary_encode()
        names = found.dictionary.to_pylist()
        if valid is None:
            self.names = [name or default for name in names] + [default]
            self.unknown = [False] * len(self.names)
        else:
            read = [valid(name) if text else None for name in names]
            self.unknown = [name is None for name in read] + [False]
            as_found = [shown(name) if text else name for name in names]
            pairs = zip(as_found, read, strict=True)
            self.names = [found if known is None else known for found, known in pairs] + [default]
        codes = found.indices.fill_null(len(self.names) - 1)
        self.codes = codes.to_numpy(zero_copy_only=False).astype(np.int64)

    def known(self) -> np.ndarray:
        return ~np.array(self.unknown)[self.codes]

    def count(self, keep: np.ndarray) -> Counter[str]:
        counts = np.bincount(self.codes[keep], minlength=len(self.names)).tolist()
        result: Counter[str] = Counter()
        for name, count in zip(self.names, counts, strict=True):
            if count:
                result[name] += count
        return result

    def of(self, keep: np.ndarray) -> list[str]:
        return [self.names[code] for code in self.codes[keep].tolist()]
