"""Plan the export to GGUF, the format of llama.cpp: the decoder in one file, tower and projector in another.

The names and keys are those that llama.cpp reads for its architectures `command-r` (Cohere's decoder) and
`clip` with the projector `mlp` (LLaVA's). Three things are adapted to it:

- The tower is cut after the layer that Maya reads.
- A projector of one linear layer becomes one of two, as llama.cpp applies a GELU between two layers:
  gelu(x) - gelu(-x) = x, so the layers [W; -W] and [I, -I] give W x + b.
- The chat template does not write the first token, as llama.cpp adds that token itself.

llama.cpp computes a GELU by its tanh approximation, with a table in half precision, so its logits are close
to Maya's and not equal: `tests/compatibility/llama_cpp.py` measures the difference.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PretrainedConfig

from ..configuration_maya import MayaConfig
from .files import optional_json, read_json, reading, write_json
from .origin import Origin
from .tensors import DTYPE_NAMES, TensorRef, stored_dtype
from .to_llava import PROJECTOR, TEMPLATE, layers_behind, made, picture_settings, read_maya
from .write import PARTIAL_CONFIG, ConversionPlan, versions

MODEL_FILE, PROJECTOR_FILE = "model.gguf", "mmproj.gguf"
DECODER_ARCH = "command-r"
DECODER, TOWER = "model.language_model", "model.vision_tower"
KINDS = ("F32", "F16", "BF16")
# llama.cpp's names of modules: those outside of layers, and those in a layer of the decoder or the tower.
NAMES = {
    f"{DECODER}.embed_tokens": "token_embd",
    f"{DECODER}.norm": "output_norm",
    f"{TOWER}.embeddings.patch_embedding": "v.patch_embd",
    f"{TOWER}.embeddings.position_embedding": "v.position_embd",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_out",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
LAYER = re.compile(r"\.layers\.(\d+)\.(.+)$")
GELUS = ["gelu_pytorch_tanh", "gelu"]
FIRST_TOKEN = re.compile(r"\{\{-?\s*bos_token\s*-?\}\}")
# llama.cpp's name of a way to cut text before byte-pair encoding: by the tokenizer's own description.
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
PRETOKENIZERS = {
    # Aya-23 and the other Command models.
    "command-r": [DIGITS, {**BYTES, "use_regex": True}],
    # The tokenizer of mini cuts words where `qwen35` does, and punctuation from words besides. No token of
    # its vocabulary joins the two, so the tokens are the same.
    "qwen35": [
        DIGITS,
        {
            "type": "Split",
            "pattern": {
                "Regex": r" ?[\p{L}\p{M}\u200c\u200d]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}\u200c\u200d]+|\s+(?!\S)|\s+"
            },
            "behavior": "Isolated",
            "invert": False,
        },
        {**BYTES, "use_regex": False},
    ],
}
NORMAL, CONTROL, UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens


def plan_gguf(origin: Origin, dtype: torch.dtype | None) -> ConversionPlan:
    """Check a Maya and plan its export.

    Args:
        origin: of the Maya.
        dtype: of the matrices; None keeps the stored dtype. Vectors, and the embeddings of patches and
            positions, become float32, as llama.cpp expects.

    Raises:
        ImportError: the package gguf is missing.
        ValueError: llama.cpp cannot hold the model; the error names file and field. It holds Cohere
            decoders with a tied head, SigLIP towers of which every patch is read, projectors of one or
            two layers, and images padded to a square.
    """
    _gguf()  # without the library, fail before anything is read
    folder = origin.folder
    raw, config, tensors = read_maya(folder)
    where = str(folder / "config.json")
    _expect(where, _decoder_limits(config) | _bridge_limits(config))
    pictures = picture_settings(folder)
    _expect(str(folder), {"image_aspect": ("pad" if pictures["do_pad"] else "square", ["pad"])})
    name = origin.name.rstrip("/").rsplit("/", 1)[-1]
    keys = {
        MODEL_FILE: _decoder_keys(config, name) | _tokenizer_keys(folder, config),
        PROJECTOR_FILE: _tower_keys(config, pictures, name),
    }
    unread = (f"{PROJECTOR}.", f"{TOWER}.head.", f"{TOWER}.post_layernorm.", *layers_behind(config))
    written = {_renamed(key): ref for key, ref in tensors.items() if not key.startswith(unread)}
    written |= _projector(tensors, config)
    written = {key: _stored_as(ref, _dtype_of(key, ref, dtype)) for key, ref in written.items()}
    record = {
        "format": 1,
        "converted_from": {"name": origin.name, "commit": origin.commit, "kind": "Maya"},
        "versions": versions(),
    }

    def write_file(path: Path, chosen: dict[str, TensorRef], cast: torch.dtype | None) -> None:
        write_gguf(path, chosen, keys[path.name])

    def finish(target: Path) -> None:
        write_json(target / PARTIAL_CONFIG, raw)

    files = sorted({ref.file for ref in tensors.values()} | {folder / "config.json"})
    grey = pictures["image_mean"]
    notes = [
        "llama.cpp computes GELU by its tanh approximation in half precision: logits are close, not equal",
        f"llama.cpp pads images with the color 122, 116, 104, Maya with {', '.join(str(int(m * 255)) for m in grey)}",
        "llama.cpp does not normalize text: write questions in NFC",
    ]
    return ConversionPlan(
        "Maya",
        written,
        raw,
        record,
        files,
        finish,
        notes=notes,
        write_file=write_file,
        read_back=read_gguf,
        indexed=False,
    )


def split_files(plan: ConversionPlan) -> dict[str, list[str]]:
    """Return the names of the tensors of each file, by file name."""
    files: dict[str, list[str]] = {MODEL_FILE: [], PROJECTOR_FILE: []}
    for key in plan.tensors:
        files[PROJECTOR_FILE if key.startswith(("v.", "mm.")) else MODEL_FILE].append(key)
    return files


def write_gguf(path: Path, tensors: dict[str, TensorRef], keys: dict[str, Any]) -> None:
    """Write one GGUF file, its tensors chunk by chunk, and flush it to disk.

    Args:
        path: of the file.
        tensors: by llama.cpp's names, in float32, float16 or bfloat16.
        keys: metadata by llama.cpp's names: `general.architecture` and others.
    """
    gguf = _gguf()
    writer = gguf.GGUFWriter(None, keys["general.architecture"])
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}
    for key, value in keys.items():
        if key != "general.architecture":  # the writer has it
            kinds[type(value)](key, value)
    for key, ref in tensors.items():
        kind = gguf.GGMLQuantizationType[DTYPE_NAMES[ref.dtype]]
        size = ref.numel * ref.dtype.itemsize
        writer.add_tensor_info(key, ref.shape, None, size, raw_dtype=kind)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "ab") as file:
        for ref in tensors.values():
            file.write(bytes(-file.tell() % writer.data_alignment))
            for chunk in ref.chunks():
                file.write(chunk.contiguous().view(torch.uint8).numpy().data)
        file.write(bytes(-file.tell() % writer.data_alignment))
        file.flush()
        os.fsync(file.fileno())


def read_gguf(folder: Path) -> dict[str, TensorRef]:
    """Return name -> tensor of the two files of an export, without a way to read their values."""
    gguf = _gguf()
    dtypes = {
        gguf.GGMLQuantizationType[name]: dtype
        for dtype, name in DTYPE_NAMES.items()
        if name in KINDS
    }
    tensors = {}
    for name in (MODEL_FILE, PROJECTOR_FILE):
        for tensor in gguf.GGUFReader(folder / name).tensors:
            shape = tuple(reversed(tensor.shape.tolist()))
            dtype = dtypes[tensor.tensor_type]
            tensors[tensor.name] = TensorRef(
                tensor.name, folder / name, dtype, shape, lambda: iter(())
            )
    return tensors


def _gguf() -> Any:
    """Import the library that writes GGUF; raise ImportError with the command that installs it."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(
            "--to gguf: expected the package gguf, found none: pip install gguf"
        ) from error
    return gguf


