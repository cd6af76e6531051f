"""Loading a trained model for questions: one clear line for what is no model."""

from pathlib import Path
from typing import Any

import torch


def load(model: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The model and the processor of a folder or Hub repository, ready to answer.

    On a GPU the saved dtype is kept; on a CPU weights become float32, in which it computes fastest.
    Maya itself never needs `trust_remote_code`: the installed package's classes are used. Raises
    FileNotFoundError for a folder that is none or holds no model, ValueError for a model that does
    not take images and text, MemoryError where its weights cannot fit.
    """
    # Registers Maya with transformers' Auto classes.
    from transformers import AutoModelForImageTextToText, AutoProcessor, logging

    import modeling_maya  # noqa: F401
    import processing_maya  # noqa: F401

    check(model)
    # Loading takes seconds; what a command prints is its own.
    logging.disable_progress_bar()
    folder = Path(model).expanduser()
    model = str(folder) if folder.is_dir() else model
    gpu = torch.cuda.is_available()
    try:
        network = AutoModelForImageTextToText.from_pretrained(
            model,
            dtype="auto" if gpu else torch.float32,
            trust_remote_code=trust_remote_code,
        )
        processor = AutoProcessor.from_pretrained(model, trust_remote_code=trust_remote_code)
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"{model} does not take images and text: expected a Maya or another "
                f"image-text-to-text model"
            ) from error
        raise
    except OSError as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(
            f"{model!r} is neither a folder nor a Hub repository that can be read "
            f"({str(error).splitlines()[0]})"
        ) from error
    missing = [name for name in ("tokenizer", "image_processor") if not hasattr(processor, name)]
    if missing:
        raise ValueError(
            f"{model}: its processor has no {' and no '.join(missing)}; expected what "
            f"`processor.save_pretrained` of an image-text-to-text model writes"
        )
    return network.to("cuda" if gpu else "cpu").eval(), processor


def check(model: str) -> None:
    """What can be said without loading: FileNotFoundError or MemoryError, as `load` raises them."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or folder.parent.is_dir():
            raise FileNotFoundError(
                f"no model at {model}: expected a folder written by `maya train`"
            )
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} is not a model folder: it has no config.json; expected what `maya train` "
            f"writes"
        )
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder} has a config.json but no .safetensors weights")
    if not torch.cuda.is_available():
        # 16-bit files grow to float32.
        needed = 2 * sum(file.stat().st_size for file in weights)
        available = _available_memory()
        if available is not None and needed > available:
            raise MemoryError(
                f"{folder}: its weights need up to {needed / 2**30:.1f} GiB of memory in float32, "
                f"{available / 2**30:.1f} GiB are available; use a GPU or a smaller model"
            )


def _available_memory() -> int | None:
    """Bytes that can be had without swapping, where the system tells."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
