"""`maya publish`: check a folder, write its card, push it, and look whether it arrived."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from .cards import licence_texts, model_card, write_card
from .content import Content
from .dataset_cards import write_dataset_card
from .publish_dataset import check_configs, check_files, push_dataset, tree

# What belongs to a published model: all of it at the top of the folder.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "*.py",
    "README.md",
    "LICENSE*",
    "recipe.yaml",
    "results.json",
    "sheet.png",
    "training_log.json",
)
DATASET_FILES = ("*.parquet", "*.md", "*.json", "*.txt", "*.png", "LICENSE*", ".gitattributes")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.h5")


def publish(
    folder: str | Path,
    repo_id: str,
    kind: Literal["model", "dataset"] = "model",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    include: Sequence[str] = (),
    tag: str | None = None,
) -> str:
    """Push a model or dataset folder to the Hub and return its address.

    The folder must load before anything is sent. A card is written if there is none, and written
    anew if this package wrote the one there is. Readers see one commit that holds everything;
    weights and code, or data files, of an earlier push that this one does not have are removed in
    it. What arrived is compared with what was sent, by size and hash. A dataset goes to a branch
    first, is loaded from there, and is tagged at the end (publish_dataset.py).

    Args:
        folder: as `maya train` or `maya data` writes it.
        repo_id: `user/name`; created if it does not exist.
        kind: "model" or "dataset".
        private: only for a repository that is created.
        revision: the branch to push to, created if it does not exist; default: main.
        token: default: the one huggingface_hub finds.
        include: patterns of further files to send, such as "optimizer.safetensors" or "logs/*".
        tag: of a dataset's commit; by default it names the content.

    Raises:
        FileNotFoundError, ValueError: in one line, before anything is sent: the folder is no model
            or dataset, does not load, or `include` asks for pickles.
        OSError: in one line, what the Hub answered.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    if kind not in ("model", "dataset"):
        raise ValueError(f"kind is {kind!r}, expected 'model' or 'dataset'")
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", repo_id):
        raise ValueError(f"repo_id is {repo_id!r}, expected 'user/name'")
    validate_repo_id(repo_id)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {folder}: expected what `maya train` or `maya data` writes"
        )
    if tag is not None and kind == "model":
        raise ValueError("tag: only for datasets")
    checked: dict[str, Content] = {}
    if kind == "model":
        check_model(folder)
        _write_card(folder, repo_id)
    else:
        checked = check_files(folder)
        write_dataset_card(folder, repo_id)
        check_configs(folder)

    files, left_out = chosen_files(folder, kind, include)
    print(f"sending {len(files)} files, {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB")
    if left_out:
        print(f"left out: {', '.join(left_out)}")
    for note in _paths_of_this_machine(folder, files):
        print(f"note: {note}")
    names = [file.relative_to(folder).as_posix() for file in files]
    # What the check has hashed is held against what arrives.
    contents = {name: checked.get(name) or Content(folder / name) for name in names}
    api = HfApi(token=token)
    branch = revision or "main"
    try:
        if kind == "dataset":
            tag = push_dataset(api, folder, contents, repo_id, branch, private, tag)
            print(f"tagged {tag}")
            return _address(api.endpoint, kind, repo_id, revision)
        api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=kind, revision=branch)
        stale = [
            name
            for name in there
            if name not in contents
            and "/" not in name
            and (name.endswith((".safetensors", ".py", ".index.json")) or _is(name, PICKLES))
        ]
        operations: list[Any] = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=each.file)
            for name, each in sorted(contents.items())
        ]
        operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=f"Publish {repo_id.rsplit('/', 1)[-1]}",
            repo_type=kind,
            revision=branch,
        )
        remote = tree(api, repo_id, kind, commit.oid)
    except HfHubHTTPError as error:
        answer = error.server_message or " ".join(str(error).split())
        raise OSError(f"the Hub refused {kind} {repo_id}: {answer}") from error
    wrong = [name for name, each in contents.items() if not each.arrived(remote.get(name))]
    if wrong:
        raise OSError(
            f"{len(wrong)} of {len(contents)} files did not arrive whole, e.g. {wrong[0]}: publish again"
        )
    return _address(api.endpoint, kind, repo_id, revision)


