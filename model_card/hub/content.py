"""What files are known by: size and hashes, on this machine and on the Hub."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maya_vlm.training.common.files import files_sha256, sha256_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi


class Content:
    """A file that is not written to any more; each hash is taken once, when it is first asked for.

    size: in bytes.
    """

    def __init__(self, file: Path):
        self.file, self.size = file, file.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Of the bytes, in hex: what the Hub calls a large file."""
        return sha256_file(self.file)

    @cached_property
    def blob_id(self) -> str:
        """git's name of the file, in hex: what the Hub calls a small one."""
        with self.file.open("rb") as file:
            head = hashlib.sha1(b"blob %d\0" % self.size)
            return hashlib.file_digest(file, lambda: head).hexdigest()

    def arrived(self, entry: Any) -> bool:
        """Whether a RepoFile of the Hub has these bytes; False for None."""
        if entry is None or entry.size != self.size:
            return False
        if entry.lfs is None:
            return entry.blob_id == self.blob_id
        return entry.lfs.sha256 == self.sha256


def tree(api: "HfApi", repo_id: str, kind: str, revision: str) -> dict[str, Any]:
    """Path -> RepoFile of all files of a repository ("model" or "dataset") at a revision."""
    from huggingface_hub import RepoFile

    found = api.list_repo_tree(repo_id, repo_type=kind, revision=revision, recursive=True)
    return {entry.path: entry for entry in found if isinstance(entry, RepoFile)}


def check_arrived(
    api: "HfApi", contents: Mapping[str, Content], repo_id: str, kind: str, revision: str
) -> None:
    """Raise OSError unless a revision of a repository has these files, by size and hash."""
    there = tree(api, repo_id, kind, revision)
    wrong = [name for name, each in contents.items() if not each.arrived(there.get(name))]
    if wrong:
        raise OSError(
            f"{len(wrong)} of {len(contents)} files did not arrive whole, e.g. {wrong[0]}: publish again"
        )


def weights_sha256(folder: Path) -> str:
    """One hash over the safetensors files, as `results.json` has it; "" where there are none."""
    return files_sha256(folder.glob("*.safetensors")) or ""
