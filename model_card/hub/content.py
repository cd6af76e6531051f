"""What files are known by: size and hashes, on this machine and on the Hub."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any


class Content:
    """A file that is not written to any more; each hash is taken once, when it is first asked for.

    size: in bytes.
    """

    def __init__(self, file: Path):
        self.file, self.size = file, file.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Of the bytes, in hex: what the Hub calls a large file."""
        return self._hash(hashlib.sha256())

    @cached_property
    def blob_id(self) -> str:
        """git's name of the file, in hex: what the Hub calls a small one."""
        return self._hash(hashlib.sha1(b"blob %d\0" % self.size))

    def arrived(self, entry: Any) -> bool:
        """Whether a RepoFile of the Hub has these bytes; False for None."""
        if entry is None or entry.size != self.size:
            return False
        if entry.lfs is None:
            return entry.blob_id == self.blob_id
        return entry.lfs.sha256 == self.sha256

    def _hash(self, digest: Any) -> str:
        with self.file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()
