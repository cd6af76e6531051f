"""Push a dataset to the Hub so that readers never see a part of it.

1. Compare the folder with its manifest, and load every config, both complete and streamed.
2. Push all files to a temporary branch, `publish-<hash of the files>`, in several commits. The same command
   continues an existing branch and sends the missing files.
3. Compare the files on the branch with the sent files, and load and count every config from the branch.
4. Make one commit on the target branch: it copies the files of the temporary branch by reference, and
   deletes other data files. The commit fails if somebody committed in the meantime. Tag the commit, and
   delete the temporary branch.

Readers of `main` see no change before step 4, and its commit is atomic.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet

from maya_vlm.training.common.cards import check_cards
from maya_vlm.training.common.reading import open_file
from maya_vlm.training.common.telling import one_line

from ..cards.dataset import read_manifest
from .remote import Content, check_arrived, tree

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The Hub recommends fewer than 100 files per commit.
FILES_A_COMMIT = 50
DATA_FILES = (".parquet", ".arrow", ".jsonl", ".csv", ".zip", ".tar")


def check_files(folder: Path) -> dict[str, Content]:
    """Open every parquet file, and return path in the folder -> content.

    A folder with a manifest of `maya data build` must have exactly the files and bytes of the manifest.

    Raises:
        FileNotFoundError: the folder has no parquet files.
        ValueError: a file is damaged, empty or different from the manifest.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} is not a dataset folder: it has no .parquet files")
    for file in files:
        open_file(file).close()  # rejects pipes and devices
        try:
            rows = pyarrow.parquet.read_metadata(file).num_rows
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(
                f"{file} is not a whole parquet file: {one_line(str(error))}"
            ) from error
        if rows == 0:
            raise ValueError(f"{file} has no rows: leave it out or build the dataset again")
    found = {file.relative_to(folder).as_posix(): Content(file) for file in files}
    manifest = read_manifest(folder)
    if manifest is not None:
        _check_bytes(folder, manifest, found)
    return found


def check_configs(folder: Path) -> None:
    """Check that `datasets` can read the folder by its card.

    With a manifest, every config is loaded both streamed and complete, and must have the manifest's number
    of rows. Complete configs are cached next to the folder, and the cache is deleted after each config.

    Raises:
        ValueError: `datasets` cannot read the folder, or a config has another number of rows.
    """
    from datasets import get_dataset_config_names, get_dataset_split_names

    check_cards(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        try:
            for config in get_dataset_config_names(str(folder)):
                get_dataset_split_names(str(folder), config)
        except Exception as error:  # datasets may raise anything for a wrong card
            message = one_line(str(error))
            raise ValueError(f"{folder}: datasets cannot read it: {message}") from error
        return
    for config in manifest["configs"]:
        _check_rows(manifest, str(folder), config, streaming=True)
        with tempfile.TemporaryDirectory(prefix=".check-", dir=folder.parent) as cache:
            _check_rows(manifest, str(folder), config, cache=cache)


def _check_bytes(folder: Path, manifest: dict[str, Any], found: dict[str, Content]) -> None:
    listed = manifest["files"]
    for name in sorted({*listed, *found}):
        if name not in listed or name not in found:
            what = "is not in the manifest" if name in found else "is gone"
            raise ValueError(f"{folder}: {name} {what}; run `maya data build` again")
        about = listed[name]
        if found[name].size != about["bytes"] or found[name].sha256 != about["sha256"]:
            raise ValueError(
                f"{folder}: {name} has other bytes than the manifest says; run `maya data build` again"
            )


def _check_rows(manifest: dict[str, Any], path: str, config: str, **options: Any) -> None:
    """Raise ValueError unless a config has the manifest's number of rows. `options` are `count_config`'s."""
    rows = count_config(path, config, **options)
    expected = {"train": manifest["configs"][config]["rows"]}
    if rows != expected:
        at = f" at {options['revision']}" if "revision" in options else ""
        raise ValueError(
            f"{path}{at}: config {config!r} has {rows} rows, the manifest says {expected}; run "
            "`maya data build` again, and leave the configs of README.md to it"
        )


def count_config(
    path: str,
    config: str,
    *,
    streaming: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache: str | None = None,
) -> dict[str, int]:
    """Count the rows of every split of a config by reading them, without decoding pictures.

    Args:
        path: a folder or Hub repository.
        config: name of the config.
        streaming: stream the config instead of downloading it.
        revision: branch, tag or commit of the repository.
        token: token for the Hub.
        cache: cache folder of `datasets`.

    Returns:
        Split -> number of rows.

    Raises:
        ValueError: `datasets` cannot read the config.
    """
    import datasets

    shown = datasets.utils.logging.is_progress_bar_enabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    # The raised error repeats what datasets logs about a broken file.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        found = datasets.load_dataset(
            path, config, streaming=streaming, revision=revision, token=token, cache_dir=cache
        )
        return {str(split): _rows(data) for split, data in found.items()}
    except Exception as error:  # datasets may raise anything for a wrong card or file
        message = one_line(str(error))
        raise ValueError(
            f"{path}: config {config!r}: datasets cannot read it: {message}"
        ) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()


