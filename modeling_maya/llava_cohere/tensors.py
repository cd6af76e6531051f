"""Tensors on disk, one at a time: by a checked header, out of a pickle without code, and written.

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
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .files import shown
from .headers import DTYPES, has_weights, read_files, read_header

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class TensorRef:
    """A tensor that is still on disk (or small and already read): its name, dtype, shape and bytes."""

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    # Yields the values in order as one-dimensional tensors of `dtype`, a chunk at a time.
    read: Callable[[], Iterator[torch.Tensor]] = field(repr=False, compare=False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

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


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """The tensors of one safetensors file, from its header alone; every length is checked first.

    Raises as `read_header`, and ValueError for a dtype that is not in DTYPES.
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

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds anything but named tensors. Code is never run.
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

    Only the converter reads `pickles` (`pytorch_model.bin`), too. Raises as `headers.read_files`.
    """
    if pickles and not has_weights(folder) and has_weights(folder, "pytorch_model.bin"):
        return read_files(folder, "pytorch_model.bin", read_pickle)
    return read_files(folder, "model.safetensors", read_safetensors)


def check_shapes(
    tensors: dict[str, TensorRef], expected: dict[str, tuple[int, ...]], where: str
) -> None:
    """Raise ValueError for missing and unexpected tensors and wrong shapes; it names the first."""
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

    Args:
        dtype: what floating-point tensors are cast to; None: the bytes are copied.
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


def stored_bytes(refs: Iterable[TensorRef], dtype: torch.dtype | None) -> int:
    """The bytes that tensors have when they are written as `stored_dtype` says."""
    return sum(ref.numel * stored_dtype(ref, dtype).itemsize for ref in refs)


def sha256(path: Path) -> str:
    """Digest of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
