"""Build a processor for the original's `llava_cohere` checkpoints, which have none.

Such a folder has a tokenizer, and a config.json that says how images are processed. This is not Hub code:
the result is an ordinary `MayaProcessor`, and saving it writes an ordinary Maya processor.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from .image_processing_maya import MayaImageProcessor
from .processing_maya import MayaProcessor, add_image_token
from .templates import load_chat_template

MODEL_TYPE = "llava_cohere"
IMAGE_ASPECTS = {"pad": "pad", "square": "square", None: "square"}
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def find_file(
    location: str | os.PathLike, name: str, quiet: bool = False, **hub_kwargs: Any
) -> Path | None:
    """Return the path of a file in a folder or repository; None if it has no such file.

    Args:
        quiet: also return None if a repository cannot be reached or read.

    Raises:
        OSError, ValueError: without `quiet`, as `huggingface_hub.hf_hub_download`.
    """
    if Path(location).is_dir():
        path = Path(location) / (hub_kwargs.get("subfolder") or "") / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(location), name, **hub_kwargs))
    # EntryNotFoundError: no such file. Others: not found, gated, no connection, invalid repository name.
    except (EntryNotFoundError, OSError, ValueError) as error:
        no_file = isinstance(error, EntryNotFoundError) and not isinstance(error, FileNotFoundError)
        if quiet or no_file:
            return None
        raise


def read_tokenizer(location: str | os.PathLike, num_embeddings: int, **kwargs: Any) -> Any:
    """Read the original's tokenizer and put `<image>` in a spare row of the decoder's `num_embeddings`.

    The original's trainer saved a missing `unk_token` as the string "null". As saved, " null" in a text
    would become a special token, which it was not in training, and would vanish when decoded. So this
    `unk_token` is treated as missing.

    Raises:
        ValueError: if no embedding row is spare.
    """
    hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
    path = find_file(location, "tokenizer_config.json", **hub_kwargs)
    saved = json.loads(path.read_text(encoding="utf-8")) if path else {}
    declared = {token["content"] for token in saved.get("added_tokens_decoder", {}).values()}
    fixes = (
        {"unk_token": None} if saved.get("unk_token") == "null" and "null" not in declared else {}
    )
    tokenizer = AutoTokenizer.from_pretrained(location, **kwargs, **fixes)
    add_image_token(tokenizer, num_embeddings)
    return tokenizer


def read_image_processor(
    raw: dict[str, Any], image_size: int, tower_folders: list[Path]
) -> MayaImageProcessor:
    """Build the image processor of a `llava_cohere` config `raw` and the vision tower that it names.

    Args:
        tower_folders: the first folder with a `preprocessor_config.json` gives the values. Without
            one, they are SigLIP's (bicubic, mean and standard deviation 0.5), as in every published tower.

    Raises:
        ValueError: for an unknown `image_aspect_ratio`.
    """
    aspect = raw.get("image_aspect_ratio")
    if aspect not in IMAGE_ASPECTS:
        raise ValueError(
            f"config.json: image_aspect_ratio: expected 'pad', 'square' or null, found {aspect!r}"
        )
    settings: dict[str, Any] = {"size": {"height": image_size, "width": image_size}}
    for place in tower_folders:
        if (place / "preprocessor_config.json").is_file():
            tower = json.loads((place / "preprocessor_config.json").read_text(encoding="utf-8"))
            fields = ("size", "resample", "image_mean", "image_std", "rescale_factor")
            settings |= {field: tower[field] for field in fields if tower.get(field) is not None}
            break
    mean = settings.get("image_mean", MayaImageProcessor().image_mean)
    pad_color = [int(255 * value) for value in mean]
    return MayaImageProcessor(image_aspect=IMAGE_ASPECTS[aspect], pad_color=pad_color, **settings)


def chat_template_name(raw: dict[str, Any]) -> str:
    """Return the weights' training template: `plain` if only the projector was trained, else `maya`."""
    return "plain" if raw.get("tune_mm_mlp_adapter") else "maya"


def read_processor(
    raw: dict[str, Any],
    *,
    tokenizer: str | os.PathLike,
    image_size: int,
    image_seq_length: int,
    num_embeddings: int,
    tower_folders: list[Path],
    tokenizer_kwargs: dict[str, Any] | None = None,
) -> MayaProcessor:
    """Build a `MayaProcessor` from a `llava_cohere` config `raw` and a tokenizer's folder or repository."""
    loaded = read_tokenizer(tokenizer, num_embeddings, **(tokenizer_kwargs or {}))
    limit = raw.get("tokenizer_model_max_length")
    if isinstance(limit, int) and limit > 0:
        loaded.model_max_length = limit
    # The template in the original's tokenizer files is the base model's; these weights never saw it.
    loaded.chat_template = None
    return MayaProcessor(
        read_image_processor(raw, image_size, tower_folders),
        loaded,
        image_seq_length=image_seq_length,
        # original_prompt: pretrain-only models of the original were prompted with a newline after the image.
        chat_template=load_chat_template(chat_template_name(raw), original_prompt=True),
    )


def register() -> None:
    """Make `MayaProcessor.from_pretrained`, and so `AutoProcessor`, load `llava_cohere` checkpoints too.

    It patches the class from outside, because the class is Hub code and must not contain the original's
    formats. `AutoConfig` reads the model's config, so `modeling_maya` must have been imported.
    """
    native: Callable[..., MayaProcessor] = MayaProcessor.from_pretrained.__func__

    def from_pretrained(
        cls: type[MayaProcessor], location: str | os.PathLike, *args: Any, **kwargs: Any
    ):
        hub_kwargs = {key: kwargs[key] for key in HUB_KWARGS if key in kwargs}
        if (
            find_file(location, "processor_config.json", quiet=True, **hub_kwargs) is not None
            or find_file(location, "config.json", quiet=True, **hub_kwargs) is None
        ):
            return native(cls, location, *args, **kwargs)
        raw, _ = PreTrainedConfig.get_config_dict(location, **hub_kwargs)
        if raw.get("model_type") != MODEL_TYPE:
            return native(cls, location, *args, **kwargs)
        config = AutoConfig.from_pretrained(location, **hub_kwargs)
        tower = str(raw["mm_vision_tower"])
        processor = read_processor(
            raw,
            tokenizer=location,
            image_size=config.vision_config.image_size,
            image_seq_length=config.image_seq_length,
            num_embeddings=config.text_config.vocab_size,
            tower_folders=[Path(location) / tower, Path(tower)],
            tokenizer_kwargs=hub_kwargs,
        )
        if processor.image_token_id != config.image_token_id:
            raise ValueError(
                f"{location}: {processor.image_token}: expected id {config.image_token_id} from the config, "
                f"found {processor.image_token_id} in the tokenizer"
            )
        return processor

    MayaProcessor.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
