"""Checks of a repository on the Hub: its visibility, the author of its card, and its files."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maya_vlm.training.common.files import sha256_file
from maya_vlm.training.common.reading import read_text

from ..cards.model import MARKER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_LONGEST_CARD = 2**20


class Content:
    """A file to send, which must not change. Each hash is computed once, on first access.

    size: size in bytes.
    """

    def __init__(self, file: Path):
        self.file, self.size = file, file.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the bytes in hex, the Hub's hash of large files."""
        return sha256_file(self.file)

    @cached_property
    def blob_id(self) -> str:
        """Return git's blob id in hex, the Hub's hash of small files."""
        with self.file.open("rb") as file:
            head = hashlib.sha1(b"blob %d\0" % self.size)
            return hashlib.file_digest(file, lambda: head).hexdigest()

    def arrived(self, entry: Any) -> bool:
        """Return whether a RepoFile of the Hub has the same bytes; False for None."""
        if entry is None or entry.size != self.size:
            return False
        if entry.lfs is None:
            return entry.blob_id == self.blob_id
        return entry.lfs.sha256 == self.sha256


def tree(api: HfApi, repo_id: str, kind: str, revision: str) -> dict[str, Any]:
    """Return path -> RepoFile for all files in a repository ("model" or "dataset") at a revision."""
    from huggingface_hub import RepoFile

    found = api.list_repo_tree(repo_id, repo_type=kind, revision=revision, recursive=True)
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def check_arrived(
    api: HfApi, contents: Mapping[str, Content], repo_id: str, kind: str, revision: str
) -> None:
    """Raise OSError unless a revision of a repository has exactly the sent bytes of every file."""
    there = tree(api, repo_id, kind, revision)
    wrong = [name for name, each in contents.items() if not each.arrived(there.get(name))]
    if wrong:
        raise OSError(
            f"{len(wrong)} of {len(contents)} files did not arrive whole, e.g. {wrong[0]}: publish again"
        )


def open_repository(
    api: HfApi, repo_id: str, kind: str, private: bool, option: str = "--private"
) -> None:
    """Create the repository if it does not exist.

    Args:
        api: the Hub's API.
        repo_id: `user/name`.
        kind: "model", "dataset" or "space".
        private: create the repository as private; an existing one must be private.
        option: name of the option for `private`, for errors.

    Raises:
        ValueError: `private` is set, but the repository is public.
        HfHubHTTPError: the Hub refused.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.repo_info(repo_id, repo_type=kind)
    except RepositoryNotFoundError:
        # exist_ok, because somebody else may create it at the same time.
        sdk = "gradio" if kind == "space" else None
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        found = api.repo_info(repo_id, repo_type=kind) if private else None
    else:
        if found.private and not private:
            print(f"note: {repo_id} is private on the Hub, and stays so")
    if private and not (found and found.private):
        raise ValueError(
            f"{option}: expected {kind} {repo_id} to be private, found it public on the Hub; nothing was "
            f"sent: make it private in its settings there, or leave {option} out"
        )


def licence_of(repo_id: str, token: str | None = None) -> str | None:
    """Return the licence in a model's card on the Hub, or None if it cannot be read."""
    from huggingface_hub import HfApi

    try:
        data = HfApi(token=token).model_info(repo_id, timeout=10).card_data
    except Exception:  # offline, gated or deleted: the licence is unknown
        return None
    found = data.get("license") if data is not None else None
    return found if isinstance(found, str) else None


def has_card_of_its_owner(
    api: HfApi, repo_id: str, kind: str, revision: str, card: Content
) -> bool:
    """Return whether a branch has a README.md that this package did not write and that is not `card`.

    Raises:
        HfHubHTTPError: the Hub refused.
    """
    found = api.get_paths_info(repo_id, ["README.md"], repo_type=kind, revision=revision)
    if not found or card.arrived(found[0]):
        return False
    if getattr(found[0], "size", 0) > _LONGEST_CARD:
        return True
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(
            repo_id, "README.md", repo_type=kind, revision=revision, local_dir=folder
        )
        try:
            return MARKER not in read_text(Path(path))
        except ValueError:
            return True
