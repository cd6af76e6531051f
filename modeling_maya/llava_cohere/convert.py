"""Converts the original Maya's checkpoints (`llava_cohere`) to Hub-native ones, and back.

    convert("nahidalam/maya_full_ft", "maya-8b")                              a full checkpoint
    convert("mm_projector_folder", "maya", base_model="CohereForAI/aya-23-8B") only the projector
    convert("lora_folder", "maya", base_model="CohereForAI/aya-23-8B")         LoRA layers
    convert("maya-8b", "back", to="llava_cohere")                              for the original's code

Not Hub code. Tensors go from file to file in chunks, so memory does not grow with the checkpoint. The
result appears under its name only when it is complete.
"""

import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import GenerationConfig
from transformers.dynamic_module_utils import custom_object_save

from ..configuration_maya import MayaConfig
from ..modeling_maya import MayaForConditionalGeneration
from .config import (
    BACKWARD_RENAMINGS,
    MODEL_TYPE,
    RECORD,
    RENAMINGS,
    TOWER_PREFIX,
    check_mm_fields,
    check_model_type,
    human,
    local_tower,
    rename,
    resolve_vision_config,
    spare_row,
    text_config,
    to_llava_cohere,
    to_maya,
    tokenizer_files,
)
from .loading import check_checkpoint, llava_cohere_shapes, native_shapes
from .tensors import (
    CHUNK_BYTES,
    TensorRef,
    check_shapes,
    has_weights,
    max_difference,
    read_json,
    read_pickle,
    read_safetensors,
    read_weights,
    reading,
    same_bytes,
    sha256,
    stored_dtype,
    write_json,
    write_safetensors,
)

# What the model does not compute with, kept beside it so that the way back is bit-equal.
UNUSED_TOWER = "unused_tower.safetensors"
PARTIAL_CONFIG = "config.json.partial"
MAX_SHARD_SIZE = "5GB"
FLOATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What is fetched of a repository: weights, settings, tokenizer; no code.
PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.bin"]
NOT_WEIGHTS = [
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "*global_step*",
    "trainer_state.json",
]


@dataclass
class Plan:
    """Everything that will be written, decided and checked before the first byte is."""

    kind: str
    tensors: dict[str, TensorRef]  # under the names they will have
    config: dict[str, Any]
    record: dict[str, Any]
    side: dict[str, TensorRef] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)
    finish: Callable[[Path], None] = lambda folder: None  # writes all small files but config.json

    def note(self, text: str) -> None:
        self.notes.append(text)


