"""Headers of safetensors files, every number in them checked, and the index of shards."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from .files import read_json, shown

T = TypeVar("T")

# Names of the dtypes in the safetensors format (its README) and what they are in torch.
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
# The format's own limit on the length of a header.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class HeaderEntry:
    """What a safetensors header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes from the file's first
    end: int


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """The header of one safetensors file, with every number in it checked against the file's size.

    The tensors must fill the file without gap or overlap, as the format's own writers leave it. Dtypes
    that are not in DTYPES are allowed, and their lengths are not checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut short, malformed or no safetensors file; names file and tensor.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a safetensors shard. Download it again."
        )
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        found = _another_kind(start)
        if not found and (size < 8 or not 2 <= length <= MAX_HEADER_BYTES):
            found = f"a header of {length} bytes in a file of {size}"
        if found:
            raise ValueError(f"{path}: not a safetensors file: found {found}. Download it again.")
        if size < 8 + length:
            raise ValueError(
                f"{path}: cut short inside its header: found {size} bytes, expected more than {8 + length}. "
                "Download it again."
            )
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else shown(str(error))
        raise _malformed(path, reason) from None
    if not isinstance(header, dict):
        raise _malformed(path, f"found a {type(header).__name__}, expected a mapping of tensors")
    entries = {
        key: _header_entry(path, key, entry, 8 + length)
        for key, entry in header.items()
        if key != "__metadata__"
    }
    expected = max((entry.end for entry in entries.values()), default=8 + length)
    if size != expected:
        state = "cut short" if size < expected else "longer than its header says"
        raise ValueError(
            f"{path}: {state}: found {size} bytes, expected {expected}. Download it again."
        )
    end = 8 + length
    for key, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            kind = "overlaps the tensor before it" if entry.start < end else "leaves a gap"
            raise _malformed(
                path, f"{shown(key)} {kind}: it starts at byte {entry.start}, expected {end}"
            )
        end = entry.end
    return entries


def read_headers(folder: Path) -> dict[str, HeaderEntry]:
    """The headers of all safetensors files of a model folder. Raises as `read_header` and `read_files`."""
    return read_files(folder, "model.safetensors", read_header)


def _another_kind(start: bytes) -> str:
    """What a file with this start is, if it is known and no safetensors file."""
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, so the weights themselves were not downloaded"
    if start.lstrip()[:1] == b"<" and b"\0" not in start:
        return "a web page"
    if start[:4] == b"PK\x03\x04" or start[:2] in (b"\x80\x02", b"\x80\x04"):
        return "a pickle of torch" if start[8:9] != b"{" else ""
    return ""


def _malformed(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path}: its safetensors header is malformed ({reason}). Download it again.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} stands twice")
    return found


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _header_entry(path: Path, key: str, entry: Any, data: int) -> HeaderEntry:
    """One tensor of a header whose data begin at byte `data`."""
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
                f"{path}: {shown(key)}: found {end - start} bytes, expected {expected} for {dtype} of shape "
                f"{list(shape)}."
            )
    return HeaderEntry(dtype, tuple(shape), data + start, data + end)


def has_weights(folder: Path, name: str = "model.safetensors") -> bool:
    """Whether a folder has weights under a name that transformers loads, or their index."""
    return any((folder / f"{name}{end}").is_file() for end in ("", ".index.json"))


def read_index(path: Path) -> dict[str, str]:
    """Which shard an index expects each tensor in. Raises `ValueError` for what is no index."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(
            f"{path}: found no weight_map, expected one of tensor names to shard files."
        )
    for key, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.isprintable():
            raise ValueError(
                f"{path}: {shown(key)}: found shard {shown(repr(shard))}, expected a file name without a path."
            )
    return weight_map


def read_files(folder: Path, name: str, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """What `read` finds in the file `name`, or in the shards of its index, which must agree with it.

    Raises:
        FileNotFoundError: the weights or a shard are missing.
        ValueError: something contradicts the index.
    """
    index_path = folder / f"{name}.index.json"
    if (folder / name).is_file():
        return read(folder / name)
    if not index_path.is_file():
        raise FileNotFoundError(f"{folder}: no weights: expected {name} or {index_path.name}.")
    weight_map = read_index(index_path)
    tensors: dict[str, T] = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            keys = [key for key, place in weight_map.items() if place == shard]
            raise FileNotFoundError(
                f"{folder / shard}: this shard is missing: {index_path.name} expects {len(keys)} tensors in "
                f"it, the first {shown(keys[0])}. Download it again."
            )
        for key, found in read(folder / shard).items():
            if weight_map.get(key) != shard:
                raise ValueError(
                    f"{folder / shard}: {shown(key)}: found here, but {index_path.name} expects it in "
                    f"{weight_map.get(key, 'no shard')}."
                )
            tensors[key] = found
    for key, shard in weight_map.items():
        if key not in tensors:
            raise ValueError(
                f"{folder / shard}: {shown(key)}: not found, but {index_path.name} expects it there."
            )
    return tensors