def _expect(where: str, limits: dict[str, tuple[Any, list[Any]]]) -> None:
    """Raise ValueError for the first field that llama.cpp does not support: {field: (found, supported)}."""
    for field, (found, supported) in limits.items():
        if found not in supported:
            raise ValueError(
                f"{where}: {field}: expected {' or '.join(map(repr, supported))}, which llama.cpp supports for such "
                f"a model, found {found!r}"
            )


def _decoder_limits(config: MayaConfig) -> dict[str, tuple[Any, list[Any]]]:
    """Return what llama.cpp's `command-r` supports, for `_expect`."""
    text = config.text_config
    head = text.hidden_size // text.num_attention_heads
    return {
        "text_config.model_type": (text.model_type, ["cohere"]),
        "tie_word_embeddings": (config.tie_word_embeddings, [True]),
        "text_config.attention_bias": (getattr(text, "attention_bias", False), [False]),
        "text_config.use_qk_norm": (getattr(text, "use_qk_norm", False), [False]),
        "text_config.hidden_act": (text.hidden_act, ["silu"]),
        "text_config.rope_parameters.rope_type": (
            _rope(text).get("rope_type", "default"),
            ["default"],
        ),
        "text_config.head_dim": (getattr(text, "head_dim", None) or head, [head]),
    }