def _rows(data: Any) -> int:
    import datasets

    if isinstance(data, datasets.Dataset):
        return len(data)
    undecoded = datasets.Image(decode=False)
    for name, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, undecoded)
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            data = data.cast_column(name, datasets.List(undecoded))
    return sum(len(table) for table in data.with_format("arrow").iter(batch_size=1000))


def push_dataset(
    api: HfApi,
    folder: Path,
    contents: dict[str, Content],
    repo_id: str,
    branch: str,
    tag: str | None = None,
) -> str:
    """Do steps 2 to 4 in an existing repository, and return the tag.

    Args:
        api: the Hub's API.
        folder: the dataset's folder.
        contents: path in the repository -> file.
        repo_id: `user/name`.
        branch: the target branch, created if it does not exist.
        tag: name of the tag; default: `build-<hash of the files>`.

    Raises:
        OSError: the pushed files differ from the sent files.
        ValueError: the pushed configs do not load or have another number of rows.
        HfHubHTTPError: the Hub refused.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    listed = [(name, (each.size, each.sha256)) for name, each in sorted(contents.items())]
    content = hashlib.sha256(repr(listed).encode()).hexdigest()[:12]
    staging, tag = f"publish-{content}", tag or f"build-{content}"
    title = f"Publish {repo_id.rsplit('/', 1)[-1]}"
    refs = api.list_repo_refs(repo_id, repo_type="dataset")
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    if left := sorted(n for n in heads if n.startswith("publish-") and n != staging):
        print(f"note: branches of other attempts, which may be deleted: {', '.join(left)}")
    if branch not in heads:
        api.create_branch(repo_id, branch=branch, repo_type="dataset", exist_ok=True)
    before = api.repo_info(repo_id, repo_type="dataset", revision=branch).sha
    if staging not in heads:
        api.create_branch(repo_id, branch=staging, repo_type="dataset", exist_ok=True)
    there = tree(api, repo_id, "dataset", staging)
    missing = [name for name, _ in listed if not contents[name].arrived(there.get(name))]
    for start in range(0, len(missing), FILES_A_COMMIT):
        part = missing[start : start + FILES_A_COMMIT]
        print(f"{staging}: {start + len(part)} of {len(missing)}")
        api.create_commit(
            repo_id,
            [CommitOperationAdd(path_in_repo=n, path_or_fileobj=contents[n].file) for n in part],
            commit_message=f"{title}, part {start // FILES_A_COMMIT + 1}",
            repo_type="dataset",
            revision=staging,
        )
    check_arrived(api, contents, repo_id, "dataset", staging)
    if (about := read_manifest(folder)) is not None:
        token = api.token if isinstance(api.token, str) else None
        for config in about["configs"]:
            _check_rows(about, repo_id, config, streaming=True, revision=staging, token=token)
    staged = api.repo_info(repo_id, repo_type="dataset", revision=staging).sha
    stale = [
        name
        for name in tree(api, repo_id, "dataset", branch)
        if name not in contents and name.endswith(DATA_FILES)
    ]
    operations: list[Any] = [
        CommitOperationCopy(src_path_in_repo=name, path_in_repo=name, src_revision=staged)
        for name, _ in listed
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
    commit = api.create_commit(
        repo_id,
        operations,
        commit_message=title,
        repo_type="dataset",
        revision=branch,
        parent_commit=before,
    )
    check_arrived(api, contents, repo_id, "dataset", commit.oid)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if tags.get(tag) not in (None, commit.oid):
        # The tag is on an older commit with the same content: move it.
        api.delete_tag(repo_id, tag=tag, repo_type="dataset")
    manifest = contents.get("manifest.json")
    api.create_tag(
        repo_id,
        tag=tag,
        tag_message=f"manifest.json {manifest.sha256}" if manifest else "no manifest",
        revision=commit.oid,
        repo_type="dataset",
        exist_ok=True,
    )
    api.delete_branch(repo_id, branch=staging, repo_type="dataset")
    return tag
