"""`maya publish`: check a folder, write its card, push it, and check the pushed files."""

import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from maya_vlm.training.common.reading import read_text
from maya_vlm.training.common.telling import one_line, printable

from ..cards.dataset import dataset_card, read_manifest, write_dataset_card
from ..cards.model import base_models, licence_texts, model_card, write_card
from .leaderboards import PREFIX, leaderboard_files
from .projector import joined_answer, write_projector
from .publish_dataset import check_configs, check_files, push_dataset
from .recipe_copy import published_recipe
from .remote import (
    Content,
    check_arrived,
    has_card_of_its_owner,
    licence_of,
    open_repository,
)
from .renew import CODE
from .try_out import answer

# The files of a published model, all at the top of the folder.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "adapter_config.json",
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
    "merge.json",
)
DATASET_FILES = ("*.parquet", "*.md", "*.json", "*.txt", "*.png", "LICENSE*", ".gitattributes")
# Files that the owner may have written on the Hub.
OWNERS = ("README.md", "LICENSE*")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.h5")


def publish(
    folder: str | Path,
    repo_id: str,
    kind: Literal["model", "dataset"] = "model",
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    tag: str | None = None,
    overwrite_card: bool = False,
    message: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    verify: bool = True,
    trust_remote_code: bool = False,
    licence: str | None = None,
    only: Literal["projector"] | None = None,
    base_model: str | None = None,
    vision_tower: str | None = None,
) -> str:
    """Push a folder of a model, an adapter or a dataset to the Hub, and return its address.

    The folder must load before anything is sent. A model also answers a question in a fresh process, once
    before the push and once from the pushed commit; both answers must be equal. A card is written if there is
    none or if this package wrote it; a card that the owner wrote on the Hub is kept. recipe.yaml is sent
    without secrets and local paths. Readers see one commit, which also removes old weights, code and data
    files of earlier pushes. The pushed files are compared with the sent files, by size and hash.
    publish_dataset.py describes the push of a dataset.

    Args:
        folder: a folder of `maya train` or `maya data`.
        repo_id: `user/name`; created if it does not exist.
        kind: "model" or "dataset".
        private: create the repository as private; an existing one must be private.
        revision: the branch to push to, created if it does not exist; default: main.
        token: default: the token that huggingface_hub finds.
        tag: tag of a dataset's commit; default: a tag with a hash of the content.
        overwrite_card: also replace a card that the owner wrote on the Hub. In a terminal the user is asked.
        message: message of a model's commit.
        create_pr: send a model as a pull request.
        dry_run: check everything, print the files and the card that would be sent, and send nothing.
        verify: make a model answer before and after the push.
        trust_remote_code: run the model's own code for these answers instead of the installed classes.
        licence: the Hub's id of a model's licence, such as apache-2.0, if its bases do not determine it.
        only: "projector" sends a model without its decoder and tower, which must equal those of its bases, bit
            for bit; see projector.py.
        base_model, vision_tower: repositories of these bases; default: those that the folder's recipe names.

    Raises:
        FileNotFoundError: the folder or a required file is missing; nothing was sent.
        ValueError: the folder does not load or contains a link out of it, an argument is wrong, or the
            repository is public but should be private; nothing was sent.
        OSError: the Hub refused, or the pushed files or answers differ.
    """
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
    only_models = {
        "create_pr": create_pr,
        "message": message,
        "licence": licence,
        "only": only,
        "base_model": base_model,
        "vision_tower": vision_tower,
    }
    if kind == "dataset" and any(only_models.values()):
        raise ValueError(
            f"{next(name for name, each in only_models.items() if each)}: only for models"
        )
    if create_pr and revision is not None:
        raise ValueError("create_pr: a pull request has a branch of its own: leave revision out")
    if only is None and (base_model or vision_tower):
        name = "base_model" if base_model else "vision_tower"
        raise ValueError(f"{name}: only with --only projector: leave it out")
    checked: dict[str, Content] = {}
    before = None
    # Check links before the card is written: no file outside the folder may be read or written.
    check_links(folder, kind)
    with tempfile.TemporaryDirectory() as scratch:
        sent = folder
        if kind == "model":
            check_model(folder)
            if only == "projector":
                sent = write_projector(folder, Path(scratch, "sent"), base_model, vision_tower)
            terms = {
                base: known for base in base_models(sent) if (known := licence_of(base, token))
            }
            # Make the card even if the owner's card is kept, to check the licence against the base models.
            whole = folder if only else None
            card = model_card(sent, repo_id, licence=licence, base_licences=terms, whole=whole)
            if verify and not trust_remote_code:
                _check_code(sent)
            if not dry_run or sent != folder:
                _write_card(sent, repo_id, licence, terms, whole)
            before = answer(str(folder), None, trust_remote_code) if verify else None
        else:
            checked = check_files(folder)
            if not dry_run:
                write_dataset_card(folder, repo_id)
            check_configs(folder)
            built = read_manifest(folder) is not None
            card = dataset_card(folder, repo_id) if built else read_text(folder / "README.md")

        files, left_out = chosen_files(sent, kind)
        if sent != folder:
            names = {file.name for file in files}
            left_out = sorted(path.name for path in folder.iterdir() if path.name not in names)
        scores: dict[str, Path] = {}
        if kind == "model" and only is None:
            scores = leaderboard_files(sent, repo_id, Path(scratch), token)
        named = {file.relative_to(sent).as_posix(): file for file in files} | scores
        size = sum(f.stat().st_size for f in named.values()) / 2**20
        print(f"{'would send' if dry_run else 'sending'} {len(named)} files, {size:.1f} MiB")
        if left_out:
            print(f"left out: {printable(', '.join(left_out))}")
        if dry_run:
            for name, file in named.items():
                print(f"  {printable(name)}  {file.stat().st_size:,} bytes")
            print("\nREADME.md:\n")
            for line in card.splitlines():
                print(f"  {printable(line)}")
            return "nowhere: nothing was sent"
        # Later compare the pushed files with the hashes of the checked files.
        found = contents_of(sent, files, Path(scratch))
        contents = {name: checked.get(name, each) for name, each in found.items()}
        contents |= {name: Content(file) for name, file in scores.items()}
        how = _Sending(private, revision, token, tag, overwrite_card, message, create_pr)
        address, commit = _send(sent, contents, repo_id, kind, how)
    if before is not None:
        after = _answer_of(repo_id, commit, trust_remote_code, token, only)
        if after != before:
            raise OSError(
                f"model {repo_id} at commit {commit}: expected the answer of {folder}, tokens {before}, found {after}: "
                "do not use this commit"
            )
        what = "pushed model" if only is None else f"pushed {only}, joined with its bases,"
        print(f"the {what} answers as {folder} does")
    return address


