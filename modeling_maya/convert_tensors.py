"""Tensors on disk, one at a time: checked headers, pickles without code, and a streaming writer.

Nothing here holds more than a chunk of a tensor in memory, so that a checkpoint of any size is
converted in the memory of a few copy buffers.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

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
        count = 1
        for size in self.shape:
            count *= size
        return count

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


def read_safetensors(path: Path) -> dict[str, TensorRef]:
    """The tensors of one safetensors file, from its header alone; every length is checked first.

    Raises `FileNotFoundError` for a missing file and `ValueError` for one that is cut short or malformed.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a safetensors shard. Download it again."
        )
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(
                f"{path}: not a safetensors file: found a header of {length} bytes in a file of {size}. "
                "Download it again."
            )
        if size < 8 + length:
            raise ValueError(
                f"{path}: cut short inside its header: found {size} bytes, expected more than {8 + length}. "
                "Download it again."
            )
        try:
            header = json.loads(file.read(length))
            entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
            ends = [entry["data_offsets"][1] for entry in entries.values()]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path}: its safetensors header is malformed ({error}). Download it again."
            ) from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        state = "cut short" if size < expected else "longer than its header says"
        raise ValueError(
            f"{path}: {state}: found {size} bytes, expected {expected}. Download it again."
        )
    tensors = {}
    for key, entry in entries.items():
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(
                f"{path}: {key}: found dtype {dtype}, expected one of {', '.join(DTYPES)}."
            )
        first, nbytes, stored = 8 + length + start, end - start, DTYPES[dtype]
        ref = TensorRef(
            key,
            path,
            stored,
            shape,
            functools.partial(_read_range, path, first, nbytes, stored),
        )
        if ref.nbytes != nbytes:
            raise ValueError(
                f"{path}: {key}: found {nbytes} bytes, expected {ref.nbytes} for {dtype} of shape {list(shape)}."
            )
        tensors[key] = ref
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
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{path}: not a readable torch file ({first[0]}). Download it again."
        ) from None
    if not isinstance(content, dict):
        raise _refused(path, f"a {type(content).__name__}")
    tensors = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise _refused(path, f"a {type(value).__name__} under {key!r}")
        if value.dtype not in DTYPE_NAMES or value.layout != torch.strided:
            raise ValueError(
                f"{path}: {key}: found dtype {value.dtype}, expected one of {', '.join(DTYPES)}."
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
    kinds: list[tuple[str, Callable[[Path], dict[str, TensorRef]]]] = [
        ("model.safetensors", read_safetensors)
    ]
    if pickles:
        kinds.append(("pytorch_model.bin", read_pickle))
    for name, read in kinds:
        index_path = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return read(folder / name)
        if not index_path.is_file():
            continue
        index = read_json(index_path)
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(
                f"{index_path}: found no weight_map, expected one of tensor names to shard files."
            )
        tensors: dict[str, TensorRef] = {}
        for shard in sorted(set(weight_map.values())):
            if Path(shard).name != shard:
                raise ValueError(
                    f"{index_path}: found shard {shard!r}, expected a file name without a path."
                )
            if not (folder / shard).is_file():
                keys = [key for key, place in weight_map.items() if place == shard]
                raise FileNotFoundError(
                    f"{folder / shard}: this shard is missing: {index_path.name} expects {len(keys)} tensors in "
                    f"it, the first {keys[0]}. Download it again."
                )
            for key, ref in read(folder / shard).items():
                if weight_map.get(key) != shard:
                    raise ValueError(
                        f"{folder / shard}: {key}: found here, but {index_path.name} expects it in "
                        f"{weight_map.get(key, 'no shard')}."
                    )
                tensors[key] = ref
        for key, shard in weight_map.items():
            if key not in tensors:
                raise ValueError(
                    f"{folder / shard}: {key}: not found, but {index_path.name} expects it there."
                )
        return tensors
    wanted = " or ".join(f"{name} or {name}.index.json" for name, _ in kinds)
    raise FileNotFoundError(f"{folder}: no weights: expected {wanted}.")


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises `FileNotFoundError` or a `ValueError` that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
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
                f"{ref.file}: {key}: found shape {list(ref.shape)}, expected no such tensor ({extra} unexpected)."
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
