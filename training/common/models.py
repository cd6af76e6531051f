"""Find and check models that others made, and report each fault in one line.

    model = find_model("user/name@v1")
    check_weights(model)
    with opening(model):
        AutoModelForCausalLM.from_pretrained(model.name, **model.options)

Files are checked before transformers opens them, and pickles are never read. Only `opening` turns
exceptions of other libraries into messages, so it wraps only the loading of a model's files, never code
of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_maya.llava_cohere.headers import PROJECTOR, HeaderEntry, read_headers, read_index

from .errors import of_network
from .reading import read_json_mapping
from .revisions import REPOSITORY, is_path, split_revision
from .telling import one_line, printable

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Prefixes of safetensors dtypes that are not floating point.
WHOLE = ("I", "U", "BOOL")
# Prefixes of true/false settings in generation_config.json.
SWITCHES = ("do_", "use_", "output_", "return_dict", "remove_invalid", "renormalize")


@dataclass(frozen=True)
class Model:
    """A model's files: a folder, or a snapshot of a repository at a commit.

    name: the argument of `from_pretrained`.
    folder: where the files are; of a repository, the files fetched so far.
    revision: the commit of a repository, None for a folder.
    """

    name: str
    folder: Path
    revision: str | None = None

    @property
    def title(self) -> str:
        """Name shown to users: that of the folder or of the repository."""
        return self.folder.resolve().name if self.revision is None else self.name

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`. They never allow pickles."""
        return {} if self.revision is None else {"revision": self.revision}

    def file(self, name: str) -> Path | None:
        """Return the path of one file, downloaded if needed; None if the model does not have it."""
        if self.revision is None:
            path = self.folder / name
            return path if path.is_file() else None
        return _download(self.name, name, self.revision)

    @property
    def is_adapter(self) -> bool:
        """Whether the files are a peft adapter. Raises ValueError if they hold a full model too."""
        if self.file(ADAPTER_CONFIG) is None:
            return False
        weights = (WEIGHTS, f"{WEIGHTS}.index.json")
        if self.file(CONFIG) is None or not any(self.file(name) for name in weights):
            return True
        raise ValueError(
            f"{self} holds a full model and an adapter ({ADAPTER_CONFIG}): move one of them away"
        )

    def __str__(self) -> str:
        return printable(self.name)


def find_model(name: str, revision: str | None = None) -> Model:
    """Return the model or adapter in a folder or repository that has at least one of their configs.

    Only the config of a repository is downloaded.

    Raises:
        ValueError: if the name is a file or not a valid name, and as `split_revision`.
        FileNotFoundError: if neither the folder nor the repository exists, or it holds no model.
        OSError: if a repository cannot be reached or read.
    """
    name, revision = split_revision(name, revision)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / config).is_file() for config in (CONFIG, ADAPTER_CONFIG)):
            raise FileNotFoundError(f"{path} is not a model folder: {_instead_of_a_model(path)}")
        return Model(str(path), path)
    if path.exists():
        raise ValueError(
            f"{path}: expected the folder of a model, found a file: give the file's folder"
        )
    if is_path(name) or "/" not in name or path.parent.is_dir():
        raise FileNotFoundError(
            f"no model at {printable(name)}: expected a folder with a {CONFIG}, or a Hub repository "
            "as user/name"
        )
    if not REPOSITORY.fullmatch(name):
        raise ValueError(
            f"{name}: expected a folder, or a Hub repository as user/name, found neither"
        )
    for config in (CONFIG, ADAPTER_CONFIG):
        file = _download(name, config, revision)
        if file is not None:
            return Model(name, file.parent, file.parent.name)
    raise FileNotFoundError(
        f"{name} on the Hub holds no model: expected a {CONFIG} or {ADAPTER_CONFIG}, found neither"
    )


def _download(name: str, file: str, revision: str | None) -> Path | None:
    """Download a file of a repository to the Hub's cache; return None if the repository lacks it."""
    from huggingface_hub import errors, hf_hub_download

    at = "" if revision is None else f"@{revision}"
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{name}{at}: {file}: not in the local Hub cache, and the Hub cannot be reached "
            f"({one_line(str(error), 120)}): check the connection, or give a folder"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise OSError(
            f"{name} is gated: accept its terms on its Hub page, and log in (hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} on the Hub has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a readable Hub repository: check the name, "
            "and log in if it is private (hf auth login)"
        ) from error


