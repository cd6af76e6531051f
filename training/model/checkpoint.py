"""Load the Maya or adapter that a stage starts from: `model.checkpoint`, or the previous stage's model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from modeling_maya import MayaConfig, MayaForConditionalGeneration
from processing_maya import MayaProcessor

from ..common.adapters import Adapter, find_adapter, put_on
from ..common.models import (
    Model,
    check_fit,
    check_generation,
    check_report,
    check_tied,
    check_weights,
    find_model,
    load_network,
    opening,
    read_config,
)
from ..common.telling import one_line
from ..recipe import ModelRecipe
from .templates import check_processor, find_template, set_ends

MAYA_TYPES = ("maya", "llava_cohere")
PROCESSOR = "processor_config.json"


@contextmanager
def under_key(key: str) -> Iterator[None]:
    """Prefix error messages about a model with a key of the recipe."""
    try:
        yield
    except (OSError, ValueError) as error:
        kinds = (FileNotFoundError, OSError, ValueError)
        kind = next(kind for kind in kinds if isinstance(error, kind))
        raise kind(f"{key}: {error}") from error.__cause__


def find_checkpoint(source: ModelRecipe, previous: Path | None = None) -> Model | Adapter:
    """Return the model or adapter that a stage starts from, if it is not built from bases.

    Args:
        previous: the folder of the previous stage, used instead of the recipe's checkpoint.

    Raises:
        ValueError, OSError: in one line, if it is neither a Maya nor an adapter of one, or is missing
            (FileNotFoundError).
    """
    if previous is not None:
        return find_model(str(previous))
    with under_key("model.checkpoint"):
        model = find_model(str(source.checkpoint), source.revision)
        found = find_adapter(model) if model.is_adapter else model
        base = base_of(found)
        kind = read_config(base).get("model_type")
        if kind not in MAYA_TYPES:
            raise ValueError(
                f"{base}: model_type: expected 'maya', found {one_line(repr(kind), 60)}: a vision tower or "
                "language model is a base: give both bases, without model.checkpoint"
            )
        return found


def base_of(found: Model | Adapter) -> Model:
    """Return the full model that a stage starts from; of an adapter, its base."""
    return found.base if isinstance(found, Adapter) else found


def checkpoint_config(found: Model | Adapter) -> MayaConfig:
    """Return the config of the model that a stage starts from.

    Raises:
        ValueError: if config.json is damaged, or no model can be built from it.
    """
    base = base_of(found)
    with opening(f"model.checkpoint: {base}"):
        config = MayaConfig.from_pretrained(base.name, **base.options)
        with torch.device("meta"):
            MayaForConditionalGeneration(config)
    return config


def load_checkpoint(
    found: Model | Adapter,
    source: ModelRecipe,
    *,
    merged: bool,
    further_templates: Iterable[str] = (),
    **options: Any,
) -> tuple[MayaForConditionalGeneration, MayaProcessor]:
    """Load the model and processor that a stage starts from.

    Args:
        source: may set another chat template and image aspect.
        merged: whether to merge an adapter into its base; otherwise the base is returned without it.
        further_templates: other chat templates that the model will be trained with.
        options: further arguments of `from_pretrained`.

    Raises:
        ValueError, FileNotFoundError: naming the folder, if files are damaged, incomplete or do not
            belong together, or a chat template does not fit.
    """
    base = base_of(found)
    check_weights(base)
    network, report = load_network(
        MayaForConditionalGeneration, base, dtype=getattr(torch, source.dtype), **options
    )
    check_report(base, report)
    check_tied(base, network)
    check_generation(base, network.config.text_config.vocab_size)
    if isinstance(found, Adapter) and merged:
        network = put_on(network, found)
    processor = open_processor(found, source)
    check_fit(base, network.config, processor)
    names = [name for name in (source.chat_template, *further_templates) if name is not None]
    for name in names:
        template = find_template(name, processor.tokenizer, processor.image_token)
        set_ends(network.generation_config, template.ends)
    return network, processor


def open_processor(found: Model | Adapter, source: ModelRecipe) -> MayaProcessor:
    """Load the processor that a stage starts from, with the recipe's chat template and image aspect.

    Raises as `load_checkpoint`.
    """
    holder = base_of(found)
    if isinstance(found, Adapter) and found.model.file(PROCESSOR) is not None:
        holder = found.model
    with opening(holder):
        processor = MayaProcessor.from_pretrained(holder.name, **holder.options)
    if source.chat_template is None:
        check_processor(processor, str(holder))
    else:
        template = find_template(source.chat_template, processor.tokenizer, processor.image_token)
        processor.chat_template = template.text
    if source.image_aspect is not None:
        processor.image_processor.image_aspect = source.image_aspect
    return processor