def _answer_of(
    repo_id: str,
    commit: str,
    trust_remote_code: bool,
    token: str | None,
    only: Literal["projector"] | None = None,
) -> list[int]:
    """Return the answer of the pushed model. Raise OSError if the model on the Hub does not answer."""
    try:
        if only is None:
            return answer(repo_id, commit, trust_remote_code, token)
        with tempfile.TemporaryDirectory() as scratch:
            return joined_answer(repo_id, commit, Path(scratch), trust_remote_code, token)
    except ValueError as error:
        raise OSError(
            f"{repo_id} at commit {commit}: it was pushed, but {error}: publish again"
        ) from None


@dataclass(frozen=True)
class _Sending:
    """Options of `_send`; see `publish`."""

    private: bool
    revision: str | None
    token: str | None
    tag: str | None
    overwrite_card: bool
    message: str | None
    create_pr: bool


def contents_of(folder: Path, files: Sequence[Path], scratch: Path) -> dict[str, Content]:
    """Return name -> content to send for a folder's files, and print notes about changed contents.

    Args:
        folder: the folder of a model or dataset.
        files: the files of the folder to send.
        scratch: a folder for recipes without secrets and local paths.
    """
    sources = {file.relative_to(folder).as_posix(): file for file in files}
    for number, name in enumerate(list(sources)):
        if name.split("/")[-1] == "recipe.yaml":
            text = published_recipe(folder / name)
            if text is not None:
                sources[name] = scratch / f"{number}.yaml"
                sources[name].write_text(text, encoding="utf-8")
                print(f"note: {printable(name)} is sent without secrets and paths of this machine")
    for note in _paths_of_this_machine(folder, sources):
        print(f"note: {printable(note)}")
    return {name: Content(path) for name, path in sources.items()}