def _bridge_limits(config: MayaConfig) -> dict[str, tuple[Any, list[Any]]]:
    """Return what llama.cpp supports of a tower and a projector of LLaVA's kind, for `_expect`."""
    tower, layers = config.vision_config, config.projector_num_layers
    limits: dict[str, tuple[Any, list[Any]]] = {
        # llama.cpp puts the class token of a CLIP behind the patches, and then leaves out the first patch.
        "vision_config.model_type": (tower.model_type, ["siglip_vision_model"]),
        "vision_feature_select_strategy": (config.vision_feature_select_strategy, ["full"]),
        "vision_config.hidden_act": (tower.hidden_act, GELUS),
        "projector_kind": (config.projector_kind, ["mlp"]),
        "projector_num_layers": (layers, [1, 2]),
    }
    if layers == 2:
        limits["projector_hidden_act"] = (config.projector_hidden_act, GELUS)
    return limits


def _rope(text: PretrainedConfig) -> dict[str, Any]:
    """Return the settings of the rotary positions, under the name that this release of transformers uses."""
    settings = getattr(text, "rope_parameters", None)
    return settings or {"rope_theta": getattr(text, "rope_theta", 10000.0)}


def _decoder_keys(config: MayaConfig, name: str) -> dict[str, Any]:
    """Return the metadata of the decoder, without its tokenizer."""
    text = config.text_config
    own = {
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.layer_norm_epsilon": float(text.layer_norm_eps),
        "rope.freq_base": float(_rope(text)["rope_theta"]),
        "rope.scaling.type": "none",
        "vocab_size": text.vocab_size,
        "logit_scale": float(text.logit_scale),
    }
    general = {"general.architecture": DECODER_ARCH, "general.type": "model", "general.name": name}
    return general | {f"{DECODER_ARCH}.{key}": value for key, value in own.items()}


