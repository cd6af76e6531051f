"""Tensors on disk, one at a time: checked headers, pickles without code, and a streaming writer.

Nothing here holds more than a chunk of a tensor in memory, so that a checkpoint of any size is
converted in the memory of a few copy buffers.
"""

import functools
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

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
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_BYTES = 16 * 1024 * 1024
# The format's own limit on the length of a header.
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class TensorRef:
    """A tensor that is still on disk (or small and already read): its name, dtype, shape and bytes.

    `read` yields the tensor's values in order as one-dimensional tensors of `dtype`, a chunk at a time.
    """

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterator[torch.Tensor]] = field(repr=False, compare=False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def chunks(self, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """The values in order, flat, as `dtype` (default: as stored)."""
        for chunk in self.read():
            yield chunk if dtype is None else chunk.to(dtype)

    def load(self) -> torch.Tensor:
        """The whole tensor, in its shape. For small tensors."""
        return torch.cat([torch.empty(0, dtype=self.dtype), *self.read()]).reshape(self.shape)


def _read_range(path: Path, start: int, nbytes: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    with open(path, "rb") as file:
        file.seek(start)
        left = nbytes
        while left:
            data = bytearray(min(CHUNK_BYTES, left))
            if file.readinto(data) != len(data):
                raise ValueError(
                    f"{path}: ends early at byte {file.tell()}: it was changed while being read."
                )
            left -= len(data)
            yield torch.frombuffer(data, dtype=dtype)


@dataclass(frozen=True)
class HeaderEntry:
    """What a safetensors header says of a tensor; `start` and `end` count from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, HeaderEntry]:
    """The header of one safetensors file, with every number in it checked against the file's size.

    The tensors must fill the file without gap or overlap, as the format's own writers leave it. Dtypes
    that are not in DTYPES are allowed, and their lengths are not checked.

    Raises `FileNotFoundError` for a missing file and `ValueError`, naming file and tensor, for one that
    is cut short, malformed or no safetensors file.
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


def shown(text: str, longest: int = 100) -> str:
    """Text of a file for a message: printable and short."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= longest else text[: longest - 4] + " ..."


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """The tensors of one safetensors file, from its header alone; every length is checked first.

    Raises as `read_header`, and `ValueError` for a dtype that is not in DTYPES.
    """
    tensors = {}
    for key, entry in read_header(path).items():
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {shown(key)}: found dtype {shown(entry.dtype)}, expected one of {', '.join(DTYPES)}."
            )
        stored = DTYPES[entry.dtype]
        read = functools.partial(_read_range, path, entry.start, entry.end - entry.start, stored)
        tensors[key] = TensorRef(key, path, stored, entry.shape, read)
    return tensors


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: refused, nothing in it was run: found {what}, expected a dictionary of names to tensors."
    )


def read_pickle(path: Path) -> dict[str, TensorRef]:
    """The tensors of a torch pickle, read with `weights_only=True` and memory-mapped where its format allows.

    Raises `FileNotFoundError`, and `ValueError` for a file that holds anything but named tensors: code
    is never run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a torch file of tensors.")
    content: object
    try:
        # torch warns of the pickle protocol of files that it then refuses.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):  # the format before torch 1.6 cannot be mapped
                    raise
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = re.search(r"(?:GLOBAL|global|class|function) `?([\w.]+\.[\w.]+)`? ", str(error))
        if named or "weights_only" in str(error) or "Unsupported" in str(error):
            raise _refused(
                path, f"code ({named.group(1)})" if named else "more than tensors"
            ) from None
        first = next(iter(str(error).strip().splitlines()), "")
        raise ValueError(
            f"{path}: not a readable torch file of tensors ({type(error).__name__}: {shown(first)}). "
            "Download it again."
        ) from None
    if not isinstance(content, dict):
        raise _refused(path, f"a {type(content).__name__}")
    tensors = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise _refused(path, f"a {type(value).__name__} under {shown(repr(key))}")
        if value.dtype not in DTYPE_NAMES or value.layout != torch.strided:
            raise ValueError(
                f"{path}: {shown(key)}: found dtype {value.dtype}, expected one of {', '.join(DTYPES)}."
            )
        # A tensor without its values, or one of few values that claims to be huge.
        if value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {shown(key)}: found a tensor of shape {list(value.shape)} without all of its values, "
                "expected them in the file. Download it again."
            )
        tensors[key] = TensorRef(
            key, path, value.dtype, tuple(value.shape), functools.partial(_slices, value)
        )
    return tensors


def _slices(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    step = CHUNK_BYTES // tensor.dtype.itemsize
    flat = tensor.detach().contiguous().reshape(-1)
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step]


def read_weights(folder: Path, *, pickles: bool) -> dict[str, TensorRef]:
    """All tensors of a model folder: one file or shards with an index, safetensors first.

    `pickles` also allows `pytorch_model.bin`; only the converter sets it. Raises `FileNotFoundError`
    for missing weights or shards and `ValueError` for anything that contradicts the index.
    """
    if pickles and not has_weights(folder) and has_weights(folder, "pytorch_model.bin"):
        return _read_files(folder, "pytorch_model.bin", read_pickle)
    return _read_files(folder, "model.safetensors", read_safetensors)


def read_headers(folder: Path) -> dict[str, HeaderEntry]:
    """The headers of all safetensors files of a model folder. Raises as `read_weights`."""
    return _read_files(folder, "model.safetensors", read_header)


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


def _read_files(folder: Path, name: str, read: Callable[[Path], dict[str, T]]) -> dict[str, T]:
    """What `read` finds in the file `name`, or in the shards of its index, which must agree with it."""
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


@contextmanager
def reading(where: str | os.PathLike) -> Iterator[None]:
    """Tell what the libraries raise about the values in somebody's files in one line, as ValueError.

    Stands around nothing but the reading of such files. A missing package is no fault of theirs.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, ImportError):
        raise
    except Exception as error:
        told = shown(" ".join(str(error).split()), 200)
        raise ValueError(
            f"{where}: cannot be read ({type(error).__name__}: {told}). Download it again."
        ) from error


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises `FileNotFoundError` or a `ValueError` that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: not valid JSON that can be read (nested too deep).") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found a {type(content).__name__}, expected a JSON object.")
    return content


def write_json(path: Path, content: dict) -> None:
    """Write a JSON object, readable and with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_shapes(
    tensors: dict[str, TensorRef], expected: dict[str, tuple[int, ...]], where: str
) -> None:
    """Refuse missing tensors, tensors nobody asked for, and wrong shapes, naming the first of each kind."""
    missing = [key for key in expected if key not in tensors]
    if missing:
        raise ValueError(
            f"{where}: {missing[0]}: not found, expected shape {list(expected[missing[0]])} "
            f"({len(missing)} of {len(expected)} tensors are missing)."
        )
    for key, ref in tensors.items():
        if key not in expected:
            extra = sum(name not in expected for name in tensors)
            raise ValueError(
                f"{ref.file}: {shown(key)}: found shape {list(ref.shape)}, expected no such tensor ({extra} unexpected)."
            )
        if ref.shape != tuple(expected[key]):
            raise ValueError(
                f"{ref.file}: {key}: found shape {list(ref.shape)}, expected {list(expected[key])} from config.json."
            )


def max_difference(first: TensorRef, second: TensorRef) -> float:
    """The largest absolute difference of two tensors of one shape (not-a-number counts as infinite)."""
    worst = 0.0
    # The two may be stored in different dtypes, so their chunks are re-cut to a common length.
    for a, b in _aligned(first.chunks(torch.float32), second.chunks(torch.float32)):
        same = torch.isclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        if not bool(same.all()):
            worst = max(worst, float(torch.nan_to_num((a - b).abs(), nan=float("inf")).max()))
    return worst


def _aligned(
    first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    left, right = iter(first), iter(second)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        length = min(a.numel(), b.numel())
        yield a[:length], b[:length]
        a = a[length:] if a.numel() > length else next(left, None)
        b = b[length:] if b.numel() > length else next(right, None)


def same_bytes(first: TensorRef, second: TensorRef) -> bool:
    """Whether two tensors are equal bit for bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    pairs = _aligned(first.chunks(), second.chunks())
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def write_safetensors(
    path: Path, tensors: dict[str, TensorRef], dtype: torch.dtype | None = None
) -> None:
    """Write one safetensors file a chunk at a time and flush it to the disk.

    `dtype` casts floating-point tensors; `None` copies the bytes.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    # Wider dtypes first, as the format's own writer does, so that every tensor is aligned.
    order = sorted(tensors, key=lambda key: -stored_dtype(tensors[key], dtype).itemsize)
    for key in order:
        stored = stored_dtype(tensors[key], dtype)
        nbytes = tensors[key].numel * stored.itemsize
        header[key] = {
            "dtype": DTYPE_NAMES[stored],
            "shape": list(tensors[key].shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in order:
            start = file.tell()
            for chunk in tensors[key].chunks(stored_dtype(tensors[key], dtype)):
                file.write(chunk.contiguous().view(torch.uint8).numpy().data)
            written, wanted = file.tell() - start, header[key]["data_offsets"]
            if written != wanted[1] - wanted[0]:
                raise ValueError(
                    f"{tensors[key].file}: {key}: gave {written} bytes, expected {wanted[1] - wanted[0]}."
                )
        file.flush()
        os.fsync(file.fileno())


def stored_dtype(ref: TensorRef, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype a tensor is written in: `dtype` for floating-point tensors, else its own."""
    return dtype if dtype is not None and ref.dtype.is_floating_point else ref.dtype


def sha256(path: Path) -> str:
    """Digest of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
    return digest.hexdigest()