def _send(
    folder: Path,
    contents: dict[str, Content],
    repo_id: str,
    kind: Literal["model", "dataset"],
    how: _Sending,
) -> tuple[str, str]:
    """Send files to a repository, and return its address and the commit. Errors are those of `publish`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=how.token)
    branch, commit = how.revision or "main", ""
    try:
        open_repository(api, repo_id, kind, how.private)
        heads = {ref.name for ref in api.list_repo_refs(repo_id, repo_type=kind).branches}
        # A new branch starts from main.
        base = branch if branch in heads else "main"
        card = None if how.overwrite_card or base not in heads else contents.get("README.md")
        theirs = card is not None and has_card_of_its_owner(api, repo_id, kind, base, card)
        if theirs and not _asked_to_replace(repo_id):
            print(
                "note: README.md on the Hub was written by somebody and is kept; --overwrite-card "
                "replaces it"
            )
            contents = {name: each for name, each in contents.items() if name != "README.md"}
        if kind == "dataset":
            tag = push_dataset(api, folder, contents, repo_id, branch, how.tag)
            print(f"tagged {tag}")
        else:
            message = how.message or f"Publish {repo_id.rsplit('/', 1)[-1]}"
            commit, request = push_model(api, contents, repo_id, branch, message, how.create_pr)
            if request is not None:
                return request, commit
    except HfHubHTTPError as error:
        answer = one_line(error.server_message or str(error))
        raise OSError(f"the Hub refused {kind} {repo_id}: {answer}") from error
    except RuntimeError as error:
        # huggingface_hub raises RuntimeError if the connection breaks during a large upload.
        told = one_line(f"{error} {error.__cause__ or ''}")
        raise OSError(f"sending to {kind} {repo_id} failed: {told}: publish again") from error
    address = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
    return (address if how.revision is None else f"{address}/tree/{how.revision}"), commit


def _asked_to_replace(repo_id: str) -> bool:
    """Ask in a terminal whether to replace the owner's card. Return False outside a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    found = input(f"README.md of {repo_id} was written by somebody on the Hub. Replace it? [y/N] ")
    return found.strip().lower() in ("y", "yes")


