"""Files that are whole or absent: temporary name, fsync, rename, fsync of the folder.

Every file that somebody reads later is written through this module, so that what stands under its
final name is complete, whatever was killed and whenever.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends without an error.

    Raises OSError naming `path` when the disk does not take it; the temporary file is then gone
    and what stood at `path` before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise disk_error(path, error) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """`data` at `path`; when it fails, what was there before is untouched."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`text` as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, keys in their order, letters of every script as they are.

    Names of files need not be text: where half a surrogate pair is in it, which UTF-8 cannot hold, all
    letters are written as escapes.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        data = json.dumps(value, indent=1).encode("ascii")
    write_bytes(path, data + b"\n")


def write_parquet(path: Path, table: pa.Table, **options: Any) -> str:
    """`table` as a parquet file (zstd), with options of pyarrow's; returns its SHA-256, in hex."""
    with atomic(path) as temporary:
        pq.write_table(table, temporary, **{"compression": "zstd", **options})
        return sha256_file(temporary)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(files: Iterable[Path]) -> str | None:
    """One hash over files' names and bytes, in the order of their names; None without files."""
    digest = hashlib.sha256()
    names = sorted(files, key=lambda file: file.name)
    for file in names:
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256_file(file)))
    return digest.hexdigest() if names else None


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, in hex."""
    return sha256_bytes(text.encode())


def remove_temporaries(path: Path) -> None:
    """Delete what killed writers of `path` left; only for who holds the lock of `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def only_one(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file. Raises OSError with this message when another process holds it."""
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OSError(refusal) from None
    try:
        yield
    finally:
        lock.release()


def ordinary_permissions(file: Path) -> None:
    """Give a file the permissions of every other file of this process.

    safetensors creates files that only their owner can read.
    """
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def disk_error(path: Path, error: OSError) -> OSError:
    """`error` as one line that names the file and says what to do; one of ours stays as it is.

    Ours have no number and a class of their own: what is written may be read from elsewhere at the same time.
    """
    ours = type(error) is not OSError or ": cannot be written: " in str(error)
    if error.errno is None and (ours or str(path) in str(error)):
        return error
    text = f"{path}: cannot be written: {error.strerror or error}"
    return OSError(f"{text}; when that is mended, run the same command again")


def sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
