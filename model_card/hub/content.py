"""What files are known by: size and hashes, on this machine and on the Hub."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from maya_vlm.training.common.files import files_sha256, sha256_file


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


def weights_sha256(folder: Path) -> str:
    """One hash over the safetensors files, as `results.json` has it; "" where there are none."""
    return files_sha256(folder.glob("*.safetensors")) or ""
