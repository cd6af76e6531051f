"""Write what a plan says: a complete folder under its name, or none."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from .config import RECORD
from .files import human, write_json
from .plan import PARTIAL_CONFIG, UNUSED_TOWER, ConversionPlan
from .tensors import check_shapes, read_weights, sha256, stored_bytes, write_safetensors


def check_output(output: Path) -> None:
    """Raise FileExistsError if there is anything at `output` that is not a killed run's."""
    if output.is_file() or output.is_symlink():
        raise FileExistsError(f"{output}: found a file, expected a folder that does not exist yet.")
    if output.is_dir() and any(output.iterdir()) and not _is_leftover(output):
        raise FileExistsError(
            f"{output}: found files in it, expected an empty folder or none: nothing is overwritten."
        )


def _is_leftover(output: Path) -> bool:
    """A run was killed in the instant between its two last renames."""
    return (output / PARTIAL_CONFIG).is_file() and not (output / "config.json").exists()


def write(plan: ConversionPlan, shards: Any, output: Path, dtype: torch.dtype | None) -> None:
    """Write into a hidden folder beside `output`, without a config.json, and rename both at the end.

    Without its config.json nothing loads the folder; that name appears last, in one step.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(output)
    size = stored_bytes(plan.tensors.values(), dtype)
    needed = size + stored_bytes(plan.side.values(), dtype)
    free = shutil.disk_usage(output.parent).free
    if free < needed:
        raise OSError(
            f"{output}: found {human(free)} free on the disk, expected at least {human(needed)}."
        )
    work = output.parent / f".{output.name}.converting-{os.getpid()}"
    work.mkdir()
    try:
        for name, keys in sorted(shards.filename_to_tensors.items()):
            write_safetensors(work / name, {key: plan.tensors[key] for key in keys}, dtype)
        if shards.is_sharded:
            write_json(
                work / "model.safetensors.index.json",
                {
                    "metadata": {"total_size": size},
                    "weight_map": dict(sorted(shards.tensor_to_filename.items())),
                },
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
            read_weights(work, pickles=False),
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
    """Folders of runs that were killed: theirs is the only name of this form, with a process that is gone."""
    for path in output.parent.glob(f".{output.name}.converting-*"):
        process = path.name.rsplit("-", 1)[-1]
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