def convert(
    source: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    base_model: str | os.PathLike | None = None,
    vision_tower: str | os.PathLike | None = None,
    tower_source: str = "checkpoint",
    to: str = "maya",
    dry_run: bool = False,
    trust_remote_code: bool = False,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    vision_config: dict[str, Any] | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Convert a checkpoint of the original Maya into a folder that loads from the Hub, or back.

    Args:
        source: folder or Hub repository: a full `llava_cohere` checkpoint, a folder with
            `mm_projector.bin`, one with the original's LoRA files, or (with `to="llava_cohere"`) a Maya.
        output: the folder to write; it must not exist or be empty. Not needed for `dry_run`.
        base_model: the decoder's folder or repository, for projector-only and LoRA sources.
        vision_tower: the vision tower's folder or repository; default: what the config names.
        tower_source: which copy of the tower to write: the `"checkpoint"`'s own (if it has one), or
            `"hub"`, the one that the config or `vision_tower` names. Where both are at hand the largest
            difference between them is reported.
        to: `"maya"` or `"llava_cohere"`.
        dry_run: check everything and report, write nothing.
        trust_remote_code: passed on to the tokenizer's loading; nothing here sets it.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`; default: every tensor as it is stored.
        revision: of `source`, if it is a repository.
        vision_config: the tower's values, if neither its folder nor its repository can be reached.
        max_shard_size: of the written weights, as "5GB" or a number of bytes.
        log: receives the report, line by line.

    Returns the report: `kind`, `parameters`, `tensors`, `bytes`, `shards` {file: bytes}, `parts`, `notes`.

    Raises `ValueError` or an `OSError` with one line that names file and key, what was found and what
    was expected. Then nothing is left behind; a run that is killed leaves nothing that loads.
    """
    if to not in ("maya", MODEL_TYPE):
        raise ValueError(f"to: found {to!r}, expected 'maya' or {MODEL_TYPE!r}.")
    if tower_source not in ("checkpoint", "hub"):
        raise ValueError(f"tower_source: found {tower_source!r}, expected 'checkpoint' or 'hub'.")
    cast = FLOATS.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and cast not in FLOATS.values():
        raise ValueError(f"dtype: found {dtype!r}, expected one of {', '.join(FLOATS)}.")
    if output is None and not dry_run:
        raise ValueError("output: found nothing, expected the folder to write (or dry_run).")

    origin = _fetch(source, revision)
    if output is not None:
        _check_output(Path(output))
    if to == "maya":
        plan = _plan_maya(
            origin,
            base_model=base_model,
            vision_tower=None if vision_tower is None else str(vision_tower),
            tower_source=tower_source,
            vision_config=vision_config,
            trust_remote_code=trust_remote_code,
            dtype=cast,
        )
    else:
        plan = _plan_llava_cohere(
            origin, vision_tower=None if vision_tower is None else str(vision_tower)
        )
        if cast is not None:
            plan.config["torch_dtype"] = str(cast).removeprefix("torch.")
    shards = split_state_dict_into_shards_factory(
        plan.tensors,
        get_storage_size=lambda ref: ref.numel * stored_dtype(ref, cast).itemsize,
        get_storage_id=lambda ref: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    report = _report(plan, shards, cast)
    for line in _describe(plan, report, output, to, dry_run):
        log(line)
    if not dry_run:
        assert output is not None
        _write(plan, shards, Path(output), cast)
        log(f"written: {output}")
    return report


# Where things come from


@dataclass(frozen=True)
class Origin:
    """A folder on this machine, and what it was called by who asked for it."""

    folder: Path
    name: str
    commit: str | None = None


def _local(folder: Path) -> Origin:
    """A folder by its bare name (a record travels, paths do not), or the repository whose snapshot it is."""
    place = folder.resolve()
    if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
        repository = place.parent.parent.name.removeprefix("models--").replace("--", "/")
        return Origin(folder, repository, place.name)
    return Origin(folder, place.name)


def _fetch(name: str | os.PathLike, revision: str | None = None) -> Origin:
    """A folder, or the snapshot of a repository: `user/name`, or `user/name@revision`."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _local(path)
    if path.is_file():
        if path.name in ("mm_projector.bin", "config.json"):
            return _local(path.parent)
        raise ValueError(
            f"{name}: found a file, expected a folder or repository (or mm_projector.bin)."
        )
    named = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?", str(name))
    if named is None:
        raise FileNotFoundError(
            f"{name}: no such folder, and not the name of a Hub repository (user/name)."
        )
    repository, behind = named.groups()
    if None not in (revision, behind) and revision != behind:
        raise ValueError(
            f"{name}: revision: found {revision!r} beside the name, expected one revision."
        )
    revision = revision or behind
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, ignore_patterns=NOT_WEIGHTS
            )
        )
    except Exception as error:  # the Hub's client has many kinds; all of them mean it is not here
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        at = "" if revision is None else f" at revision {revision}"
        raise FileNotFoundError(
            f"{repository}: no such folder, and the repository could not be fetched{at} "
            f"({type(error).__name__}: {first})"
        ) from None
    return Origin(folder, repository, folder.name)


def _check_output(output: Path) -> None:
    if output.is_file() or output.is_symlink():
        raise FileExistsError(f"{output}: found a file, expected a folder that does not exist yet.")
    if output.is_dir() and any(output.iterdir()) and not _is_leftover(output):
        raise FileExistsError(
            f"{output}: found files in it, expected an empty folder or none: nothing is overwritten."
        )


def _is_leftover(output: Path) -> bool:
    """A run was killed in the instant between its two last renames."""
    return (output / PARTIAL_CONFIG).is_file() and not (output / "config.json").exists()


