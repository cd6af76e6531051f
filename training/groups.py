"""Rows of any known shape become groups: one image, K conversations, each with its language.

Read are the package's own dataset layout (captions, texts or instructions per language beside one
table of images), rows of `messages` + `images`, and the LLaVA / PALO `conversations` JSON. Everything after
this file sees only conversations, images and the plan of groups.

The plan is drawn from the seed alone, so it is the same on any number of processes and needs no
state to be resumed.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from processing_maya import messages_from_conversations
from processing_maya.image_processing_maya import to_rgb

from .images import load_image
from .recipe import DataRecipe
from .schema import convert
from .tables import (
    card_files,
    is_content,
    is_language,
    is_text,
    no_images,
    no_language,
    row_name,
    shown,
)


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


@dataclass
class _Source:
    """One dataset: `rows[i]` is a row, `read` gives its messages, `image_keys` what to open."""

    recipe: DataRecipe
    rows: Any
    read: "Reader"
    row_index: np.ndarray  # (n,) index into rows of every conversation kept
    image_keys: list[Any] = field(default_factory=list)  # distinct images
    open_image: Callable[[Any], Image.Image] = load_image
    row_images: list[tuple[int, ...]] | None = None  # of each conversation, if one has several
    together: list[tuple[int, ...]] = field(default_factory=list)  # distinct ones of row_images
    row_image: np.ndarray | None = None  # (n,) the one image of each conversation, -1: none
    # Index into rows: what it has in place of a language, and why it is a bad row.
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)


class GroupData:
    """All conversations of a stage, from all its sources, addressed by one number each.

    on_bad_row: what a cell that is no image or no language does: stop here with its row, or be refused
        by `load_image` or `conversation`.

    Attributes:
        languages, tasks: names; `language` and `task` hold an index into them per conversation, -1
            for a language that is none.
        image: (n,) int64, the image of each conversation, over all sources; -1 for none. The same
            several images in the same order count as one.
    """

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
        language: list[np.ndarray] = []
        task: list[np.ndarray] = []
        image: list[np.ndarray] = []
        source: list[np.ndarray] = []
        local: list[np.ndarray] = []
        weight: list[np.ndarray] = []
        # Sources about the same folder of images share them: one file per language becomes groups.
        known: dict[tuple[str, Any], int] = {}
        for number, recipe in enumerate(recipes):
            item, columns = _open_source(recipe, seed, on_bad_row)
            count = len(item.row_index)
            self.report += columns.report
            self.sources.append(item)
            language.append(_index(columns.language, self.languages))
            task.append(_index(columns.task, self.tasks))
            image.append(_common_numbers(item, columns.group, known))
            source.append(np.full(count, number, np.int16))
            local.append(np.arange(count, dtype=np.int64))
            rates = recipe.tasks or {}
            weight.append(np.array([rates.get(t, 1.0) for t in columns.task], np.float32))
        self.language = np.concatenate(language)
        self.task = np.concatenate(task)
        self.image = np.concatenate(image)
        self.weight = np.concatenate(weight)
        self._source = np.concatenate(source)
        self._local = np.concatenate(local)
        if not self.languages:
            raise ValueError(next(iter(self.sources[0].refused.values()))[1])

    def __len__(self) -> int:
        return len(self.image)

    def conversation(self, index: int) -> Conversation:
        """Conversation `index`, read from its row. Raises ValueError naming a row that is a bad one."""
        number = int(self._source[index])
        source, local = self.sources[number], int(self._local[index])
        place = int(source.row_index[local])
        if place in source.refused:
            raise ValueError(source.refused[place][1])
        row = source.rows[place]
        identity = _row_id(row, place)
        language = self.languages[self.language[index]]
        messages = source.read(row, row_name(identity, language, source.recipe.path))
        if source.row_images is not None:
            images = source.row_images[local]
        else:
            assert source.row_image is not None
            images = (int(source.row_image[local]),) if source.row_image[local] >= 0 else ()
        return Conversation(
            id=identity,
            language=language,
            task=self.tasks[self.task[index]],
            messages=messages,
            images=images,
            source=number,
        )

    def name(self, index: int) -> tuple[str, str, str]:
        """(row id, language, path of its dataset) of conversation `index`; without an id, the row's
        number, and where the language is none, what is in its place."""
        source = self.sources[int(self._source[index])]
        place = int(source.row_index[int(self._local[index])])
        language = int(self.language[index])
        name = self.languages[language] if language >= 0 else source.refused[place][0]
        return _row_id(source.rows[place], place), name, source.recipe.path

    def load_image(self, source: int, key: int, row_id: str) -> Image.Image:
        """The RGB image `key` of a source. Raises ValueError naming the row if it cannot be read."""
        item = self.sources[source]
        found = item.image_keys[key]
        try:
            if isinstance(found, _NoImage):
                raise ValueError(found.reason)
            return to_rgb(item.open_image(found))
        except (ValueError, OSError) as error:
            raise ValueError(
                f"row {row_id!r} of {item.recipe.path}: its image cannot be read: {error}; "
                "repair the file or remove the row"
            ) from None

    def plan(
        self,
        groups: int | None,
        group_size: int,
        seed: int,
        shuffled: bool = True,
    ) -> list[tuple[int, np.ndarray]]:
        """Groups in training order: (epoch, conversation indices), all about one image.

        Each epoch visits every conversation as often as its task's weight says (a fraction is drawn
        anew each epoch), groups those of one image at most `group_size` at a time in random order
        and near-equal parts, and shuffles the groups.

        Args:
            groups: how many to return, or None for one pass over the data.
            shuffled: the groups in random order; else in the order of their images in the data.
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
            raise ValueError("no conversation has a task weight above 0; expected at least one")
        parts = split_groups(chosen, self.image[chosen], group_size, random)
        if shuffled:
            random.shuffle(parts)  # type: ignore[arg-type]
        return parts

    def summary(self) -> str:
        """Conversations per language and task, and images, in a few words."""
        languages = Counter(self.languages[i] for i in self.language.tolist() if i >= 0)
        tasks = Counter(self.tasks[i] for i in self.task.tolist())
        images = len(np.unique(self.image[self.image >= 0]))
        return (
            f"{len(self):,} conversations about {images:,} images; languages: "
            + ", ".join(f"{k} {v:,}" for k, v in languages.items())
            + "; tasks: "
            + ", ".join(f"{k} {v:,}" for k, v in tasks.items())
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


def _common_numbers(
    source: _Source, group: np.ndarray, known: dict[tuple[str, Any], int]
) -> np.ndarray:
    """Numbers of images within a source as numbers over all sources; -1 stays -1."""
    place = source.recipe.image_folder or source.recipe.path
    lookup: np.ndarray = np.full(
        int(group.max(initial=-1)) + 2, -1, np.int64
    )  # the last entry is for -1
    for value in np.unique(group[group >= 0]).tolist():
        images = (value,) if source.row_images is None else source.together[value]
        keys = tuple(source.image_keys[image] for image in images)
        name = ("" if all(isinstance(key, bytes) for key in keys) else place, keys)
        lookup[value] = known.setdefault(name, len(known))
    return lookup[group]


@dataclass
class _Columns:
    language: list[str | None]  # None where it is no language
    task: list[str]
    group: np.ndarray
    report: list[str]


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
) -> tuple[_Source, _Columns]:
    rows, columns = _open_rows(recipe)
    if len(rows) == 0:
        raise ValueError(f"{recipe.path}: split {recipe.split!r} is empty; expected rows")
    read, picture_column, default = reader(recipe, columns)

    count = len(rows)
    check_languages(recipe)
    named = "lang" if "lang" in columns else "language"
    cells = _column(rows, named, columns) or [None] * count
    unknown = {i for i, v in enumerate(cells) if v is not None and not is_language(v)}
    languages = [
        shown(v) if i in unknown else recipe.language if v is None else v
        for i, v in enumerate(cells)
    ]
    task = _column(rows, "task", columns)
    tasks = [str(v or default) for v in task] if task else [default] * count

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
                    f"{recipe.path}: {name}: {value!r} is not in split {recipe.split!r}; "
                    f"found {', '.join(sorted(present))}"
                )
        if wanted:
            mask = np.array([v in set(wanted) for v in values])
            dropped = Counter(np.array(values)[~mask & keep].tolist())
            keep &= mask
            if dropped:
                text = ", ".join(f"{k} {v:,}" for k, v in sorted(dropped.items()))
                report.append(f"{recipe.path}: left out, as the recipe's {name} say: {text}")

    source = _Source(recipe=recipe, rows=rows, read=read, row_index=np.arange(count))
    _find_images(source, picture_column, columns, on_bad_row)
    if source.row_images is not None:
        numbers: dict[tuple[int, ...], int] = {(): -1}
        group = np.array([numbers.setdefault(r, len(numbers) - 1) for r in source.row_images])
        source.together = list(numbers)[1:]
    else:
        assert source.row_image is not None
        group = source.row_image.copy()
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
    index = np.flatnonzero(keep)
    if not len(index):
        raise ValueError(f"{recipe.path}: no row is left after languages, tasks and limit")
    for i in (i for i in index.tolist() if i in unknown):
        name = f"row {_row_id(rows[i], i)!r} of {recipe.path}"
        reason = f"{no_language(name, named, cells[i])}; repair the row or remove it"
        source.refused[i] = shown(cells[i]), reason
        if on_bad_row == "stop":
            raise ValueError(reason)
    source.row_index = index
    if source.row_images is not None:
        source.row_images = [source.row_images[i] for i in index]
    else:
        assert source.row_image is not None
        source.row_image = source.row_image[index]
    return source, _Columns(
        [None if i in unknown else languages[i] for i in index.tolist()],
        [tasks[i] for i in index],
        group[index],
        report,
    )


