"""The plan of a conversion, checked before the first byte is written, its report, and the writing."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from .config import RECORD
from .files import human, write_json
from .tensors import (
    CHUNK_BYTES,
    TensorRef,
    check_shapes,
    read_weights,
    sha256,
    stored_bytes,
    stored_dtype,
    write_safetensors,
)

# Tensors that the model does not use, kept so that converting back is bit-equal.
UNUSED_TOWER = "unused_tower.safetensors"
PARTIAL_CONFIG = "config.json.partial"
PARTS = (
    ("embeddings", r"(model\.language_model|model)\.embed_tokens\.|token_embd\."),
    ("decoder layers", r"(model\.language_model|model)\.(layers|norm)\.|blk\.|output_norm\."),
    ("head", r"lm_head\."),
    ("projector", r"model\.(multi_modal_projector|mm_projector)\.|mm\."),
    ("vision tower", r"model\.vision_tower\.|v\."),
)


@dataclass
class ConversionPlan:
    """Everything that a conversion will write."""

    kind: str
    tensors: dict[str, TensorRef]  # under the names to write
    config: dict[str, Any]
    record: dict[str, Any]
    sources: list[Path]  # every file to read
    finish: Callable[[Path], None]  # writes all small files, and config.json as PARTIAL_CONFIG
    side: dict[str, TensorRef] = field(default_factory=dict)  # for UNUSED_TOWER
    notes: list[str] = field(default_factory=list)
    write_file: Callable[[Path, dict[str, TensorRef], torch.dtype | None], None] = write_safetensors
    indexed: bool = True  # several files get an index
    # Returns the tensors of the written folder, to check their shapes.
    read_back: Callable[[Path], dict[str, TensorRef]] = lambda folder: read_weights(
        folder, pickles=False
    )


def versions() -> dict[str, str]:
    """Return the versions of the libraries, for the record of a conversion."""
    return {"transformers": transformers.__version__, "torch": torch.__version__}


def make_report(
    plan: ConversionPlan, files: dict[str, list[str]], dtype: torch.dtype | None
) -> dict[str, Any]:
    """Return the report of `convert`.

    Args:
        plan: of the conversion.
        files: names of the tensors of each file to write.
        dtype: floating-point tensors are cast to it; None casts nothing.
    """
    chosen = {
        name: {key: ref for key, ref in plan.tensors.items() if re.match(pattern, key)}
        for name, pattern in PARTS
    }
    chosen["unused tower"] = plan.side
    return {
        "kind": plan.kind,
        "tensors": len(plan.tensors),
        "parameters": sum(ref.numel for ref in plan.tensors.values()),
        "bytes": stored_bytes(plan.tensors.values(), dtype),
        "shards": {
            name: stored_bytes((plan.tensors[key] for key in keys), dtype)
            for name, keys in sorted(files.items())
        },
        "side_bytes": stored_bytes(plan.side.values(), dtype),
        # A chunk as stored and in float32, the chunk it is compared with, and the header's text. Pickles
        # are memory-mapped whole, and their pages count as used until the end.
        "memory_bytes": 6 * CHUNK_BYTES
        + sum(path.stat().st_size for path in plan.sources if path.suffix == ".bin"),
        "parts": {name: _part(tensors, dtype) for name, tensors in chosen.items() if tensors},
        "notes": list(plan.notes),
        "source_bytes": sum(path.stat().st_size for path in plan.sources),
    }


def _part(tensors: dict[str, TensorRef], dtype: torch.dtype | None) -> dict[str, Any]:
    dtypes = {str(stored_dtype(ref, dtype)).removeprefix("torch.") for ref in tensors.values()}
    return {
        "tensors": len(tensors),
        "parameters": sum(ref.numel for ref in tensors.values()),
        "bytes": stored_bytes(tensors.values(), dtype),
        "dtype": "+".join(sorted(dtypes)),
    }


def describe(
    plan: ConversionPlan,
    report: dict[str, Any],
    output: str | os.PathLike | None,
    to: str,
    dry_run: bool,
) -> Iterator[str]:
    """Yield the lines of a report."""
    yield f"source: {plan.record['converted_from']['name']} ({plan.kind}), {human(report['source_bytes'])}"
    yield f"{'would write' if dry_run else 'writing'}: {output or 'nowhere yet'} ({to})"
    for name, size in report["shards"].items():
        yield f"  {name}  {human(size)}"
    if plan.side:
        yield f"  {UNUSED_TOWER}  {human(report['side_bytes'])}"
    yield f"{'part':<16}{'tensors':>8}{'parameters':>16}{'size':>14}  dtype"
    for name, part in report["parts"].items():
        yield (
            f"{name:<16}{part['tensors']:>8}{part['parameters']:>16,}{human(part['bytes']):>14}  {part['dtype']}"
        )
    yield f"{'model':<16}{report['tensors']:>8}{report['parameters']:>16,}{human(report['bytes']):>14}"
    yield from plan.notes
    yield (
        f"memory: {human(report['memory_bytes'])} of buffers to convert, {human(report['bytes'])} to load the result; "
        f"disk: {human(report['bytes'] + report['side_bytes'])}"
    )


def check_output(output: Path) -> None:
    """Raise FileExistsError unless `output` is free, empty or the leftover of a killed run."""
    if output.is_file() or output.is_symlink():
        raise FileExistsError(f"{output}: expected a folder that does not exist yet, found a file")
    if output.is_dir() and any(output.iterdir()) and not _is_leftover(output):
        raise FileExistsError(
            f"{output}: expected an empty folder or none, found files in it: choose another folder"
        )


def _is_leftover(output: Path) -> bool:
    """Return whether a run was killed between its last two renames."""
    return (output / PARTIAL_CONFIG).is_file() and not (output / "config.json").exists()


def write(
    plan: ConversionPlan, files: dict[str, list[str]], output: Path, dtype: torch.dtype | None
) -> None:
    """Write into a hidden folder beside `output`, then rename the folder, then its config.json.

    A folder without config.json does not load. That name appears last, in one step.

    Raises:
        OSError: the disk has too little free space.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(output)
    size = stored_bytes(plan.tensors.values(), dtype)
    needed = size + stored_bytes(plan.side.values(), dtype)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise OSError(
            f"{output}: expected at least {human(needed)} free on the disk, found {human(free)}"
        )
    work = output.parent / f".{output.name}.converting-{os.getpid()}"
    work.mkdir()
    try:
        for name, keys in sorted(files.items()):
            plan.write_file(work / name, {key: plan.tensors[key] for key in keys}, dtype)
        if len(files) > 1 and plan.indexed:
            file_of = {key: name for name, keys in files.items() for key in keys}
            write_json(
                work / "model.safetensors.index.json",
                {"metadata": {"total_size": size}, "weight_map": dict(sorted(file_of.items()))},
            )
        if plan.side:
            write_safetensors(work / UNUSED_TOWER, plan.side, dtype)
        plan.record["converted_from"]["files"] = [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in plan.sources
        ]
        write_json(work / RECORD, plan.record)
        plan.finish(work)
        check_shapes(
            plan.read_back(work),
            {key: ref.shape for key, ref in plan.tensors.items()},
            str(work),
        )
        if output.is_dir() and _is_leftover(output):
            shutil.rmtree(output)
        os.rename(work, output)
        os.replace(output / PARTIAL_CONFIG, output / "config.json")
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _remove_stale(output: Path) -> None:
    """Remove the folders of killed runs: their names end with the id of a process that has ended."""
    for path in output.parent.glob(f".{output.name}.converting-*"):
        process = path.name.rsplit("-", 1)[-1]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's process
    return True