# To Maya


def _plan_maya(
    origin: Origin,
    *,
    base_model: str | os.PathLike | None,
    vision_tower: str | None,
    tower_source: str,
    vision_config: dict[str, Any] | None,
    trust_remote_code: bool,
    dtype: torch.dtype | None,
) -> Plan:
    folder = origin.folder
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MayaConfig.model_type:
        raise ValueError(
            f"{where}: model_type: found 'maya': already converted (--to {MODEL_TYPE} goes back)."
        )
    check_model_type(raw, where)
    check_mm_fields(raw, where)
    notes: list[str] = []
    text = None
    base: Origin | None = None
    tokenizer_at = folder
    settings = [folder / "config.json"]
    if (folder / "adapter_config.json").is_file():
        kind = "LoRA layers"
        stems = ("adapter_config", "adapter_model", "non_lora_trainables")
        settings += [path for path in folder.iterdir() if path.stem in stems]
        base = _base_decoder(
            base_model,
            read_json(folder / "adapter_config.json").get("base_model_name_or_path"),
            raw,
        )
        tensors = _merge_lora(folder, read_weights(base.folder, pickles=True), notes)
        tokenizer_at = folder if tokenizer_files(folder) else base.folder
        text = _base_text_config(base, raw, where)
    elif _has_any_weights(folder):
        kind = "full checkpoint"
        if base_model is not None:
            raise ValueError(
                f"base_model: found {str(base_model)!r}, but {origin.name} is a full checkpoint: leave it out."
            )
        tensors = read_weights(folder, pickles=True)
    elif (folder / "mm_projector.bin").is_file():
        kind = "projector only"
        base = _base_decoder(base_model, None, raw)
        tensors = {
            **read_weights(base.folder, pickles=True),
            **_read_projector(folder / "mm_projector.bin"),
        }
        tokenizer_at = folder if tokenizer_files(folder) else base.folder
        text = _base_text_config(base, raw, where)
    else:
        raise FileNotFoundError(
            f"{folder}: no weights: expected model.safetensors, its index, mm_projector.bin or adapter_config.json."
        )

    # The vision tower: the checkpoint's own copy and the one that its config names.
    own = {key: ref for key, ref in tensors.items() if key.startswith(TOWER_PREFIX)}
    use_named = tower_source == "hub" or not own
    named = _named_tower(vision_tower, raw, folder, required=use_named and vision_config is None)
    if use_named and named is None:
        raise FileNotFoundError(
            f"{where}: mm_vision_tower: found {vision_tower or raw.get('mm_vision_tower')!r}, which could not be "
            "read, expected a folder or repository with the vision tower's weights: name it with --vision-tower."
        )
    with reading(where):
        vision = resolve_vision_config(
            raw,
            where,
            config_folder=folder,
            override=vision_config,
            tower=str(named.folder) if named is not None else vision_tower,
        )
        rows = (text or text_config(raw, where))["vocab_size"]
    with reading(f"{tokenizer_at}: its tokenizer"):
        row = spare_row(tokenizer_files(tokenizer_at), rows, str(tokenizer_at))
    with reading(where):
        fields = to_maya(raw, where, vision_config=vision, image_token_id=row, text=text)
        fields.pop("model_type")
        config = MayaConfig(**fields)
        # A model can be built from it.
        native_shapes(config)

    difference: dict[str, Any] | None = None
    if named is not None and (use_named or _has_any_weights(named.folder)):
        other, skipped = _tower_tensors(named.folder)
        if use_named:
            notes.append(f"tower: from {named.name}; {skipped} tensors of its text half left out")
            tensors = {key: ref for key, ref in tensors.items() if key not in own} | other
        if own:
            difference = _compare_towers(own, other)
            notes.append(
                f"tower: the checkpoint's copy and {named.name}: largest difference {difference['maximum']:.3g} "
                f"({difference['where'] or 'nowhere'}), {difference['different']} of {difference['compared']} tensors differ"
            )
    derived = check_checkpoint(tensors, config, str(folder))
    if derived:
        notes.append(f"{len(derived)} computed buffers left out, such as {derived[0]}")
        tensors = {key: ref for key, ref in tensors.items() if key not in derived}
    head = _drop_tied_head(tensors, config, notes)

    expected = native_shapes(config)
    renamed = {rename(key, RENAMINGS): ref for key, ref in tensors.items()}
    live = {key: renamed[key] for key in expected if key in renamed}
    check_shapes(live, expected, str(folder))
    side = {key: ref for key, ref in tensors.items() if rename(key, RENAMINGS) not in expected}
    if side:
        notes.append(
            f"tower: {len(side)} tensors behind the feature layer and its pooling head change no output; "
            f"kept in {UNUSED_TOWER} for the way back"
        )
    config.dtype = dtype or _main_dtype(live)
    files = sorted({ref.file for ref in tensors.values()} | set(settings))
    record: dict[str, Any] = {
        "format": 1,
        "converted_from": {
            "name": origin.name,
            "commit": origin.commit,
            "kind": kind,
            "base_model": None if base is None else {"name": base.name, "commit": base.commit},
            "vision_tower": {
                "name": named.name if named is not None else raw["mm_vision_tower"],
                "commit": named.commit if named is not None else None,
                "weights": "named tower" if use_named else "checkpoint",
                "difference": difference,
            },
        },
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        "tied_head_was_stored": head,
        "original_config": raw,
        "original_generation_config": _optional_json(folder / "generation_config.json"),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }

    def finish(target: Path) -> None:
        tower_at = [] if named is None else [named.folder]
        _write_hub_files(target, config, raw, tower_at, tokenizer_at, trust_remote_code)

    return Plan(kind, live, config.to_dict(), record, side, notes, files, finish)


