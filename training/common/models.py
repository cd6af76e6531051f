"""Models of others: where one is, what its files hold, and one line for whatever is wrong with them.

    model = find_model("user/name@v1")
    check_weights(model)
    with opening(model):
        AutoModelForCausalLM.from_pretrained(model.name, **model.options)

Nothing is opened by transformers before its files were looked at, and no pickle is read. Only
`opening` turns other people's exceptions into messages, so it stands around the loading of their
files and around nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_maya.llava_cohere.headers import HeaderEntry, read_headers, read_index

from .errors import of_network
from .reading import read_json_mapping
from .revisions import REPOSITORY, is_path, split_revision
from .telling import one_line, printable

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Beginnings of the dtypes of safetensors that are no floating-point numbers.
WHOLE = ("I", "U", "BOOL")
# Beginnings of switches in generation_config.json.
SWITCHES = ("do_", "use_", "output_", "return_dict", "remove_invalid", "renormalize")


@dataclass(frozen=True)
class Model:
    """A model's files: a folder, or a snapshot of a repository at a commit.

    name: what `from_pretrained` takes. folder: where its files are, as far as they were fetched.
    revision: the commit of a repository, None for a folder.
    """

    name: str
    folder: Path
    revision: str | None = None

    @property
    def title(self) -> str:
        """What people call it: the folder's name, or the repository's."""
        return self.folder.resolve().name if self.revision is None else self.name

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` takes beside the name; pickles are never read."""
        return {} if self.revision is None else {"revision": self.revision}

    def file(self, name: str) -> Path | None:
        """The path of one file, downloaded where it must be; None where the model has none."""
        if self.revision is None:
            path = self.folder / name
            return path if path.is_file() else None
        return _download(self.name, name, self.revision)

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter of peft and no model. Raises ValueError where it holds both."""
        if self.file(ADAPTER_CONFIG) is None:
            return False
        weights = (WEIGHTS, f"{WEIGHTS}.index.json")
        if self.file(CONFIG) is None or not any(self.file(name) for name in weights):
            return True
        raise ValueError(
            f"{self} holds a whole model and an adapter ({ADAPTER_CONFIG}): move one of them away"
        )

    def __str__(self) -> str:
        return printable(self.name)


def find_model(name: str, revision: str | None = None) -> Model:
    """The model, or adapter, of a folder or repository: it has at least one of their configs.

    Of a repository only the config is downloaded.

    Raises:
        ValueError: for a file, for a name that is none, and as `split_revision`.
        FileNotFoundError: where there is no folder and no repository, or one that holds no model.
        OSError: for a repository that cannot be reached or read.
    """
    name, revision = split_revision(name, revision)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / config).is_file() for config in (CONFIG, ADAPTER_CONFIG)):
            raise FileNotFoundError(f"{path} is not a model folder: {_instead_of_a_model(path)}")
        return Model(str(path), path)
    if path.exists():
        raise ValueError(f"{path}: expected the folder of a model, found a file: give its folder")
    if is_path(name) or "/" not in name or path.parent.is_dir():
        raise FileNotFoundError(
            f"no model at {printable(name)}: expected a folder with a {CONFIG}, or a repository of "
            "the Hub as user/name"
        )
    if not REPOSITORY.fullmatch(name):
        raise ValueError(
            f"{name}: expected a folder, or a repository of the Hub as user/name, found neither"
        )
    for config in (CONFIG, ADAPTER_CONFIG):
        file = _download(name, config, revision)
        if file is not None:
            return Model(name, file.parent, file.parent.name)
    raise FileNotFoundError(
        f"{name} on the Hub holds no model: expected a {CONFIG} or {ADAPTER_CONFIG}, found neither"
    )


def _download(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a repository in the Hub's cache; None where the repository has none of that name."""
    from huggingface_hub import errors, hf_hub_download

    at = "" if revision is None else f"@{revision}"
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{name}{at}: {file}: not in the Hub's cache here, and the Hub cannot be reached "
            f"({one_line(str(error), 120)}): check the connection, or give a folder"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise OSError(
            f"{name} is gated: accept its terms on its page of the Hub, and log in (hf auth login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} on the Hub has no revision {revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a folder nor a Hub repository that can be read: check the name, "
            "and log in where it is private (hf auth login)"
        ) from error


def _instead_of_a_model(folder: Path) -> str:
    """What a folder without a config.json seems to be, and what to give instead."""
    if folder.name == ".work" or ".work" in folder.parts[-2:-1]:
        return (
            "it holds the checkpoints of a run that is not finished: continue the run, or give the "
            "folder of one of its finished stages"
        )
    entries = sorted(folder.iterdir())
    if not entries:
        return f"it has no {CONFIG}, and nothing else: it is empty"
    inside = [entry.name for entry in entries if (entry / CONFIG).is_file()]
    finished = f"; give a folder in it: {', '.join(inside[:5])}" if inside else ""
    if (folder / ".work" / "manifest.json").is_file():
        return f"it is a run that is not finished; the same command of maya train continues it{finished}"
    if inside:
        return f"it has no {CONFIG}{finished}"
    if any(entry.suffix in (".safetensors", ".bin", ".gguf") for entry in entries):
        return f"it has weights but no {CONFIG}: download the whole repository"
    return f"it has no {CONFIG}; expected what `save_pretrained` or `maya train` writes"


def read_config(model: Model) -> dict[str, Any]:
    """A model's config.json as a mapping. Raises ValueError for what is none."""
    file = model.file(CONFIG)
    if file is None:
        raise FileNotFoundError(f"{model} holds an adapter: expected a model with a {CONFIG}")
    return read_json_mapping(file)