def check_languages(recipe: DataRecipe) -> None:
    """Raises ValueError for a recipe's code that no row can have."""
    for name, values in (("language", [recipe.language]), ("languages", recipe.languages)):
        for value in values:
            if not is_language(value):
                raise ValueError(f"{no_language(recipe.path, name, value)}; correct the recipe")


def _open_rows(recipe: DataRecipe) -> tuple[Any, list[str]]:
    """The rows as a sequence of dicts, and the names of their columns."""
    path = Path(recipe.path)
    if path.suffix in (".json", ".jsonl") or path.is_file():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        if path.suffix == ".json":
            try:
                rows = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{path}: not a JSON file: {error}") from None
            if not isinstance(rows, list):
                raise ValueError(f"{path}: expected a list of rows, found {type(rows).__name__}")
        elif path.suffix == ".jsonl":
            rows = []
            # Lines of a file, as str.splitlines also cuts at characters that texts have in them.
            with path.open(encoding="utf-8") as lines:
                for i, line in enumerate(lines):
                    try:
                        rows.append(json.loads(line))
                    except ValueError as error:
                        raise ValueError(f"{path}: line {i + 1} is not JSON: {error}") from None
        elif path.suffix == ".parquet":
            import pyarrow.parquet

            rows = _ArrowRows(pyarrow.parquet.read_table(path))
            return rows, rows.column_names
        else:
            raise ValueError(
                f"{path}: expected a .json, .jsonl or .parquet file or a dataset folder"
            )
        for i, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"{path}: row {i}: expected a mapping, found {type(row).__name__}")
        return rows, sorted({name for row in rows for name in row})
    table = _load_table(recipe.path, recipe.config, recipe.split, recipe.revision)
    rows = _ArrowRows(table)
    return rows, rows.column_names