def _has_any_weights(folder: Path) -> bool:
    return has_weights(folder) or has_weights(folder, "pytorch_model.bin")


def _optional_json(path: Path) -> dict | None:
    return read_json(path) if path.is_file() else None


def _base_decoder(given: str | os.PathLike | None, named: str | None, raw: dict) -> Origin:
    name = given or named
    if name is None:
        raise ValueError(
            "base_model: found nothing, expected the decoder's folder or repository "
            f"(--base-model; the config says {raw.get('_name_or_path')!r})."
        )
    return _fetch(name)


def _base_text_config(base: Origin, raw: dict, where: str) -> dict[str, Any]:
    """The decoder's own config; what the projector was trained with must not contradict it."""
    base_where = str(base.folder / "config.json")
    base_raw = read_json(base.folder / "config.json")
    if base_raw.get("model_type") != "cohere":
        raise ValueError(
            f"{base_where}: model_type: found {base_raw.get('model_type')!r}, expected 'cohere'."
        )
    rope = base_raw.get("rope_parameters")
    if isinstance(rope, dict):  # saved by transformers 5
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        plain = scaling.get("rope_type", "default") == "default"
        base_raw = {
            **base_raw,
            "rope_theta": rope.get("rope_theta"),
            "rope_scaling": None if plain else scaling,
        }
    base_text, text = text_config(base_raw, base_where), text_config(raw, where)
    for name, value in base_text.items():
        if name == "use_cache" or name not in {*raw, "rope_parameters"}:
            continue
        if text[name] != value:
            raise ValueError(
                f"{base_where}: {name}: found {value!r}, expected {text[name]!r} as in {where}."
            )
    return base_text


def _read_projector(path: Path) -> dict[str, TensorRef]:
    tensors = {}
    for key, ref in read_pickle(path).items():
        if "mm_projector." not in key:
            raise ValueError(
                f"{path}: {key}: found shape {list(ref.shape)}, expected only mm_projector.* tensors."
            )
        tensors["model.mm_projector." + key.split("mm_projector.")[1]] = ref
    return tensors


def _read_some(folder: Path, stem: str) -> dict[str, TensorRef]:
    for name, read in ((f"{stem}.safetensors", read_safetensors), (f"{stem}.bin", read_pickle)):
        if (folder / name).is_file():
            return read(folder / name)
    raise FileNotFoundError(
        f"{folder}: no {stem}.safetensors or {stem}.bin, expected it beside adapter_config.json."
    )


