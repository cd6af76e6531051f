"""Read datasets through `datasets` and `huggingface_hub`, with every error in one line.

Both libraries raise many exception types for malformed datasets, so all of them are translated here.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..common.cards import check_cards
from ..common.errors import of_network
from ..common.images import MAX_BYTES, read_picture_file
from ..common.telling import one_line, reason

HUB = "hf://datasets/"
ARCHIVES = (".zip", ".tar")
# Row files that `datasets` reads; it reads only one kind per folder.
_ROWS = (".parquet", ".jsonl", ".csv", ".arrow")


def not_fetched(name: str, error: BaseException) -> ConnectionError:
    """Return the exception for a dataset or file that cannot be fetched from the network."""
    told = f"{name}: cannot be fetched: {reason(error)}; the same command continues"
    return ConnectionError(one_line(told))


# ------------------------------------------------------------------------------ datasets


@contextlib.contextmanager
def reading_dataset(path: str, what: str) -> Iterator[None]:
    """Turn every exception of `datasets` into one line that starts with the dataset's path.

    Args:
        what: the part of the dataset being read, for messages.

    Raises:
        FileNotFoundError: if there is no such dataset.
        ConnectionError: if the Hub cannot be reached.
        ValueError: for every other failure.
    """
    import datasets

    verbosity = datasets.logging.get_verbosity()
    bars = datasets.is_progress_bar_enabled()
    # Its log about a broken file repeats the error.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    except datasets.exceptions.DatasetNotFoundError as error:
        raise FileNotFoundError(
            one_line(f"{path}: no such dataset folder or Hub dataset: {error}")
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        if of_network(error) or isinstance(error, ConnectionError):
            raise not_fetched(path, error) from None
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        raise ValueError(
            one_line(f"{path}: {what} cannot be loaded: {kind}{reason(error)}")
        ) from None
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def dataset_builder(path: str, config: str | None, revision: str | None, what: str) -> Any:
    """Return the `datasets` builder of a folder or Hub dataset.

    Raises:
        ValueError: if the files hold no rows, or if only some files of a folder would be read.
        FileNotFoundError, ConnectionError, ValueError: as `reading_dataset`.
    """
    import datasets

    if Path(path).is_dir():
        check_cards(Path(path))
    with reading_dataset(path, what):
        builder = datasets.load_dataset_builder(path, config, revision=revision)
    kind = type(builder).__module__.rpartition(".")[2]
    if kind == "text":
        raise ValueError(
            f"{path}: expected files of rows, found text files: list images and captions in a "
            "metadata.jsonl (file_name, caption), or build a dataset from the folder (maya data build)"
        )
    if Path(path).is_dir() and kind != "imagefolder":
        used = {str(f) for files in (builder.config.data_files or {}).values() for f in files}
        suffixes = {Path(name).suffix for name in used}
        for file in sorted(Path(path).rglob("*")):
            other = file.suffix in _ROWS and file.suffix not in suffixes
            if other and file.name[0] != "." and os.path.abspath(file) not in used:
                raise ValueError(
                    f"{path}: expected files of one kind, found {Path(min(used)).name} and {file.name}, of "
                    "which only the first kind would be read: name one file, or put them in separate folders"
                )
    return builder


def load_dataset(path: str, config: str | None, split: str, revision: str | None) -> Any:
    """Load a split of a folder or Hub dataset with `datasets`. Raises as `dataset_builder`."""
    import datasets

    what = f"config {config!r}, split {split!r}"
    dataset_builder(path, config, revision, what)
    with reading_dataset(path, what):
        return datasets.load_dataset(path, config, split=split, revision=revision)


# ------------------------------------------------------------------------------ files on the Hub


class HubFiles:
    """Files of a dataset repository on the Hub; implements `images.Place`.

    Args:
        repository: user/name.
        revision: branch, tag or commit; None for the main branch.
        folder: folder of the images in the repository, "" for its root.
        keep: keep images that are read in Hugging Face's cache.
    """

    def __init__(
        self, repository: str, revision: str | None = None, folder: str = "", keep: bool = True
    ):
        self.repository, self.revision = repository, revision
        self.folder, self._keep = folder.strip("/"), keep
        self.name = f"{HUB}{repository}" + (f"/{self.folder}" if self.folder else "")

    @property
    def files(self) -> frozenset[str]:
        """The names of all files. Raises FileNotFoundError, ConnectionError."""
        return _listing(self.repository, self.revision)[1]

    def address(self, name: str) -> str:
        """Return a file's hf:// address at a fixed commit. Raises FileNotFoundError, ConnectionError."""
        commit, files = _listing(self.repository, self.revision)
        if name not in files:
            raise self._no_file(name)
        return f"{HUB}{self.repository}@{commit}/{name}"

    def _no_file(self, name: str) -> FileNotFoundError:
        some = ", ".join(sorted(self.files)[:10]) or "nothing"
        return FileNotFoundError(
            one_line(f"{self.repository}: expected a file {name!r}, found {some}")
        )

    def fetch(self, name: str) -> Path:
        """Download a file to Hugging Face's cache and return its path.

        Raises:
            FileNotFoundError: if the repository does not have the file.
            ConnectionError: if the Hub cannot be reached.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with _asking(self.repository):
            try:
                return Path(
                    hf_hub_download(
                        self.repository, name, repo_type="dataset", revision=self.revision
                    )
                )
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                pass
        raise self._no_file(name)

    def read(self, name: str) -> bytes:
        """Return the bytes of an image. Raises KeyError, ValueError, ConnectionError."""
        from huggingface_hub import HfFileSystem

        address = f"{HUB}{self.repository}@"
        if name.startswith(address):
            name = name.removeprefix(address).partition("/")[2]
        elif self.folder:
            name = f"{self.folder}/{name}"
        if name not in self.files:
            raise KeyError(name)
        if self._keep:
            return read_picture_file(self.fetch(name).resolve())
        with _asking(self.repository):
            with HfFileSystem().open(self.address(name), "rb", cache_type="none") as file:
                data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(
                f"Cannot read {name!r}: expected at most {MAX_BYTES:,} bytes, found more"
            )
        return data


def hub_caches() -> list[Path]:
    """Return the cache folders of `huggingface_hub` and `datasets`."""
    import datasets
    import huggingface_hub

    return [Path(huggingface_hub.constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE)]


@functools.lru_cache(maxsize=16)
def _listing(repository: str, revision: str | None) -> tuple[str, frozenset[str]]:
    """Return the commit of a revision and the names of its files."""
    from huggingface_hub import HfApi

    with _asking(repository):
        info = HfApi().dataset_info(repository, revision=revision)
        return str(info.sha), frozenset(file.rfilename for file in info.siblings or ())


@contextlib.contextmanager
def _asking(repository: str) -> Iterator[None]:
    """Turn every exception of `huggingface_hub` into one line that starts with the repository's name."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(one_line(f"{repository}: access denied: {error}")) from None
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(
            one_line(f"{repository}: no such dataset folder, Hub dataset or revision: {error}")
        ) from None
    except Exception as error:
        # LocalEntryNotFoundError means that the file could not be fetched, not that it does not exist.
        local = isinstance(error, LocalEntryNotFoundError)
        if isinstance(error, EntryNotFoundError) and not local:
            raise
        if not (of_network(error) or isinstance(error, OSError)):
            raise
        raise not_fetched(repository, error) from None