def _load_table(path: str, config: str | None, split: str, revision: str | None = None) -> Any:
    """One split of a dataset as an Arrow table. Images stay undecoded."""
    folder = Path(path)
    if (folder.exists() or path.startswith((".", "/"))) and not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such dataset folder")
    if folder.is_dir():
        files = card_files(folder, config, split)
        if files:
            import pyarrow
            import pyarrow.parquet

            return pyarrow.concat_tables([pyarrow.parquet.read_table(f) for f in files])
    import datasets

    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(path, config, split=split, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such dataset folder or Hub dataset: {error}") from None
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: config {config!r}, split {split!r} cannot be loaded: {reason}"
        ) from None
    finally:
        if shown:
            datasets.enable_progress_bars()
    if len(data) != data.data.num_rows:
        data = data.flatten_indices()
    return data.data.table


# What is read of a row; other columns cost time and memory for nothing.
READ = ("id", "messages", "conversations", "prompt", "text", "caption", "image", "images")

# From a row and what to call it in errors, its messages. Raises ValueError for cells that are null or
# of another kind than expected.
Reader = Callable[[dict[str, Any], str], list[dict[str, Any]]]


class _ArrowRows:
    """Rows of an Arrow table as plain dicts, read one at a time, columns at once."""

    def __init__(self, table: Any):
        self.table = table.combine_chunks()
        self.column_names: list[str] = list(self.table.column_names)
        self._columns = {n: self.table.column(n) for n in self.column_names}

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {n: c[index].as_py() for n, c in self._columns.items() if n in READ}

    def column(self, name: str) -> list[Any]:
        return self._columns[name].to_pylist()