def _merge_lora(
    folder: Path, tensors: dict[str, TensorRef], notes: list[str]
) -> dict[str, TensorRef]:
    """The base's tensors with what was trained whole put in its place and the LoRA products added."""
    where = folder / "adapter_config.json"
    settings = read_json(where)
    if settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{where}: peft_type: found {settings['peft_type']!r}, expected 'LORA'.")
    for name in ("use_dora", "fan_in_fan_out", "lora_bias"):
        if settings.get(name):
            raise ValueError(
                f"{where}: {name}: found {settings[name]!r}, expected false: this is not supported."
            )
    if settings.get("bias", "none") != "none":
        raise ValueError(f"{where}: bias: found {settings['bias']!r}, expected 'none'.")
    merged = dict(tensors)
    whole = _read_some(folder, "non_lora_trainables")
    for key, ref in whole.items():
        # peft's wrapper adds "base_model.", and "model." for the causal model inside it.
        bare = key.removeprefix("base_model.")
        bare = bare.removeprefix("model.") if bare.startswith("model.model.") else bare
        merged[bare] = ref
    if not any(key.startswith("model.mm_projector.") for key in merged):
        raise ValueError(
            f"{folder}: non_lora_trainables: no tensor of mm_projector found, expected the projector."
        )

    pairs: dict[str, dict[str, TensorRef]] = {}
    adapter = _read_some(folder, "adapter_model")
    for key, ref in adapter.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight", key)
        if not match:
            raise ValueError(
                f"{ref.file}: {key}: found shape {list(ref.shape)}, expected only lora_A and lora_B weights."
            )
        pairs.setdefault(match.group(1), {})[match.group(2)] = ref
    for module, pair in pairs.items():
        target = f"{module}.weight"
        if set(pair) != {"A", "B"}:
            found = next(iter(pair.values()))
            raise ValueError(
                f"{found.file}: {module}: found only lora_{next(iter(pair))}, expected lora_A and lora_B."
            )
        if target not in merged:
            raise ValueError(
                f"{pair['A'].file}: {module}: found LoRA weights, expected {target} in the base model."
            )
        rank, alpha = settings.get("r"), settings.get("lora_alpha")
        for pattern, value in (settings.get("rank_pattern") or {}).items():
            rank = value if re.search(rf"(^|\.)({pattern})$", module) else rank
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            alpha = value if re.search(rf"(^|\.)({pattern})$", module) else alpha
        base, (down, up) = merged[target], (pair["A"], pair["B"])
        if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
            raise ValueError(
                f"{where}: r, lora_alpha: found {rank!r}, {alpha!r}, expected a whole number and a number."
            )
        if (
            down.shape != (rank, *base.shape[1:])
            or up.shape != (*base.shape[:1], rank)
            or len(base.shape) != 2
        ):
            raise ValueError(
                f"{down.file}: {module}: found lora_A {list(down.shape)} and lora_B {list(up.shape)}, expected "
                f"[{rank}, {base.shape[-1]}] and [{base.shape[0]}, {rank}] for {target} of shape {list(base.shape)}."
            )
        scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
        merged[target] = _with_lora(base, down.load(), up.load(), scale)
    notes.append(f"LoRA: {len(pairs)} matrices merged in float32, {len(whole)} tensors taken whole")
    return merged


def _with_lora(base: TensorRef, down: torch.Tensor, up: torch.Tensor, scale: float) -> TensorRef:
    columns = base.shape[1]

    def read() -> Iterator[torch.Tensor]:
        position = 0
        for chunk in base.chunks():
            first, last = position // columns, -(-(position + chunk.numel()) // columns)
            delta = (up[first:last].float() @ down.float()).mul_(scale).reshape(-1)
            start = position - first * columns
            yield chunk.float().add_(delta[start : start + chunk.numel()]).to(base.dtype)
            position += chunk.numel()

    return TensorRef(base.key, base.file, base.dtype, base.shape, read)


