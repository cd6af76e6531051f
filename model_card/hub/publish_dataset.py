"""Push a dataset to the Hub so that readers never see half of it.

1. The folder is compared with its manifest, and every config is loaded, whole and streamed.
2. All files are pushed to a branch of its own, `publish-<hash of the files>`, some in each commit. The
   same command continues such a branch, and sends the missing files.
3. The files of the branch are compared with those that were sent, and every config is loaded from the
   branch and counted.
4. One commit on the target copies the files of the branch by reference, and deletes data files that are
   not among them. The commit fails if somebody has committed in the meantime. Then it is tagged, and
   the branch is deleted.

Readers of `main` see nothing before step 4; that commit is whole or absent.
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

# The Hub's advice is fewer than 100 files a commit.
FILES_A_COMMIT = 50
DATA_FILES = (".parquet", ".arrow", ".jsonl", ".csv", ".zip", ".tar")


def check_files(folder: Path) -> dict[str, Content]:
    """Open every parquet file, and return path in the folder -> content.

    A folder with a manifest of `maya data build` must have exactly the files and bytes of the manifest.

    Raises:
        FileNotFoundError, ValueError: one line.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} is not a dataset folder: it has no .parquet files")
    for file in files:
        open_file(file).close()  # a pipe or a device is no table
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
    """Have `datasets` read the folder by its card. Raises ValueError, in one line.

    With a manifest, every config is loaded, streamed and whole, and must have the manifest's number of
    rows. Whole configs are cached beside the folder, and the cache is deleted after each config.
    """
    from datasets import get_dataset_config_names, get_dataset_split_names

    check_cards(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        try:
            for config in get_dataset_config_names(str(folder)):
                get_dataset_split_names(str(folder), config)
        except Exception as error:  # whatever datasets finds wrong with the card
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
    """Raise ValueError unless a config has the manifest's rows. For the arguments see `count_config`."""
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

    Raises ValueError, in one line, if `datasets` cannot read the config.
    """
    import datasets

    shown = datasets.utils.logging.is_progress_bar_enabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    # The error says what datasets logs about a broken file.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        found = datasets.load_dataset(
            path, config, streaming=streaming, revision=revision, token=token, cache_dir=cache
        )
        return {str(split): _rows(data) for split, data in found.items()}
    except Exception as error:  # whatever datasets finds wrong with the card or the files
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
        contents: path in the repository -> file.
        branch: for readers; created if it does not exist.
        tag: its name; default: `build-<hash of the files>`.

    Raises:
        OSError: one line: files did not arrive whole.
        ValueError: the pushed files do not load as they should.
        HfHubHTTPError: the Hub's answer.
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
        # The same content was published before, and other content in between.
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