def _instead_of_a_model(folder: Path) -> str:
    """Return what a folder without a config.json seems to hold, and what to give instead."""
    if folder.name == ".work" or ".work" in folder.parts[-2:-1]:
        return (
            "it holds the checkpoints of an unfinished run: continue the run, or give the "
            "folder of one of its finished stages"
        )
    entries = sorted(folder.iterdir())
    if not entries:
        return f"it has no {CONFIG}, because it is empty"
    inside = [entry.name for entry in entries if (entry / CONFIG).is_file()]
    finished = f"; give a folder in it: {', '.join(inside[:5])}" if inside else ""
    if (folder / ".work" / "manifest.json").is_file():
        return f"it is an unfinished run; the same command of maya train continues it{finished}"
    if inside:
        return f"it has no {CONFIG}{finished}"
    if any(entry.suffix in (".safetensors", ".bin", ".gguf") for entry in entries):
        return f"it has weights but no {CONFIG}: download the whole repository"
    return f"it has no {CONFIG}; expected the files that `save_pretrained` or `maya train` write"


def read_config(model: Model) -> dict[str, Any]:
    """Return a model's config.json as a mapping. Raises ValueError if it is not one."""
    file = model.file(CONFIG)
    if file is None:
        raise FileNotFoundError(f"{model}: expected a model with a {CONFIG}, found an adapter")
    return read_json_mapping(file)


# ------------------------------------------------------------------------------ weights


def check_weights(model: Model) -> dict[str, HeaderEntry]:
    """Check and return all safetensors headers of a model; weights of a repository are downloaded.

    Raises:
        ValueError, FileNotFoundError: naming file and tensor, if weights are missing, truncated,
            damaged or pickled, or have integer dtypes without a quantization_config.
    """
    if model.file(WEIGHTS) is None:
        index = model.file(f"{WEIGHTS}.index.json")
        if index is None:
            raise _no_weights(model)
        for shard in sorted(set(read_index(index).values())):
            # read_headers below reports a missing shard with the tensors it should hold.
            model.file(shard)
    headers = read_headers(model.folder)
    if read_config(model).get("quantization_config") is None:
        for name, entry in headers.items():
            if entry.dtype.startswith(WHOLE) and name.endswith((".weight", ".bias")):
                raise ValueError(
                    f"{model}: {one_line(name, 120)}: expected floating-point weights, found {entry.dtype} and "
                    f"no quantization_config in its {CONFIG}: download the model again, or give another"
                )
    return headers