def _named_tower(given: str | None, raw: dict, folder: Path, *, required: bool) -> Origin | None:
    """The tower that was given or that the config names; a repository is fetched only if it is needed."""
    name = given or raw.get("mm_vision_tower")
    if not isinstance(name, str):
        return None  # refused by name when the config is translated
    place = local_tower(name, None if given is not None else folder)
    if place is not None:
        return _local(place)
    if given is None and not required:
        return None
    return _fetch(name)


def _tower_tensors(folder: Path) -> tuple[dict[str, TensorRef], int]:
    """A SigLIP folder's vision tensors under the original's names, and how many others it has."""
    tensors = read_weights(folder, pickles=True)
    old_names = any(key.startswith("vision_model.") for key in tensors)
    found = {}
    for key, ref in tensors.items():
        if old_names != key.startswith("vision_model."):
            continue
        if not old_names and not re.match(r"(embeddings|encoder|post_layernorm|head)\.", key):
            continue
        if not key.endswith("position_ids"):
            found[TOWER_PREFIX + key.removeprefix("vision_model.")] = ref
    if not found:
        raise ValueError(f"{folder}: found no vision_model.* tensors, expected a SigLIP model.")
    return found, len(tensors) - len(found)


def _compare_towers(own: dict[str, TensorRef], other: dict[str, TensorRef]) -> dict[str, Any]:
    worst, place, different, compared = 0.0, None, 0, 0
    for key, ref in own.items():
        if key not in other:
            continue
        if other[key].shape != ref.shape:
            raise ValueError(
                f"{other[key].file}: {other[key].key}: found shape {list(other[key].shape)}, expected "
                f"{list(ref.shape)} as in {ref.file}: this is another tower than the checkpoint's."
            )
        # Cast to the checkpoint's dtype first: what is asked is whether it holds this tower, rounded.
        rounded = TensorRef(
            key,
            other[key].file,
            ref.dtype,
            ref.shape,
            functools.partial(other[key].chunks, ref.dtype),
        )
        value = max_difference(ref, rounded)
        compared += 1
        different += value > 0
        if value > worst:
            worst, place = value, key.removeprefix(TOWER_PREFIX)
    return {"maximum": worst, "where": place, "different": different, "compared": compared}


def _drop_tied_head(tensors: dict[str, TensorRef], config: MayaConfig, notes: list[str]) -> bool:
    head = tensors.get("lm_head.weight")
    if head is None or not config.tie_word_embeddings:
        return False
    if not same_bytes(head, tensors["model.embed_tokens.weight"]):
        raise ValueError(
            f"{head.file}: lm_head.weight: found values that differ from model.embed_tokens.weight, expected the same: "
            "config.json ties them (tie_word_embeddings true or absent). Set it to false to keep both."
        )
    del tensors["lm_head.weight"]
    notes.append("lm_head.weight: stored, equal to the embeddings it is tied to; not written again")
    return True


def _main_dtype(tensors: dict[str, TensorRef]) -> torch.dtype:
    sizes: dict[torch.dtype, int] = {}
    for ref in tensors.values():
        sizes[ref.dtype] = sizes.get(ref.dtype, 0) + ref.numel
    return max(sizes, key=lambda dtype: sizes[dtype])


def _write_hub_files(
    target: Path,
    config: MayaConfig,
    raw: dict,
    tower_at: list[Path],
    tokenizer_at: Path,
    trust_remote_code: bool,
) -> None:
    # The converter is no Hub code: it alone knows both packages.
    from processing_maya.processing_llava_cohere import read_processor

    assert config.image_seq_length is not None  # derived when the config was made
    with reading(f"{tokenizer_at}: its tokenizer"):
        processor = read_processor(
            raw,
            tokenizer=tokenizer_at,
            image_size=config.vision_config.image_size,
            image_seq_length=config.image_seq_length,
            num_embeddings=config.text_config.vocab_size,
            tower_folders=tower_at,
            tokenizer_kwargs={"trust_remote_code": trust_remote_code},
        )
    if processor.image_token_id != config.image_token_id:
        raise ValueError(
            f"{tokenizer_at}: {processor.image_token}: found id {processor.image_token_id}, "
            f"expected {config.image_token_id} from the tokenizer's files."
        )
    processor.save_pretrained(target)
    text = config.text_config
    # Greedy, as the original's published settings and evaluations; it stops at its end of turn.
    GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    ).save_pretrained(target)
    with torch.device("meta"):
        model = MayaForConditionalGeneration(config)
    custom_object_save(model, target, config=config)
    custom_object_save(config, target, config=config)
    config.to_json_file(target / PARTIAL_CONFIG)