def push_model(
    api: Any,
    contents: dict[str, Content],
    repo_id: str,
    branch: str,
    message: str,
    create_pr: bool = False,
) -> tuple[str, str | None]:
    """Send the files of a model in one commit, and check the pushed files.

    The commit also removes old model files and pickles of earlier commits.

    Args:
        api: an HfApi.
        contents: name -> content.
        repo_id: `user/name`.
        branch: the branch to push to.
        message: the commit message.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        The commit, and the address of the pull request or None.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if branch != "main":
        api.create_branch(repo_id, branch=branch, repo_type="model", exist_ok=True)
    stale = [
        name
        for name in api.list_repo_files(repo_id, repo_type="model", revision=branch)
        if name not in contents
        and (
            name.startswith(PREFIX)
            or ("/" not in name and _is(name, (*MODEL_FILES, *PICKLES)) and not _is(name, OWNERS))
        )
    ]
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=each.file)
        for name, each in sorted(contents.items())
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
    commit = api.create_commit(
        repo_id,
        operations,
        commit_message=message,
        repo_type="model",
        revision=branch,
        create_pr=create_pr,
    )
    check_arrived(api, contents, repo_id, "model", commit.oid)
    return str(commit.oid), commit.pr_url


def _write_card(
    folder: Path,
    repo_id: str,
    licence: str | None = None,
    terms: Mapping[str, str] | None = None,
    whole: Path | None = None,
) -> None:
    """Write the card and the licence texts that it names."""
    if write_card(folder, lambda: model_card(folder, repo_id, None, licence, terms, whole)):
        licences = licence_texts(folder)
        if licences is not None:
            (folder / "LICENSES.md").write_text(licences, encoding="utf-8")
    else:
        stated = f", and --license {licence} is not written into it" if licence else ""
        print(f"note: README.md of the folder was not written by maya publish and is kept{stated}")


def check_model(folder: Path) -> None:
    """Load the model or adapter, and the processor.

    Raises:
        FileNotFoundError: a required file is missing.
        ValueError: a file is wrong, or the model does not load.
    """
    from maya_vlm.training.common.models import ADAPTER_CONFIG, find_model
    from maya_vlm.training.common.reading import read_json_mapping
    from maya_vlm.training.inference.load import open_model

    config = folder / "config.json"
    if not config.is_file() and (folder / ADAPTER_CONFIG).is_file():
        _check_adapter(folder)
        return
    if not config.is_file():
        raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
    found = read_json_mapping(config)
    model_type = found.get("model_type")
    if model_type != "maya":
        raise ValueError(
            f"{config}: model_type is {one_line(repr(model_type), 60)}, expected 'maya'"
        )
    for needed in ("processor_config.json", "tokenizer.json", "chat_template.jinja"):
        if not (folder / needed).is_file():
            raise FileNotFoundError(f"{folder} has no {needed}: save the processor there too")
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"{folder} has no .safetensors weights; pickles are not published")
    auto_map = found.get("auto_map") or {}
    if not isinstance(auto_map, dict) or not all(isinstance(x, str) for x in auto_map.values()):
        raise ValueError(
            f"{config}: auto_map: expected names of classes, found {one_line(repr(auto_map), 60)}"
        )
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


def _check_code(folder: Path) -> None:
    """Raise ValueError if a folder's code differs from this package's code, which would answer instead."""
    other = [code.name for code in CODE if _differs(folder / code.name, code)]
    if other:
        raise ValueError(
            f"{folder / other[0]}: expected the code of the installed package, found other code, which only "
            "--trust-remote-code runs: give it if you trust this code, or replace the code with `maya renew`"
        )


def _differs(file: Path, code: Path) -> bool:
    return file.is_file() and file.read_bytes() != code.read_bytes()


def _check_adapter(folder: Path) -> None:
    """Load an adapter with its base, which must be on the Hub. Errors are those of `check_model`."""
    from maya_vlm.training.common.adapters import find_adapter
    from maya_vlm.training.common.models import ADAPTER_CONFIG, find_model
    from maya_vlm.training.inference.load import open_model

    adapter = find_adapter(find_model(str(folder)))
    if adapter.base.revision is None:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: base_model_name_or_path: expected a repository of the Hub, found the folder "
            f"{adapter.base}: publish the base and write its name there, or publish the result of `maya merge`"
        )
    try:
        open_model(adapter, dtype="auto")
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} does not load: {error}") from error


def chosen_files(folder: Path, kind: str) -> tuple[list[Path], list[str]]:
    """Return the files to send, and the names of the files and folders that are not sent."""
    chosen, left_out = [], set()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file():
            continue
        if _belongs(name, kind):
            chosen.append(path)
        else:
            left_out.add(name.split("/")[0] + "/" if "/" in name else name)
    return chosen, sorted(left_out)


def check_links(folder: Path, kind: str) -> None:
    """Raise ValueError if the card or a file to send is a link out of the folder."""
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_symlink() or not _belongs(name, kind):
            continue
        # A loop of links resolves to itself, inside the folder; it cannot be read anyway.
        if not Path(os.path.realpath(path)).is_relative_to(root):
            raise ValueError(
                f"{path}: expected a file, found a link out of the folder: copy the file there, or "
                "remove the link"
            )


def _belongs(name: str, kind: str) -> bool:
    if kind == "model":
        return (
            "/" not in name
            and (_is(name, MODEL_FILES) or name == "LICENSES.md")
            and not _is(name, ["optimizer*"])
        )
    hidden = any(part.startswith(".") for part in name.split("/")) and name != ".gitattributes"
    return not hidden and _is(name, DATASET_FILES)


def _is(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, p) or fnmatch(name.rsplit("/", 1)[-1], p) for p in patterns)


def _paths_of_this_machine(folder: Path, sources: dict[str, Path]) -> list[str]:
    """Return notes on files that contain a path in the user's home or in the folder's parent."""
    places = {str(Path.home()), str(folder.resolve().parent)} - {"/"}
    notes = []
    for name, file in sources.items():
        if file.suffix in (".json", ".yaml", ".md") and file.stat().st_size < 2**20:
            text = file.read_text(encoding="utf-8", errors="replace")
            notes += [
                f"{name} names {place}, a path of this machine"
                for place in sorted(places)
                if place + "/" in text
            ]
    return notes
