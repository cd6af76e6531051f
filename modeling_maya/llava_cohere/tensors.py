"""Read, compare and write the tensors of a checkpoint one at a time.

safetensors files are read by their checked header, pickles with `weights_only=True`. Only one chunk of a
tensor is in memory, so a checkpoint of any size is converted with a few copy buffers.
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
    """A tensor on disk (or a small one in memory): its name, dtype, shape and how to read it."""

    key: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    # Yields the values in order as 1-D tensors of `dtype`, one chunk at a time.
    read: Callable[[], Iterator[torch.Tensor]] = field(repr=False, compare=False)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def chunks(self, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        """Yield the values in order as 1-D tensors of `dtype` (default: the stored dtype)."""
        for chunk in self.read():
            yield chunk if dtype is None else chunk.to(dtype)

    def load(self) -> torch.Tensor:
        """Return the whole tensor in its shape. Use it for small tensors only."""
        return torch.cat([torch.empty(0, dtype=self.dtype), *self.read()]).reshape(self.shape)


def _read_range(path: Path, start: int, nbytes: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    with open(path, "rb") as file:
        file.seek(start)
        left = nbytes
        while left:
            data = bytearray(min(CHUNK_BYTES, left))
            if file.readinto(data) != len(data):
                raise ValueError(
                    f"{path}: ends early at byte {file.tell()}: the file was changed while it was read"
                )
            left -= len(data)
            yield torch.frombuffer(data, dtype=dtype)


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """Return name -> tensor of one safetensors file, from its checked header alone.

    Raises as `read_header`, and ValueError for a dtype that is not in DTYPES.
    """
    tensors = {}
    for key, entry in read_header(path).items():
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{path}: {shown(key)}: expected a dtype of {', '.join(DTYPES)}, found {shown(entry.dtype)}"
            )
        stored = DTYPES[entry.dtype]
        read = functools.partial(_read_range, path, entry.start, entry.end - entry.start, stored)
        tensors[key] = TensorRef(key, path, stored, entry.shape, read)
    return tensors


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        f"{path}: expected a dictionary of names to tensors, found {what}: refused, no code in it was run"
    )


def read_pickle(path: Path) -> dict[str, TensorRef]:
    """Return name -> tensor of a torch pickle, read with `weights_only=True`.

    The file is memory-mapped if its format allows it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything but named tensors. No code in it is run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a torch file of tensors, found no file")
    content: object
    try:
        # torch warns about the pickle protocol of files that it then refuses.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):  # the format before torch 1.6 cannot be memory-mapped
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
            f"{path}: not a readable torch file of tensors ({type(error).__name__}: {shown(first)}): "
            "download it again"
        ) from None
    if not isinstance(content, dict):
        raise _refused(path, f"a {type(content).__name__}")
    tensors = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise _refused(path, f"a {type(value).__name__} under {shown(repr(key))}")
        if value.dtype not in DTYPE_NAMES or value.layout != torch.strided:
            raise ValueError(
                f"{path}: {shown(key)}: expected a dtype of {', '.join(DTYPES)}, found {value.dtype}"
            )
        # A tensor without values, or a huge shape over the storage of a few values.
        if value.is_meta or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(
                f"{path}: {shown(key)}: expected all values of a tensor of shape {list(value.shape)}, found fewer: "
                "download it again"
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
    """Return name -> tensor of a model folder: of one file, or of the shards of an index.

    Args:
        folder: of the model.
        pickles: read `pytorch_model.bin` if there is no safetensors file. Only the converter does.

    Raises as `headers.read_files`.
    """
    if pickles and not has_weights(folder) and has_weights(folder, "pytorch_model.bin"):
        return read_files(folder, "pytorch_model.bin", read_pickle)
    return read_files(folder, "model.safetensors", read_safetensors)


def check_shapes(
    tensors: dict[str, TensorRef], expected: dict[str, tuple[int, ...]], where: str
) -> None:
    """Raise ValueError, naming the first tensor that is missing, unexpected or of another shape."""
    missing = [key for key in expected if key not in tensors]
    if missing:
        raise ValueError(
            f"{where}: {missing[0]}: expected a tensor of shape {list(expected[missing[0]])}, found none "
            f"({len(missing)} of {len(expected)} tensors are missing)"
        )
    for key, ref in tensors.items():
        if key not in expected:
            extra = sum(name not in expected for name in tensors)
            raise ValueError(
                f"{ref.file}: {shown(key)}: expected no such tensor, found one of shape {list(ref.shape)} "
                f"({extra} unexpected)"
            )
        if ref.shape != tuple(expected[key]):
            raise ValueError(
                f"{ref.file}: {key}: expected shape {list(expected[key])} by config.json, found {list(ref.shape)}"
            )


def max_difference(first: TensorRef, second: TensorRef) -> float:
    """Return the largest absolute difference of two tensors of one shape; NaN counts as infinite."""
    worst = 0.0
    # Tensors of different dtypes have chunks of different lengths, so cut them to a common length.
    for a, b in aligned(first.chunks(torch.float32), second.chunks(torch.float32)):
        same = torch.isclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
        if not bool(same.all()):
            worst = max(worst, float(torch.nan_to_num((a - b).abs(), nan=float("inf")).max()))
    return worst


def aligned(
    first: Iterable[torch.Tensor], second: Iterable[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield pieces of equal length of two sequences of 1-D tensors."""
    left, right = iter(first), iter(second)
    a, b = next(left, None), next(right, None)
    while a is not None and b is not None:
        length = min(a.numel(), b.numel())
        yield a[:length], b[:length]
        a = a[length:] if a.numel() > length else next(left, None)
        b = b[length:] if b.numel() > length else next(right, None)


def same_bytes(first: TensorRef, second: TensorRef) -> bool:
    """Return whether two tensors are equal bit for bit."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    pairs = aligned(first.chunks(), second.chunks())
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def write_safetensors(
    path: Path, tensors: dict[str, TensorRef], dtype: torch.dtype | None = None
) -> None:
    """Write one safetensors file chunk by chunk, and flush it to disk.

    Args:
        path: of the file.
        tensors: by the names to write.
        dtype: floating-point tensors are cast to it; None copies all bytes.

    Raises:
        ValueError: a tensor gave another number of bytes than its shape needs.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    # Wider dtypes come first, as in safetensors' own writer, so that every tensor is aligned.
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
                    f"{tensors[key].file}: {key}: expected {wanted[1] - wanted[0]} bytes, found {written}"
                )
        file.flush()
        os.fsync(file.fileno())


def stored_dtype(ref: TensorRef, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype in which a tensor is written: `dtype` if it is floating-point, else its own."""
    return dtype if dtype is not None and ref.dtype.is_floating_point else ref.dtype


def stored_bytes(refs: Iterable[TensorRef], dtype: torch.dtype | None) -> int:
    """Return the total number of bytes of tensors that are written in their `stored_dtype`."""
    return sum(ref.numel * stored_dtype(ref, dtype).itemsize for ref in refs)


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