# Back to the original's layout


def _plan_llava_cohere(origin: Origin, *, vision_tower: str | None) -> Plan:
    folder = origin.folder
    where = str(folder / "config.json")
    raw = read_json(folder / "config.json")
    if raw.get("model_type") == MODEL_TYPE:
        raise ValueError(
            f"{where}: model_type: found {MODEL_TYPE!r}: this is the original's layout already."
        )
    if raw.get("model_type") != MayaConfig.model_type:
        raise ValueError(f"{where}: model_type: found {raw.get('model_type')!r}, expected 'maya'.")
    with reading(where):
        config = MayaConfig.from_dict(dict(raw))
        native_shapes(config)
    record = _optional_json(folder / RECORD) or {}
    original = record.get("original_config")
    name = vision_tower or (original or {}).get("mm_vision_tower")
    if name is None:
        raise ValueError(
            f"{where}: found no conversion record that names the vision tower's repository, which the original's "
            "code needs: name it with --vision-tower."
        )
    notes: list[str] = []
    tensors = read_weights(folder, pickles=False)
    head = tensors.pop("lm_head.weight", None) if config.tie_word_embeddings else None
    expected = native_shapes(config)
    if head is not None:
        notes.append("lm_head.weight: tied, left out")
    check_shapes(tensors, expected, str(folder))
    renamed = {rename(key, BACKWARD_RENAMINGS): ref for key, ref in tensors.items()}
    if (folder / UNUSED_TOWER).is_file():
        renamed.update(read_safetensors(folder / UNUSED_TOWER))
    wanted = llava_cohere_shapes(config)
    absent = [key for key in wanted if key not in renamed]
    if absent:
        notes.append(
            f"tower: {len(absent)} tensors behind the feature layer are not there and not written; the original's "
            f"code reads its tower from {name}"
        )
    check_shapes(
        renamed, {key: shape for key, shape in wanted.items() if key in renamed}, str(folder)
    )
    ordered = {key: renamed[key] for key in wanted if key in renamed}
    if record.get("tied_head_was_stored"):
        ordered["lm_head.weight"] = ordered["model.embed_tokens.weight"]
    if (original or {}).get("mm_projector_type", "") == "linear":
        ordered = {
            key.replace("mm_projector.0.", "mm_projector."): ref for key, ref in ordered.items()
        }
    aspect = _image_aspect(folder)
    written = to_llava_cohere(config, vision_tower=name, image_aspect=aspect, original=original)
    generation = record.get("original_generation_config") or {
        "bos_token_id": config.text_config.bos_token_id,
        "eos_token_id": config.text_config.eos_token_id,
        "pad_token_id": config.text_config.pad_token_id,
    }

    def finish(target: Path) -> None:
        _copy_tokenizer(folder, target)
        write_json(target / "generation_config.json", generation)
        write_json(target / PARTIAL_CONFIG, written)

    back = {
        "format": 1,
        "converted_from": {"name": origin.name, "commit": origin.commit, "kind": "Maya"},
        # The original's config only names its tower; read from here where that name leads nowhere.
        "vision_config": config.vision_config.to_dict(),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }
    files = sorted({ref.file for ref in renamed.values()} | {folder / "config.json"})
    return Plan("Maya", ordered, written, back, {}, notes, files, finish)


def _image_aspect(folder: Path) -> str:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            settings = read_json(folder / name)
            settings = settings.get("image_processor", settings)
            return settings.get("image_aspect", "pad")
    return "pad"


