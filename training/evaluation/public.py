"""Read public datasets in their own columns, from a Hub repository or a folder with the same files.

Texts are read at once, pictures on access.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..common.cards import check_cards
from ..common.files import files_sha256, write_json
from ..common.images import decode_picture, to_rgb
from ..common.revisions import split_revision
from ..common.telling import one_line, reason
from .protocol import (
    Loaded,
    Pictures,
    Request,
    Selection,
    chosen_languages,
    in_order,
    sample,
)
from .results import DataInfo

# LLaVA's (2310.03744) requests for a short answer and for a letter, and its limit of new tokens.
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
MAX_NEW_TOKENS = 16

# The data from which PALO's instructions (2402.14818), and therefore Maya's, were made.
MIX = "LLaVA-1.5's mix (2310.03744), which PALO's and so Maya's instructions hold,"
UNSEEN = f"None known: {MIX} has no part of it."


class Split:
    """One split of a config of a public dataset.

    Args:
        selection: its `data` and `revision` take precedence over the task's.
        repository: the task's dataset.
        revision: the commit that the task pins; None if it pins none.
        config, split: names in the dataset.
        columns: the columns that the task reads, pictures included.
        pictures: the column or columns of pictures; None if there is none.

    Raises:
        FileNotFoundError, ValueError: in one line: the dataset, config, split or a column does not exist.
    """

    def __init__(
        self,
        selection: Selection,
        repository: str,
        revision: str | None,
        config: str,
        split: str,
        columns: Sequence[str],
        pictures: str | Sequence[str] | None = None,
    ):
        import datasets

        name, own = split_revision(selection.data or repository, selection.revision)
        self.name, self.place = name, f"{name}: config {config!r}, split {split!r}"
        self.folder = Path(name) if Path(name).is_dir() else None
        self.pictures = (pictures,) if isinstance(pictures, str) else tuple(pictures or ())
        if self.folder is None and own is None and name == repository:
            own = revision
        if self.folder is not None:
            check_cards(self.folder)
        elif Path(name).exists():  # otherwise the name would be looked up on the Hub
            raise ValueError(
                f"data: expected {repository}, or a folder with its files, found a file {name}"
            )
        self.files: list[str] = []
        try:
            builder = datasets.load_dataset_builder(name, config, revision=own)
            files = builder.config.data_files or {}
            if split not in files:
                raise ValueError(f"the splits are {_named(files, self.folder)}")
            self.files = [str(file) for file in files[split]]
            # Load only this split's files: those of other splits can be tens of gigabytes.
            found = datasets.load_dataset("parquet", data_files={split: self.files}, split=split)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no dataset at {name!r}: expected {repository}, or a folder with its files: "
                f"{reason(error)}"
            ) from error
        except (ValueError, datasets.exceptions.DatasetsError) as error:
            fault = _fault(self.files, self.folder) or reason(error)
            raise ValueError(f"{self.place}: cannot be read: {fault}") from error
        missing = sorted(set(columns) - set(found.column_names))
        if missing:
            raise ValueError(
                f"{self.place}: expected the columns {', '.join(columns)}, found no "
                f"{', '.join(missing)}: use the files of {repository}"
            )
        self.table = found.data
        self.texts = [column for column in columns if column not in self.pictures]

    def __len__(self) -> int:
        return self.table.num_rows

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each row's number and texts, in the order of the files."""
        number = 0
        for batch in self.table.table.select(self.texts).to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                yield number, row
                number += 1

    def text(self, number: int, row: Mapping[str, Any], column: str) -> str:
        """Return the text of a cell.

        Raises:
            ValueError: the cell is not a text; the message names the row.
        """
        found = row[column]
        if isinstance(found, str):
            return found
        raise ValueError(f"{self.place}: row {number}: {column}: expected a text, found {found!r}")

    def has_picture(self, column: int = 0) -> list[bool]:
        """Return whether each row has a picture, in the column of pictures with this index."""
        return self.table.column(self.pictures[column]).is_valid().to_pylist()

    def picture_names(self, column: int = 0) -> list[str]:
        """Return a name for each row's picture, from its bytes, so that equal pictures share a name."""
        cells = (cell.as_py() or {} for cell in self.table.column(self.pictures[column]))
        return [hashlib.sha256(cell.get("bytes") or b"").hexdigest()[:16] for cell in cells]

    def picture(self, number: int, key: str, place: int = 0, column: int = 0) -> Image.Image:
        """Return the picture of a row.

        Args:
            key: the picture's name in an error.
            place: index of the picture, in a row that has a list of them.
            column: index of the column of pictures.

        Raises:
            ValueError: the picture cannot be decoded, in one line.
        """
        cell = self.table.column(self.pictures[column])[number].as_py() or {}
        if isinstance(cell, list):
            cell = cell[place] or {}
        try:
            return to_rgb(decode_picture(cell.get("bytes") or b"", key))
        except ValueError as error:
            raise ValueError(
                one_line(f"{self.place}: picture {key!r} cannot be decoded: {error}")
            ) from None

    def info(
        self, requests: Sequence[Request], split: str, others: Sequence[Split] = ()
    ) -> DataInfo:
        """Return the results' description of the dataset: of this split, and of `others`."""
        files = dict.fromkeys(file for split in (self, *others) for file in split.files)
        return {
            "name": self.name if self.folder is None else self.folder.resolve().name,
            "revision": None if self.folder else _commit(self.files),
            "files_sha256": files_sha256(map(Path, files)) if self.folder else None,
            "split": split,
            "styles": [],
            "images": len({key for request in requests for key in request.pictures}),
            "items": {},
            "requests": len(requests),
        }