def _tower_keys(config: MayaConfig, pictures: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the metadata of tower and projector."""
    tower, used = config.vision_config, config.vision_layers_used
    own = {
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "embedding_length": tower.hidden_size,
        "feed_forward_length": tower.intermediate_size,
        "projection_dim": config.text_config.hidden_size,
        "block_count": used,
        "attention.head_count": tower.num_attention_heads,
        "attention.layer_norm_epsilon": float(tower.layer_norm_eps),
        "image_mean": [float(value) for value in pictures["image_mean"]],
        "image_std": [float(value) for value in pictures["image_std"]],
        # The features are the output of the last layer in the file; llama.cpp's default is the one before.
        "feature_layer": [used],
    }
    general = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
    }
    return general | {f"clip.vision.{key}": value for key, value in own.items()}


def _tokenizer_keys(folder: Path, config: MayaConfig) -> dict[str, Any]:
    """Return the metadata of the tokenizer and the chat template.

    Raises:
        ValueError: llama.cpp has no way to cut text as this tokenizer does.
    """
    path = folder / "tokenizer.json"
    stored = read_json(path)
    with reading(path):
        tokenizer = Tokenizer.from_file(str(path))
        steps = stored["pre_tokenizer"].get("pretokenizers", [stored["pre_tokenizer"]])
        pre = next((name for name, known in PRETOKENIZERS.items() if known == steps), None)
        kind, merges = stored["model"].get("type"), stored["model"].get("merges", [])
    if pre is None or kind != "BPE":
        raise ValueError(
            f"{path}: pre_tokenizer: expected that of Aya-23 or of mini with byte-pair encoding, found another, for "
            "which no equal one of llama.cpp's is known"
        )
    tokens = [f"[UNUSED{number}]" for number in range(config.text_config.vocab_size)]
    kinds = [UNUSED] * len(tokens)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token, place in tokenizer.get_vocab().items():
        tokens[place], kinds[place] = token, CONTROL if token in special else NORMAL
    generation = optional_json(folder / "generation_config.json") or {}
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": pre,
        "tokens": tokens,
        "token_type": kinds,
        "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
    }
    for key, field in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        number = generation.get(
            f"{field}_token_id", getattr(config.text_config, f"{field}_token_id", None)
        )
        number = number[0] if isinstance(number, list) else number
        if number is not None:
            keys[f"{key}_token_id"] = number
    keys["add_bos_token"] = tokenizer.encode("a").ids[:1] == [keys.get("bos_token_id")]
    written = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    template = folder / TEMPLATE
    if template.is_file():
        text = template.read_text(encoding="utf-8")
        if keys["add_bos_token"]:
            text = FIRST_TOKEN.sub('{{- "" -}}', text, count=1)
        written["tokenizer.chat_template"] = text
    return written


def _renamed(key: str) -> str:
    """Return llama.cpp's name of a tensor of the decoder or the tower."""
    module, _, kind = key.rpartition(".")
    if layer := LAYER.search(module):
        number, part = layer.groups()
        return f"{'v.' if key.startswith(TOWER) else ''}blk.{number}.{LAYER_NAMES[part]}.{kind}"
    return f"{NAMES[module]}.{kind}"


def _projector(tensors: dict[str, TensorRef], config: MayaConfig) -> dict[str, TensorRef]:
    """Return the two layers of the projector; a single layer becomes two, with the same result."""
    first = {kind: tensors[f"{PROJECTOR}.layers.0.{kind}"] for kind in ("weight", "bias")}
    if config.projector_num_layers == 2:
        second = {kind: tensors[f"{PROJECTOR}.layers.2.{kind}"] for kind in ("weight", "bias")}
    else:
        width = config.text_config.hidden_size
        identity = torch.eye(width)
        second = {
            "weight": made(torch.cat([identity, -identity], dim=1), first["weight"]),
            "bias": made(torch.zeros(width), first["bias"]),
        }
        first = {kind: _with_negative(ref) for kind, ref in first.items()}
    return {f"mm.0.{kind}": ref for kind, ref in first.items()} | {
        f"mm.2.{kind}": ref for kind, ref in second.items()
    }


def _with_negative(ref: TensorRef) -> TensorRef:
    """Return the tensor followed by its negative, along the first dimension."""

    def read() -> Iterator[torch.Tensor]:
        yield from ref.read()
        for chunk in ref.read():
            yield -chunk

    return replace(ref, shape=(2 * ref.shape[0], *ref.shape[1:]), read=read)


def _dtype_of(key: str, ref: TensorRef, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype in which llama.cpp expects a tensor."""
    exact = len(ref.shape) == 1 or key.startswith(("v.patch_embd", "v.position_embd"))
    return torch.float32 if exact else stored_dtype(ref, dtype)


def _stored_as(ref: TensorRef, dtype: torch.dtype) -> TensorRef:
    """Return the tensor, cast when it is read."""
    read: Callable[[], Iterator[torch.Tensor]] = lambda: ref.chunks(dtype)  # noqa: E731
    return replace(ref, dtype=dtype, read=read)
