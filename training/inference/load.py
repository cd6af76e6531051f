"""Load a trained model, or an adapter with its base, to ask it questions."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..common.adapters import Adapter, find_adapter, put_on
from ..common.models import (
    Model,
    check_fit,
    check_generation,
    check_pictures,
    check_report,
    check_tied,
    check_tokens,
    check_weights,
    find_model,
    load_network,
    opening,
    read_config,
)

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def load(
    model: str, trust_remote_code: bool = False, revision: str | None = None
) -> tuple[Any, Any]:
    """Load the model and the processor of a folder or Hub repository, ready to answer.

    An adapter is merged into the base that it names. On a GPU the saved dtype is kept; on a CPU the
    weights become float32, which is fastest there. Maya does not need `trust_remote_code`: the classes of
    the installed package are used.

    Args:
        model: a folder or Hub repository, `user/name@revision` too.
        trust_remote_code: passed on to transformers, for models other than Maya.
        revision: branch, tag or commit of the repository.

    Raises:
        FileNotFoundError: the folder or repository does not exist, or holds no model.
        ValueError: the model does not take images and text, or its files are damaged or do not belong
            together.
        MemoryError: the weights do not fit.
    """
    found = find_model(model, revision)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network, processor = open_model(
        find_adapter(found) if found.is_adapter else found,
        dtype="auto" if device == "cuda" else torch.float32,
        trust_remote_code=trust_remote_code,
        device=device,
    )
    return network.eval(), processor


def open_model(
    found: Model | Adapter,
    *,
    dtype: Any,
    trust_remote_code: bool = False,
    device: str = "cpu",
) -> tuple[Any, Any]:
    """Return the network, an adapter merged into it, and the processor. Raises as `load`.

    With accelerate installed, each weight goes straight from its file to a GPU, without a copy of the model in
    main memory.
    """
    # These imports register Maya with transformers' Auto classes.
    from transformers import AutoModelForImageTextToText, AutoProcessor, logging

    import modeling_maya  # noqa: F401
    import processing_maya  # noqa: F401

    # Commands print their own lines, and loading reports are checked below.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    adapter = found if isinstance(found, Adapter) else None
    model = found.base if isinstance(found, Adapter) else found
    kind = read_config(model).get("model_type")
    _check_memory(model, dtype)
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
    if device != "cpu" and find_spec("accelerate"):
        options["device_map"] = {"": device}
    try:
        network, report = load_network(AutoModelForImageTextToText, model, **options)
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"{model} does not take images and text: expected a Maya or another "
                f"image-text-to-text model"
            ) from error
        raise
    maya = kind in ("maya", "llava_cohere")
    # Checkpoints of other models may hold weights that their classes do not use.
    check_report(model, report, others=r"(?!)" if maya else "")
    check_tied(model, network)
    check_generation(model, len(network.get_input_embeddings().weight))
    if adapter is not None:
        network = put_on(network, adapter)
    network = network.to(device)
    holder = model
    if adapter is not None and any(adapter.model.file(name) for name in PROCESSOR_FILES):
        holder = adapter.model
    with opening(holder):
        processor = AutoProcessor.from_pretrained(
            holder.name, trust_remote_code=trust_remote_code, **holder.options
        )
    missing = [name for name in ("tokenizer", "image_processor") if not hasattr(processor, name)]
    if missing:
        raise ValueError(
            f"{holder}: its processor has no {' and no '.join(missing)}; expected what "
            f"`processor.save_pretrained` of an image-text-to-text model writes"
        )
    if maya:
        check_fit(holder, network.config, processor)
    else:
        check_pictures(holder, processor.image_processor)
    with opening(holder):
        content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    if maya:
        if prompt.count(processor.image_token) != 1:
            raise ValueError(
                f"{holder}: chat_template.jinja: expected one {processor.image_token} for a picture, found "
                f"{prompt.count(processor.image_token)}: download it again, or save the processor again"
            )
        check_tokens(holder, processor.tokenizer(prompt)["input_ids"], network)
    return network, processor


def _check_memory(model: Model, dtype: Any) -> None:
    """Check a model's weights, and raise MemoryError if they do not fit."""
    headers = check_weights(model)
    if torch.cuda.is_available():
        return
    numbers = sum(_count(entry.shape) for entry in headers.values())
    stored = sum(entry.end - entry.start for entry in headers.values())
    needed = numbers * dtype.itemsize if isinstance(dtype, torch.dtype) else stored
    available = _available_memory()
    if available is not None and needed > available:
        raise MemoryError(
            f"{model}: its weights need {needed / 2**30:.1f} GiB of memory, {available / 2**30:.1f} GiB are "
            "available; use a GPU or a smaller model"
        )


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _available_memory() -> int | None:
    """Return the bytes of memory available without swapping, or None if the system does not say."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
