"""Read and check safetensors headers and shard indexes."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from .files import read_json, shown

T = TypeVar("T")

# dtype names of the safetensors format (its README) -> torch dtypes.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# The only weights of a folder that has a Maya's projector without decoder and tower; see join.py.
PROJECTOR = "projector.safetensors"
# The format's limit on the length of a header.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor's entry in a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # offset in the file, bytes
    end: int


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """Read the header of one safetensors file, and check every number in it against the file's size.

    The tensors must fill the file without gap or overlap, as the format's own writers write them. Dtypes
    that are not in DTYPES are allowed; the lengths of their tensors are not checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short, malformed or not safetensors; the error names file and tensor.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a safetensors shard, found no file: download it again"
        )
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        found = _another_kind(start)
        if not found and (size < 8 or not 2 <= length <= MAX_HEADER_BYTES):
            found = f"a header of {length} bytes in a file of {size}"
        if found:
            raise ValueError(
                f"{path}: expected a safetensors file, found {found}: download it again"
            )
        if size < 8 + length:
            raise ValueError(
                f"{path}: cut short inside its header: expected more than {8 + length} bytes, found {size}: "
                "download it again"
            )
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
        raise _malformed(path, reason) from None
    if not isinstance(header, dict):
        raise _malformed(path, f"expected a mapping of tensors, found a {type(header).__name__}")
    entries = {
        key: _header_entry(path, key, entry, 8 + length)
        for key, entry in header.items()
        if key != "__metadata__"
    }
    expected = max((entry.end for entry in entries.values()), default=8 + length)
    if size != expected:
        state = "cut short" if size < expected else "longer than its header says"
        raise ValueError(
            f"{path}: {state}: expected {expected} bytes, found {size}: download it again"
        )
    end = 8 + length
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            kind = "overlaps the tensor before it" if entry.start < end else "leaves a gap"
            raise _malformed(
                path,
                f"{shown(key)} {kind}: expected it to start at byte {end}, found {entry.start}",
            )
        end = entry.end
    return entries


def read_headers(folder: Path) -> dict[str, HeaderEntry]:
    """Read the headers of all safetensors files of a model folder.

    Raises as `read_header` and `read_files`.
    """
    return read_files(folder, "model.safetensors", read_header)


def _another_kind(start: bytes) -> str:
    """Return what kind of file begins with these bytes, or "" if it may be a safetensors file."""
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, so the weights themselves were not downloaded"
    if start.lstrip()[:1] == b"<" and b"\0" not in start:
        return "a web page"
    if start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x04"):
        return "a pickle of torch" if start[8:9] != b"{" else ""
    return ""


def _malformed(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: malformed safetensors header ({reason}): download it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} occurs twice")
    return found


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _header_entry(path: Path, key: str, entry: Any, data: int) -> HeaderEntry:
    """Return the checked entry of one tensor; the file's tensor data begin at byte `data`."""
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str):
        raise _malformed(path, f"{shown(key)}: expected a dtype, found {shown(repr(dtype))}")
    if not isinstance(shape, list) or not all(map(_is_size, shape)):
        raise _malformed(path, f"{shown(key)}: expected a shape, found {shown(repr(shape))}")
    if not (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(map(_is_size, offsets))
        and offsets[0] <= offsets[1]
    ):
        raise _malformed(
            path, f"{shown(key)}: expected data_offsets [start, end], found {shown(repr(offsets))}"
        )
    start, end = offsets
    if dtype in DTYPES:
        expected = math.prod(shape) * DTYPES[dtype].itemsize
        if end - start != expected:
            raise ValueError(
                f"{path}: {shown(key)}: expected {expected} bytes for {dtype} of shape {list(shape)}, "
                f"found {end - start}"
            )
    return HeaderEntry(dtype, tuple(shape), data + start, data + end)


def has_weights(folder: Path, name: str = "model.safetensors") -> bool:
    """Return whether a folder has weights, or their index, under a name that transformers loads."""
    return any((folder / f"{name}{end}").is_file() for end in ("", ".index.json"))


def is_projector(folder: Path) -> bool:
    """Return whether a folder has the projector of a Maya and no other weights."""
    return (folder / PROJECTOR).is_file() and not has_weights(folder)


def read_index(path: Path) -> dict[str, str]:
    """Return tensor name -> shard file of an index. Raises ValueError if the file is not an index."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{path}: weight_map: expected an object of tensor names to shard files, found none"
        )
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.isprintable():
            raise ValueError(
                f"{path}: {shown(key)}: expected a shard's file name without a path, found {shown(repr(shard))}"
            )
    return weight_map


def read_files(folder: Path, name: str, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """Return what `read` returns for the file `name`, or for all shards that its index names.

    Raises:
        FileNotFoundError: the weights or a shard are missing.
        ValueError: the tensors of the shards differ from those of the index.
    """
    index_path = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return read(folder / name)
    if not index_path.is_file() and is_projector(folder):
        raise FileNotFoundError(
            f"{folder}: expected a whole model, found only a projector ({PROJECTOR}): join it with its bases first: "
            f"maya convert {folder} OUTPUT"
        )
    if not index_path.is_file():
        raise FileNotFoundError(f"{folder}: no weights: expected {name} or {index_path.name}")
    weight_map = read_index(index_path)
    tensors: dict[str, T] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            keys = [key for key, place in weight_map.items() if place == shard]
            raise FileNotFoundError(
                f"{folder / shard}: this shard is missing: {index_path.name} expects {len(keys)} tensors in "
                f"it, the first is {shown(keys[0])}: download it again"
            )
        for key, found in read(folder / shard).items():
            if weight_map.get(key) != shard:
                raise ValueError(
                    f"{folder / shard}: {shown(key)}: {index_path.name} expects it in "
                    f"{weight_map.get(key, 'no shard')}, found it here"
                )
            tensors[key] = found
    for key, shard in weight_map.items():
        if key not in tensors:
            raise ValueError(
                f"{folder / shard}: {shown(key)}: {index_path.name} expects it here, found no such tensor"
            )
    return tensors