def _column(rows: Any, name: str, columns: list[str]) -> list[Any] | None:
    if name not in columns:
        return None
    if isinstance(rows, _ArrowRows):
        return rows.column(name)
    return [row.get(name) for row in rows]


def image_reference(value: Any) -> str | bytes:
    """The path or bytes in a row's image cell, or ValueError. Of datasets' Image feature, its bytes
    come before its path: equal bytes are one image."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, (str, bytes)) or not value:
        raise ValueError(f"expected an image path or bytes, found {type(value).__name__}")
    return value


@dataclass(frozen=True)
class _NoImage:
    """Stands where the path or the bytes of an image should: `load_image` refuses it."""

    row: int
    reason: str


def _find_images(
    source: _Source, column: str, columns: list[str], on_bad_row: Literal["stop", "skip"]
) -> None:
    """Which images each row has, as numbers of distinct images, and how to open them."""
    recipe, rows = source.recipe, source.rows
    values = _column(rows, column, columns)
    if values is None:
        source.row_image = np.full(len(rows), -1, np.int64)
        return
    known: dict[Any, int] = {}

    def number(value: Any, row: int) -> int:
        try:
            value = image_reference(value)
        except ValueError as error:
            if on_bad_row == "stop":
                raise ValueError(
                    f"row {_row_id(rows[row], row)!r} of {recipe.path}: {error}; repair the row or "
                    "remove it"
                ) from None
            value = _NoImage(row, str(error))
        if value not in known:
            known[value] = len(source.image_keys)
            source.image_keys.append(value)
        return known[value]

    cells = [v if isinstance(v, list) else [v] if v else [] for v in values]
    if any(len(cell) > 1 for cell in cells):
        source.row_images = [tuple(number(v, i) for v in cell) for i, cell in enumerate(cells)]
    else:
        source.row_image = np.array(
            [number(cell[0], i) if cell else -1 for i, cell in enumerate(cells)], np.int64
        )
    source.open_image = _opener(source)


def _opener(source: _Source) -> Callable[[Any], Image.Image]:
    recipe = source.recipe
    folder = Path(recipe.path)
    strings = any(isinstance(key, str) for key in source.image_keys)
    if strings and (any((folder / "images").glob("*.parquet")) or not folder.exists()):
        return _image_table(recipe)
    if recipe.image_folder is not None:
        base = Path(recipe.image_folder)
    else:
        base = folder if folder.is_dir() else folder.parent

    def open_image(key: Any) -> Image.Image:
        if isinstance(key, bytes) or key.startswith(("http://", "https://", "data:")):
            return load_image(key)
        return load_image(key, root=base)

    return open_image


def _image_table(recipe: DataRecipe) -> Callable[[Any], Image.Image]:
    """Images from the dataset's own table of them (`images/*.parquet`), found by path."""
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    folder = Path(recipe.path)
    if folder.is_dir():
        files = sorted((folder / "images").glob("*.parquet"))
        table = pyarrow.concat_tables(
            [pyarrow.parquet.read_table(f, columns=_picture_columns(f)) for f in files]
        )
    else:
        table = _load_table(recipe.path, "images", "train", recipe.revision)
    table = table.combine_chunks()
    held = next((f.name for f in table.schema if is_content(f.type)), None)
    names = [name for name in ("image", "path") if is_text(table.schema, name)]
    if held is not None and names:
        found = table.column(names[0])
    elif held is not None and pyarrow.types.is_struct(table.schema.field(held).type):
        found = pyarrow.compute.struct_field(table.column(held), "path")
    else:
        raise ValueError(
            f"{recipe.path}: images: expected a column of image bytes and one of their paths (image or "
            f"path), found {', '.join(table.column_names)}"
        )
    position = {name: i for i, name in enumerate(found.to_pylist())}
    content = table.column(held)

    def open_image(key: Any) -> Image.Image:
        if key not in position:
            raise FileNotFoundError(f"{key!r} is not in the images of {recipe.path}")
        value = content[position[key]].as_py()
        return load_image(value["bytes"] if isinstance(value, dict) else value)

    return open_image