def _copy_tokenizer(folder: Path, target: Path) -> None:
    """The tokenizer without `<image>`, which the original's code cuts out of the text itself."""
    token = "<image>"
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
    ):
        if not (folder / name).is_file():
            continue
        content = read_json(folder / name)
        if "added_tokens" in content:
            content["added_tokens"] = [
                entry for entry in content["added_tokens"] if entry["content"] != token
            ]
        if "added_tokens_decoder" in content:
            content["added_tokens_decoder"] = {
                index: entry
                for index, entry in content["added_tokens_decoder"].items()
                if entry["content"] != token
            }
        for list_name in ("additional_special_tokens", "extra_special_tokens"):
            if isinstance(content.get(list_name), list):
                content[list_name] = [
                    entry
                    for entry in content[list_name]
                    if (entry if isinstance(entry, str) else entry["content"]) != token
                ]
        if name == "tokenizer_config.json":
            for entry in ("auto_map", "processor_class", "image_token"):
                content.pop(entry, None)
            content["padding_side"] = "right"
        content.pop(token, None)
        write_json(target / name, content)


# What will be done, and doing it

PARTS = (
    ("embeddings", r"(model\.language_model|model)\.embed_tokens\."),
    ("decoder layers", r"(model\.language_model|model)\.(layers|norm)\."),
    ("head", r"lm_head\."),
    ("projector", r"model\.(multi_modal_projector|mm_projector)\."),
    ("vision tower", r"model\.vision_tower\."),
)


def _report(plan: Plan, shards: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    def size(tensors: dict[str, TensorRef]) -> int:
        return sum(ref.numel * stored_dtype(ref, dtype).itemsize for ref in tensors.values())

    parts = {}
    for name, pattern in PARTS:
        chosen = {key: ref for key, ref in plan.tensors.items() if re.match(pattern, key)}
        if chosen:
            dtypes = sorted(
                {str(stored_dtype(ref, dtype)).removeprefix("torch.") for ref in chosen.values()}
            )
            parts[name] = {
                "tensors": len(chosen),
                "parameters": sum(ref.numel for ref in chosen.values()),
                "bytes": size(chosen),
                "dtype": "+".join(dtypes),
            }
    if plan.side:
        parts["unused tower"] = {
            "tensors": len(plan.side),
            "parameters": sum(ref.numel for ref in plan.side.values()),
            "bytes": size(plan.side),
            "dtype": "+".join(
                sorted(
                    {
                        str(stored_dtype(ref, dtype)).removeprefix("torch.")
                        for ref in plan.side.values()
                    }
                )
            ),
        }
    return {
        "kind": plan.kind,
        "tensors": len(plan.tensors),
        "parameters": sum(ref.numel for ref in plan.tensors.values()),
        "bytes": size(plan.tensors),
        "shards": {
            name: size({key: plan.tensors[key] for key in keys})
            for name, keys in sorted(shards.filename_to_tensors.items())
        },
        "side_bytes": size(plan.side),
        # A chunk as it is read, in float32, its neighbour in a comparison, and the header's text. Pickles
        # are mapped as a whole, and what was read of them stays counted until the end.
        "memory_bytes": 6 * CHUNK_BYTES
        + sum(path.stat().st_size for path in plan.sources if path.suffix == ".bin"),
        "parts": parts,
        "notes": list(plan.notes),
        "source_bytes": sum(path.stat().st_size for path in plan.sources),
    }


def _describe(
    plan: Plan, report: dict[str, Any], output: str | os.PathLike | None, to: str, dry_run: bool
) -> Iterator[str]:
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


def _write(plan: Plan, shards: Any, output: Path, dtype: torch.dtype | None) -> None:
    """Write into a hidden folder beside `output`, without a config.json, and rename both at the end.

    Without its config.json nothing loads the folder; that name appears last, in one step.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(output)
    needed = sum(
        ref.numel * stored_dtype(ref, dtype).itemsize
        for ref in [*plan.tensors.values(), *plan.side.values()]
    )
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
                    "metadata": {"total_size": needed - _side_size(plan, dtype)},
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


def _side_size(plan: Plan, dtype: torch.dtype | None) -> int:
    return sum(ref.numel * stored_dtype(ref, dtype).itemsize for ref in plan.side.values())


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


__all__ = ["convert"]