def _address(endpoint: str, kind: str, repo_id: str, revision: str | None) -> str:
    address = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    return address if revision is None else f"{address}/tree/{revision}"


def check_model(folder: Path) -> None:
    """Load the model and the processor; FileNotFoundError or ValueError in one line if they fail."""
    from maya_vlm.training.common.models import ADAPTER_CONFIG, find_model
    from maya_vlm.training.common.reading import read_json_mapping
    from maya_vlm.training.evaluation.model import open_model

    config = folder / "config.json"
    if not config.is_file():
        adapter = (folder / ADAPTER_CONFIG).is_file()
        hint = "; it holds an adapter: maya merge makes a model of it" if adapter else ""
        raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json{hint}")
    found = read_json_mapping(config)
    if found.get("model_type") != "maya":
        raise ValueError(f"{config}: model_type is {found.get('model_type')!r}, expected 'maya'")
    for needed in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder} has no {needed}: save the processor there too")
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no .safetensors weights; pickles are not published")
    auto_map = found.get("auto_map") or {}
    if not isinstance(auto_map, dict) or not all(isinstance(n, str) for n in auto_map.values()):
        raise ValueError(f"{config}: auto_map: expected names of classes, found another value")
    modules = {name.split(".")[0] for name in auto_map.values()}
    missing = sorted(
        f"{name}.py"
        for name in modules | {"processing_maya", "image_processing_maya"}
        if not (folder / f"{name}.py").is_file()
    )
    if not modules or missing:
        raise ValueError(
            f"{folder} lacks its code ({', '.join(missing) or 'no auto_map in config.json'}): save it "
            f"with save_pretrained of this package's classes"
        )
    try:
        open_model(find_model(str(folder)), dtype="auto")
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} does not load: {error}") from error


def chosen_files(
    folder: Path, kind: str, include: Sequence[str] = ()
) -> tuple[list[Path], list[str]]:
    """The files to send, and the names of what is left out (a folder counts as one).

    Raises ValueError where `include` asks for pickles or finds nothing.
    """
    everything = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    chosen, left_out = [], []
    for pattern in include:
        found = [path for path in everything if _is(path.relative_to(folder).as_posix(), [pattern])]
        if not found:
            raise ValueError(f"include: {pattern!r} matches nothing in {folder}")
    for path in everything:
        name = path.relative_to(folder).as_posix()
        asked = _is(name, include)
        if asked and _is(name, PICKLES):
            raise ValueError(f"include: {name} is a pickle, and those are not published")
        hidden = any(part.startswith(".") for part in name.split("/")) and name != ".gitattributes"
        if kind == "model":
            belongs = "/" not in name and _is(name, MODEL_FILES) and not _is(name, ["optimizer*"])
        else:
            belongs = not hidden and _is(name, DATASET_FILES)
        if asked or belongs:
            chosen.append(path)
        else:
            left_out.append(name.split("/")[0] + "/" if "/" in name else name)
    return chosen, sorted(set(left_out))


def _is(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, p) or fnmatch(name.rsplit("/", 1)[-1], p) for p in patterns)


def _write_card(folder: Path, repo_id: str) -> None:
    """Write the card, and the licence texts that it names."""
    if write_card(folder, lambda: model_card(folder, repo_id)):
        licences = licence_texts(folder)
        if licences is not None:
            (folder / "LICENSES.md").write_text(licences, encoding="utf-8")


def _paths_of_this_machine(folder: Path, files: Sequence[Path]) -> list[str]:
    """Files that name a path of the user's home or of the folder: worth a look before it is public."""
    places = {str(Path.home()), str(folder.resolve().parent)} - {"/"}
    notes = []
    for file in files:
        if file.suffix in (".json", ".yaml", ".md") and file.stat().st_size < 2**20:
            text = file.read_text(encoding="utf-8", errors="replace")
            notes += [
                f"{file.name} names {place}, a path of this machine"
                for place in sorted(places)
                if place + "/" in text
            ]
    return notes
