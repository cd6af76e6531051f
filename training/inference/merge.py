"""`maya merge ADAPTER OUTPUT`: merge an adapter into its base, and write the model."""

import os
import shutil
from pathlib import Path

import torch

from ..common.adapters import find_adapter
from ..common.models import ADAPTER_CONFIG, find_model
from .load import open_model

DTYPES = ("float32", "bfloat16", "float16")


def merge(
    adapter: str,
    output: str | Path,
    base: str | None = None,
    *,
    revision: str | None = None,
    dtype: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Merge an adapter into its base, and write the model.

    Args:
        adapter: a folder or repository in peft's format, `user/name@revision` too.
        output: the folder to write; it must not exist, or be empty.
        base: the base, if the adapter names none that is available.
        revision: of the adapter's repository.
        dtype: of the result, such as bfloat16; default: that of the stored base.
        trust_remote_code: passed on to transformers, for bases other than Maya.

    Raises:
        ValueError, FileNotFoundError, OSError, MemoryError: one line, before anything is written.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: expected a new or empty folder, found something in it")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(DTYPES)}, found {dtype!r}")
    model = find_model(adapter, revision)
    if not model.is_adapter:
        raise ValueError(
            f"{model}: expected an adapter ({ADAPTER_CONFIG}), found a whole model: --alpha merges its decoder with "
            "that of --base"
        )
    network, processor = open_model(
        find_adapter(model, base),
        dtype="auto" if dtype is None else getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
    )
    work = output.parent / f".{output.name}.merging-{os.getpid()}"
    try:
        network.save_pretrained(work)
        processor.save_pretrained(work)
        if output.is_dir():
            output.rmdir()
        os.replace(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return output
