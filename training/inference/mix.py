"""Merge the decoder of a Maya with the language model that it was trained from, tensor by tensor.

Training on pictures costs a decoder some of what it knew of text. Aya Vision (arXiv 2505.08751) takes a weighted
mean of both decoders, alpha * multimodal + (1 - alpha) * text: alpha 1 is the Maya, alpha 0 has the text model's
decoder. Tower and projector stay those of the Maya.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from modeling_maya.llava_cohere.tensors import (
    TensorRef,
    aligned,
    read_weights,
    write_safetensors,
)

from ..common.files import ordinary_permissions, write_json
from ..common.models import Model, find_model, read_config
from ..common.reading import read_json_mapping
from ..common.telling import one_line
from ..common.versions import own_version

# Fields of a decoder's config that change what the same weights compute.
DECIDING = (
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "logit_scale",
    "use_qk_norm",
    "tie_word_embeddings",
)
# What the output folder says of its origin.
RECORD = "merge.json"
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
# Files about the weights that went in.
LEFT_OUT = ("README.md", "LICENSES.md", "results.json", "report.html", "sheet.png", RECORD)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_DECODER = re.compile(r"model\.language_model\.(.+)")


def mix(
    model: str,
    output: str | Path,
    base: str,
    alpha: float,
    *,
    revision: str | None = None,
) -> Path:
    """Write a Maya whose decoder is the weighted mean of its own and of a language model.

    Means are computed in float32 and stored in the Maya's dtype. Only a piece of a tensor is in memory.

    Args:
        model: a folder or repository of a Maya, `user/name@revision` too.
        output: the folder to write; it must not exist, or be empty.
        base: a folder or repository of the language model that the Maya's decoder was trained from.
        alpha: weight of the Maya's decoder, from 0 to 1.
        revision: of the Maya's repository.

    Raises:
        ValueError, FileNotFoundError, OSError: one line, before anything is written: the two decoders differ in
            kind or in the shape of a tensor.
    """
    output = Path(output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output}: expected a new or empty folder, found something in it")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected 0 to 1, found {alpha:g}")
    maya, text = find_model(model, revision), find_model(base)
    _check_kinds(maya, text)
    folder, base_folder = _whole(maya), _whole(text)
    _check_tokenizers(folder, base_folder)
    own = read_weights(folder, pickles=False)
    theirs = read_weights(base_folder, pickles=False)
    merged = {key: _mixed(key, ref, theirs, alpha, str(text)) for key, ref in own.items()}
    work = output.parent / f".{output.name}.merging-{os.getpid()}"
    try:
        work.mkdir(parents=True)
        for file in sorted(folder.iterdir()):
            left_out = file.suffix in (".safetensors", *PICKLES) or file.name in LEFT_OUT
            if file.is_file() and not left_out:
                shutil.copy2(file, work / file.name)
        # The same tensors in the same files, so that an index stays right.
        for file in sorted({ref.file for ref in own.values()}):
            tensors = {key: merged[key] for key, ref in own.items() if ref.file == file}
            write_safetensors(work / file.name, tensors)
            ordinary_permissions(work / file.name)
        record = {"model": maya.title, "base": text.title, "alpha": alpha}
        commits = {"model": maya.revision, "base": text.revision}
        write_json(work / RECORD, {**record, "commits": commits, "maya_vlm": own_version()})
        if output.is_dir():
            output.rmdir()
        os.replace(work, output)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return output


def _check_kinds(maya: Model, text: Model) -> None:
    """Raise ValueError unless the first is a Maya and the second a language model of its decoder's kind."""
    config, base = read_config(maya), read_config(text)
    if maya.is_adapter or config.get("model_type") != "maya":
        raise ValueError(
            f"{maya}: model_type: expected 'maya', found {config.get('model_type')!r}: merge an adapter first"
        )
    decoder = config.get("text_config") or {}
    # Maya's own field decides about its head.
    decoder |= {"tie_word_embeddings": config.get("tie_word_embeddings")}
    for name in ("model_type", *DECIDING):
        expected, found = decoder.get(name), base.get(name, decoder.get(name))
        if found != expected:
            raise ValueError(
                f"{text}: {name}: expected {expected!r}, that of the decoder of {maya}, found {found!r}"
            )


def _check_tokenizers(maya: Path, base: Path) -> None:
    """Raise ValueError if a token of the base has another number in the Maya; a base without tokenizer passes."""
    first, second = (folder / "tokenizer.json" for folder in (maya, base))
    if not (first.is_file() and second.is_file()):
        return
    own, theirs = (read_json_mapping(path)["model"]["vocab"] for path in (first, second))
    if own != theirs:
        token = min(own.items() ^ theirs.items())[0]
        raise ValueError(
            f"{second}: {one_line(repr(token), 40)}: expected number {own.get(token)}, as in {first}, found "
            f"{theirs.get(token)}: the decoders were trained with other tokens and cannot be averaged"
        )


def _whole(model: Model) -> Path:
    """Return the folder of a model with all of its files; a repository is downloaded, pickles are not."""
    if model.revision is None:
        return model.folder
    from huggingface_hub import snapshot_download

    pickles = ["*.bin", "*.pt", "*.pth", "*.pkl"]
    return Path(snapshot_download(model.name, revision=model.revision, ignore_patterns=pickles))


def _mixed(
    key: str, ref: TensorRef, base: dict[str, TensorRef], alpha: float, where: str
) -> TensorRef:
    """Return a tensor of the output: the mean of both for the decoder, else the Maya's own."""
    match = _DECODER.fullmatch(key)
    if match is None and key != HEAD:
        return ref
    name = HEAD if match is None else f"model.{match[1]}"
    # A language model whose head is tied stores the embeddings only.
    other = base.get(name) or (base.get(EMBEDDINGS) if name == HEAD else None)
    if other is None:
        raise ValueError(
            f"{where}: {name}: expected a tensor of shape {list(ref.shape)}, found none"
        )
    if other.shape != ref.shape:
        raise ValueError(
            f"{other.file}: {name}: expected shape {list(ref.shape)} as in {ref.file}, found {list(other.shape)}"
        )
    if not ref.dtype.is_floating_point or alpha == 1:
        return ref

    def read() -> Iterator[torch.Tensor]:
        for mine, theirs in aligned(ref.chunks(torch.float32), other.chunks(torch.float32)):
            yield (alpha * mine + (1 - alpha) * theirs).to(ref.dtype)

    return replace(ref, read=read)