# ------------------------------------------------------------------------------ weights


def check_weights(model: Model) -> dict[str, HeaderEntry]:
    """The headers of a model's weights, every one checked; weights of a repository are downloaded.

    Raises ValueError or FileNotFoundError, naming file and tensor, for weights that are missing, cut
    short, damaged or pickled, and for whole numbers that no quantization_config explains.
    """
    if model.file(WEIGHTS) is None:
        index = model.file(f"{WEIGHTS}.index.json")
        if index is None:
            raise _no_weights(model)
        for shard in sorted(set(read_index(index).values())):
            # A missing shard is told, with what it should hold, by the reader below.
            model.file(shard)
    headers = read_headers(model.folder)
    if read_config(model).get("quantization_config") is None:
        for name, entry in headers.items():
            if entry.dtype.startswith(WHOLE) and name.endswith((".weight", ".bias")):
                raise ValueError(
                    f"{model}: {one_line(name, 120)}: expected floating-point weights, found {entry.dtype}, and "
                    f"no quantization_config in its {CONFIG}: download it again, or give another"
                )
    return headers


def _no_weights(model: Model) -> Exception:
    if any(model.file(name) is not None for name in PICKLES):
        return ValueError(
            f"{model}: expected weights in safetensors, found only pickles ({PICKLES[0]}), which are "
            "not read, as they may hold code: if you trust their author, load them once with "
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
    """Tell whatever the libraries raise about a model's files in one line, as ValueError.

    transformers, tokenizers, safetensors and Jinja raise nearly anything for files that are damaged
    or do not belong together. A missing package, too little memory and a broken connection are no
    fault of the files and pass.
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
        # "'weight_map'" alone says nothing.
        if not isinstance(error, (ValueError, OSError)) or not told:
            told = f"{type(error).__name__}: {told}"
        raise ValueError(
            f"{one_line(str(what), 200)}: cannot be loaded: {told}: {advice}"
        ) from error


def check_generation(model: Model, rows: int) -> None:
    """Raise ValueError for values in generation_config.json that `generate` would fail on later.

    These are token ids that the `rows` embeddings do not have, and switches that are none.
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
    """The network in a model's weights, and transformers' report of what it found, for `check_report`.

    `auto` is a class such as `AutoModelForCausalLM`; `options` go to its `from_pretrained`. Raises
    ValueError for files that cannot be loaded.
    """
    with opening(model):
        return auto.from_pretrained(
            model.name,
            # Reported, instead of an error that names no tensor.
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
    """Raise ValueError for tensors that transformers made up, and for tensors of another model.

    Args:
        used: whether a tensor of the network is needed. others: a regular expression of tensors that
            may be in the files though no part of the network takes them.
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
            f"{len(shapes)} of another shape, such as {name} (found {list(found)}, expected {list(expected)})"
        )
    if foreign:
        told.append(f"{len(foreign)} of another model, such as {foreign[0]}")
    if told:
        raise ValueError(
            f"{model}: its weights and its {CONFIG} do not belong together: of the tensors in its "
            f".safetensors files, {one_line('; '.join(told), 300)}: download it again, or give another"
        )


def check_tied(model: Model, network: Any) -> None:
    """Raise ValueError for a head and embeddings that the config ties and the weights keep apart."""
    head, embeddings = network.get_output_embeddings(), network.get_input_embeddings()
    tied = getattr(network.config, "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embeddings.weight:
        raise ValueError(
            f"{model}: the head (lm_head.weight) and the embeddings are stored with different values, "
            f"but its {CONFIG} ties them: set tie_word_embeddings to false to keep both"
        )


def check_fit(model: Model, config: Any, processor: Any) -> None:
    """Raise ValueError for a processor of another Maya than the config's."""
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
            f"{model}: its tokenizer has tokens up to {highest}, its {CONFIG} {rows} embeddings: they do "
            "not belong together"
        )
    check_special_tokens(model, processor.tokenizer, rows)
    size = check_pictures(model, processor.image_processor)
    if size != list(config.vision_image_size):
        raise ValueError(
            f"{model}: its processor makes pictures of {size} pixels, its {CONFIG} takes "
            f"{list(config.vision_image_size)}: they do not belong together"
        )


def check_special_tokens(model: Model, tokenizer: Any, rows: int) -> None:
    """Raise ValueError for a token of beginning or end that the `rows` embeddings do not have."""
    for name in ("bos_token", "eos_token"):
        place = getattr(tokenizer, f"{name}_id")
        if place is not None and place >= rows:
            raise ValueError(
                f"{model}: {name}: expected a token below {rows:,}, the number of embeddings, found "
                f"{one_line(repr(getattr(tokenizer, name)), 60)} with id {place}: correct its tokenizer_config.json"
            )


def check_pictures(model: Model, image_processor: Any) -> list[int]:
    """The last two sizes of what is made of a picture. Raises ValueError where nothing can be."""
    with opening(model):
        pixels = image_processor([Image.new("RGB", (8, 6))], return_tensors="pt")
        return list(next(iter(pixels.values())).shape[-2:])


def check_tokens(model: Model, ids: Sequence[int], network: Any) -> None:
    """Raise ValueError for ids of a prompt that the embeddings do not have."""
    rows = len(network.get_input_embeddings().weight)
    if max(ids, default=0) >= rows:
        raise ValueError(
            f"{model}: its tokenizer writes the token {max(ids)}, but the model has {rows} embeddings: they "
            "do not belong together"
        )