def _no_weights(model: Model) -> Exception:
    if model.file(PROJECTOR) is not None:
        return ValueError(
            f"{model}: expected a whole model, found only a projector ({PROJECTOR}): join it with its bases first: "
            f"maya convert {model} OUTPUT"
        )
    if any(model.file(name) is not None for name in PICKLES):
        return ValueError(
            f"{model}: expected weights in safetensors, found only pickles ({PICKLES[0]}), which may hold "
            "code and are never read: if you trust their author, load them once with "
            "transformers' from_pretrained(..., use_safetensors=False), call save_pretrained(FOLDER), "
            "and give that folder"
        )
    found = sorted(
        path.name
        for path in model.folder.iterdir()
        if path.suffix in (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack")
    )
    others = f" (found {printable(', '.join(found[:3]))})" if found else ""
    return FileNotFoundError(
        f"{model} has a {CONFIG} but no .safetensors weights: expected {WEIGHTS} or its index{others}"
    )


@contextmanager
def opening(what: object, advice: str = "download it again, or give another") -> Iterator[None]:
    """Turn any exception that libraries raise about a model's files into a one-line ValueError.

    transformers, tokenizers, safetensors and Jinja raise many exception types for files that are damaged
    or do not belong together. A missing package, too little memory and a broken connection are not faults
    of the files; those exceptions pass unchanged.
    """
    try:
        yield
    except (ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise MemoryError(one_line(str(error))) from error
        if of_network(error):
            raise
        told = one_line(str(error), 300)
        # The message of a KeyError is only the key, so name the exception's type.
        if not isinstance(error, (ValueError, OSError)) or not told:
            told = f"{type(error).__name__}: {told}"
        raise ValueError(
            f"{one_line(str(what), 200)}: cannot be loaded: {told}: {advice}"
        ) from error


def check_generation(model: Model, rows: int) -> None:
    """Raise ValueError for values in generation_config.json that would make `generate` fail later.

    Such values are token ids outside of the `rows` embeddings, and settings that are not true or false.
    """
    file = model.file("generation_config.json")
    if file is None:
        return
    for name, value in read_json_mapping(file).items():
        several = name == "eos_token_id" and isinstance(value, list) and value
        for each in value if several else [value]:
            if each is None:
                continue
            if name.endswith("_token_id"):
                expected = f"a token id below {rows:,}"
                good = isinstance(each, int) and 0 <= each < rows and not isinstance(each, bool)
            elif name.startswith(SWITCHES):
                expected, good = "true or false", isinstance(each, bool)
            else:
                continue
            if not good:
                raise ValueError(
                    f"{file}: {name}: expected {expected}, found {one_line(repr(each), 60)}: correct it"
                )


# ------------------------------------------------------------------------------ opened


def load_network(auto: Any, model: Model, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Load a model's weights; return the network and transformers' loading report for `check_report`.

    Args:
        auto: a class such as `AutoModelForCausalLM`; `options` are passed to its `from_pretrained`.

    Raises:
        ValueError: if the files cannot be loaded.
    """
    with opening(model):
        return auto.from_pretrained(
            model.name,
            # check_report names the tensors; transformers' own error does not.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            use_safetensors=True,
            **model.options,
            **options,
        )


def check_report(
    model: Model,
    report: dict[str, Any],
    used: Callable[[str], bool] = lambda name: True,
    others: str = r"(?!)",
) -> None:
    """Raise ValueError for tensors that transformers initialized itself, and for unexpected tensors.

    Args:
        used: returns whether the network needs a tensor.
        others: a regular expression of tensor names that the files may hold although the network
            does not use them.
    """
    missing = sorted(filter(used, report["missing_keys"]))
    shapes = sorted(found for found in report["mismatched_keys"] if used(found[0]))
    foreign = sorted(key for key in report["unexpected_keys"] if not re.search(others, key))
    told = []
    if missing:
        told.append(f"{len(missing)} missing, such as {missing[0]}")
    if shapes:
        name, found, expected = shapes[0]
        told.append(
            f"{len(shapes)} of another shape, such as {name} (expected {list(expected)}, found {list(found)})"
        )
    if foreign:
        told.append(f"{len(foreign)} of another model, such as {foreign[0]}")
    if told:
        raise ValueError(
            f"{model}: its weights and its {CONFIG} do not belong together: of the tensors in its "
            f".safetensors files, {one_line('; '.join(told), 300)}: download the model again, or give another"
        )


def check_tied(model: Model, network: Any) -> None:
    """Raise ValueError if the config ties head and embeddings but the stored weights differ."""
    head, embeddings = network.get_output_embeddings(), network.get_input_embeddings()
    tied = getattr(network.config, "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embeddings.weight:
        raise ValueError(
            f"{model}: the head (lm_head.weight) and the embeddings have different values, "
            f"but its {CONFIG} ties them: set tie_word_embeddings to false to keep both"
        )


def check_fit(model: Model, config: Any, processor: Any) -> None:
    """Raise ValueError if the processor does not fit the config."""
    for name in ("image_seq_length", "image_token_id"):
        found, expected = getattr(processor, name), getattr(config, name)
        if found != expected:
            raise ValueError(
                f"{model}: {name}: its processor has {found}, its {CONFIG} {expected}: they do not "
                "belong together"
            )
    rows = config.text_config.vocab_size
    highest = max(
        processor.tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values(), default=0
    )
    if highest >= rows:
        raise ValueError(
            f"{model}: its tokenizer has token ids up to {highest}, its {CONFIG} has {rows} embeddings: they do "
            "not belong together"
        )
    check_special_tokens(model, processor.tokenizer, rows)
    size = check_pictures(model, processor.image_processor)
    if size != list(config.vision_image_size):
        raise ValueError(
            f"{model}: its processor makes images of {size} pixels, its {CONFIG} expects "
            f"{list(config.vision_image_size)}: they do not belong together"
        )


def check_special_tokens(model: Model, tokenizer: Any, rows: int) -> None:
    """Raise ValueError if the bos or eos token has no row in the `rows` embeddings."""
    for name in ("bos_token", "eos_token"):
        place = getattr(tokenizer, f"{name}_id")
        if place is not None and place >= rows:
            raise ValueError(
                f"{model}: {name}: expected a token id below {rows:,}, the number of embeddings, found "
                f"{one_line(repr(getattr(tokenizer, name)), 60)} with id {place}: correct its tokenizer_config.json"
            )


def check_pictures(model: Model, image_processor: Any) -> list[int]:
    """Process a small test image; return [height, width] in pixels. Raises ValueError on failure."""
    with opening(model):
        pixels = image_processor([Image.new("RGB", (8, 6))], return_tensors="pt")
        return list(next(iter(pixels.values())).shape[-2:])


def check_tokens(model: Model, ids: Sequence[int], network: Any) -> None:
    """Raise ValueError if token ids of a prompt have no row in the embeddings."""
    rows = len(network.get_input_embeddings().weight)
    if max(ids, default=0) >= rows:
        raise ValueError(
            f"{model}: its tokenizer produces token id {max(ids)}, but the model has {rows} embeddings: they "
            "do not belong together"
        )