def _commit(files: Sequence[str]) -> str | None:
    """Return the commit in addresses of files on the Hub: hf://datasets/user/name@COMMIT/file."""
    return files[0].partition("@")[2].partition("/")[0] or None


def _named(files: Mapping[Any, Sequence[str]], folder: Path | None) -> str:
    """Return the splits, each with its first file."""
    return (
        ", ".join(f"{split} ({_short(own[0], folder)})" for split, own in files.items()) or "none"
    )


def _fault(files: Sequence[str], folder: Path | None) -> str | None:
    """Describe the first local file without rows; return None if there is none."""
    for file in files if folder is not None else ():
        try:
            rows = pq.ParquetFile(file).metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            told = reason(error).rstrip(".")
            return f"{_short(file, folder)}: expected parquet, found {told}: download it again"
        if rows == 0:
            return f"{_short(file, folder)}: expected rows, found none: download it again, or remove it"
    return None


def _short(file: str, folder: Path | None) -> str:
    """Return the file's name inside the dataset."""
    return file.rpartition("@")[2] if folder is None else os.path.relpath(file, folder.resolve())


class RowPictures:
    """Pictures by key: a split, the number of a row, and the index of the column if there are several."""

    def __init__(self, rows: Mapping[str, tuple[Split, int] | tuple[Split, int, int]]):
        self.rows = rows

    def load(self, key: str) -> Image.Image:
        split, number, *column = self.rows[key]
        return split.picture(number, key, column=column[0] if column else 0)


def language_splits(
    selection: Selection,
    repository: str,
    revision: str | None,
    config: str,
    names: Mapping[str, str],
    columns: Sequence[str],
    pictures: str | Sequence[str],
) -> dict[str, Split]:
    """Return the splits of the chosen languages, for a dataset with one split for each language.

    Args:
        names: BCP-47 code -> the dataset's name of the split.
        selection, repository, revision, config, columns, pictures: as for `Split`.

    Raises:
        FileNotFoundError, ValueError: from `Split`; or a language is unknown; or the selection names a split.
    """
    if selection.split is not None:
        raise ValueError(
            f"split: expected none, since the splits of {repository} are its languages, found "
            f"{selection.split!r}: choose languages"
        )
    chosen = chosen_languages(selection.languages, in_order(names), repository)
    return {
        lang: Split(selection, repository, revision, config, names[lang], columns, pictures)
        for lang in chosen
    }


def loaded(
    selection: Selection,
    split: Split,
    requests: Sequence[Request],
    pictures: Pictures,
    names: str,
    others: Sequence[Split] = (),
) -> Loaded:
    """Return the requests of the selection's languages and items.

    Args:
        split: the split that the results describe.
        names: name of the split or splits.
        others: further splits whose files were read.

    Raises:
        ValueError: there are no requests, or a language has none.
    """
    if not requests:
        raise ValueError(f"{split.place}: expected rows, found none")
    known = in_order({request.language for request in requests})
    languages = chosen_languages(selection.languages, known, names)
    requests = [request for request in requests if request.language in languages]
    kept = set(sample({r.item for r in requests}, selection.limit, selection.seed))
    requests = [request for request in requests if request.item in kept]
    return Loaded(requests, pictures, split.info(requests, names, others), languages)


def loaded_in(
    selection: Selection,
    splits: Mapping[str, Split],
    requests: Sequence[Request],
    pictures: Pictures,
    names: str,
) -> Loaded:
    """Return the requests of a benchmark of several languages, with the same items in each language.

    Args:
        splits: language -> its split, in the order of tables; languages may share a split.
        names: name of the split or splits.

    Raises:
        ValueError: there are no requests.
    """
    # A language without rows is left out and is not an error.
    every = replace(selection, languages=None)
    first, *others = dict.fromkeys(splits.values())
    made = loaded(every, first, requests, pictures, names, others)
    asked = {request.language for request in made.requests}
    return replace(made, languages=[lang for lang in splits if lang in asked])


def export_json(folder: Path, key: str, value: Any, part: str = "") -> Path:
    """Write a file for a benchmark's server or script, named by the task's key, and the part if there are several."""
    path = folder / f"{key}{part and f'.{part}'}.json"
    write_json(path, value)
    return path