def _picture_columns(file: Path) -> list[str]:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)
    return [f.name for f in schema if is_content(f.type) or f.name in ("image", "path")]


# ------------------------------------------------------------------------------ reading rows


def reader(recipe: DataRecipe, columns: Sequence[str]) -> tuple[Reader, str, str]:
    """How rows of these columns are read, which column has their images, and the task of rows that
    name none. Raises ValueError for columns of no known shape."""
    if "conversations" in columns:
        return _read_llava, "image", "chat"
    if "messages" in columns:
        return _read_messages, "images" if "images" in columns else "image", "chat"
    if "prompt" in columns and "text" in columns:
        return _read_prompted, "image", "caption"
    if "caption" in columns:
        return _read_pictured if "image" in columns else _read_caption, "image", "caption"
    raise ValueError(
        f"{recipe.path}: expected columns messages, conversations, prompt and text, or caption; "
        f"found {', '.join(sorted(columns))}"
    )


def _row_id(row: dict[str, Any], number: int) -> str:
    return str(number if row.get("id") is None else row["id"])


def _cell(row: dict[str, Any], column: str, kind: Any, name: str) -> Any:
    """What a row has in a column, of the kind that is expected there, or ValueError."""
    try:
        return convert(kind, row.get(column), name, column)
    except ValueError as error:
        raise ValueError(f"{error}; repair the row or remove it") from None


def _read_caption(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A caption alone: the user shows the image and says nothing."""
    return [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": _cell(row, "caption", str, name)},
    ]


def _read_pictured(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A caption where rows have images: without one, there is nothing that it could be learned from."""
    if not row.get("image"):
        raise ValueError(
            f"{name}: image: expected the image of the caption, found nothing; repair the row or remove it"
        )
    return _read_caption(row, name)


def _read_prompted(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": _cell(row, "prompt", str, name)},
        {"role": "assistant", "content": _cell(row, "text", str, name)},
    ]


def _read_messages(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """String contents get the images before the first user text (by the processor); lists keep
    the place of their {"type": "image"} items."""
    messages = []
    for number, message in enumerate(_cell(row, "messages", list[dict], name)):
        turn = f"{name}, turn {number + 1}"
        role = _cell(message, "role", str, turn)
        content = _cell(message, "content", str | list[dict], turn)
        if isinstance(content, list):
            # Arrow gives every part the keys of all parts.
            content = [{k: v for k, v in part.items() if v is not None} for part in content]
            for part in content:
                if part.get("type") == "text":
                    _cell(part, "text", str, turn)
        messages.append({"role": role, "content": content})
    return messages


def _read_llava(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    image = row.get("image")
    count = len(image) if isinstance(image, list) else int(bool(image))
    turns = _cell(row, "conversations", list[dict], name)
    return messages_from_conversations(turns, count, name)
