"""Write files atomically: temporary file, fsync, rename, fsync of the folder.

Every file that is read later is written through this module. A file under its final name is therefore
complete, whenever a process was killed.
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
    """Yield a temporary path beside `path`, and rename it to `path` if the block ends without an error.

    Raises:
        OSError: naming `path`, if the disk fails. The temporary file is then deleted and an earlier file
            at `path` is unchanged.
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
    """Write `data` to `path`; on failure an earlier file is unchanged."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, keys in their order, non-ASCII letters unescaped.

    File names may hold lone surrogates, which UTF-8 cannot encode; then all non-ASCII letters are
    escaped.
    """
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        data = json.dumps(value, indent=1).encode("ascii")
    write_bytes(path, data + b"\n")


def write_parquet(path: Path, table: pa.Table, **options: Any) -> str:
    """Write `table` as a parquet file (zstd) with pyarrow's options; return its SHA-256 in hex."""
    with atomic(path) as temporary:
        pq.write_table(table, temporary, **{"compression": "zstd", **options})
        return sha256_file(temporary)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(files: Iterable[Path]) -> str | None:
    """Return one SHA-256 over files' names and bytes, sorted by name; None without files."""
    digest = hashlib.sha256()
    names = sorted(files, key=lambda file: file.name)
    for file in names:
        digest.update(file.name.encode())
        digest.update(bytes.fromhex(sha256_file(file)))
    return digest.hexdigest() if names else None


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    """Return the SHA-256 of a text's UTF-8 bytes, in hex."""
    return sha256_bytes(text.encode())


def remove_temporaries(path: Path) -> None:
    """Delete temporary files that killed writers of `path` left. The caller must hold the lock of `path`."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def only_one(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file. Raises OSError(refusal) if another process holds it."""
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
    """Give a file the default permissions of this process (0o666 without the umask).

    safetensors creates files that only their owner can read.
    """
    umask = os.umask(0)
    os.umask(umask)
    file.chmod(0o666 & ~umask)


def disk_error(path: Path, error: OSError) -> OSError:
    """Return `error` as one line that names the file and what to do.

    Errors raised by this package are returned unchanged: a block that writes may read other files too.
    Such errors have no errno, and a class of their own or this function's message.
    """
    ours = type(error) is not OSError or ": cannot be written: " in str(error)
    if error.errno is None and (ours or str(path) in str(error)):
        return error
    text = f"{path}: cannot be written: {error.strerror or error}"
    return OSError(f"{text}: fix that, then run the same command again")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
