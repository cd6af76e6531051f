"""Manifest of a run: the recipe and the content of its inputs, compared when the run continues.

Paths are not compared: the same command from another directory, or with moved data, is the same run. A
changed file, or a changed value that affects the result, makes it a different run.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..common.files import write_json
from ..common.reading import read_json_mapping
from ..common.revisions import split_revision
from ..common.schema import to_dict, without_defaults
from ..common.secrets import without_secrets
from ..common.telling import one_line
from ..recipe import TEMPLATES, DataRecipe, Recipe, StageRecipe, template_owners
from .checkpoints import PREFIX

WORK = ".work"
MANIFEST = "manifest.json"
# Files larger than SAMPLES * SAMPLE bytes are hashed in SAMPLES evenly spaced pieces.
SAMPLES, SAMPLE = 1024, 1 << 16
# Arguments (by the start of their name) that do not affect the trained weights.
NEUTRAL_ARGS = (
    "logging_",
    "log_",
    "report_to",
    "run_name",
    "save_",
    "dataloader_",
    "disable_tqdm",
    "push_to_hub",
    "hub_",
    "project",
    "trackio_",
)
# Arguments that decide which checkpoints exist, and so which one can be the best.
OF_THE_BEST = ("save_steps", "save_strategy")
# Content of a Hub repository whose commit is unknown.
REPOSITORY = "repository"


def make_manifest(recipe: Recipe, known: dict[str, str] | None = None) -> dict[str, Any]:
    """Return everything that affects the result of a run.

    Args:
        recipe: the run's recipe.
        known: path -> hash, from earlier calls; this call adds its hashes.

    Returns:
        `recipe`: the recipe's values without neutral values and secrets; `content`: path of an input -> hash.
    """
    values = without_secrets(to_dict(recipe))
    values.pop("output_dir")
    values.pop("processes")
    for stage in values["stages"]:
        args = stage["args"]
        best = args.get("load_best_model_at_end") or args.get("save_strategy") == "best"
        stage["args"] = {
            k: v
            for k, v in args.items()
            if not k.startswith(NEUTRAL_ARGS) or (best and k in OF_THE_BEST)
        }
        sources = [*stage["data"], *stage["eval_data"]]
        if not any(source["streaming"] for source in sources):
            del stage["shuffle_buffer"]
        for source in sources:
            if not source["streaming"]:
                del source["streaming"]
    content: dict[str, str] = {}

    def add(name: str, hashed: Callable[[], str]) -> None:
        found = {} if known is None else known
        if name not in found:
            found[name] = hashed()
        content[name] = found[name]

    model = recipe.model
    for path in (model.vision_tower, model.language_model, model.checkpoint):
        if path is not None and is_local(path):
            add(path, partial(_content, Path(path)))
        elif path is not None:
            add(path, partial(_model_repository, path, model.revision))
    for source in _sources(recipe):
        if is_local(source.path):
            add(source.path, partial(_content, Path(source.path)))
        else:
            add(input_name(source.path, source.revision), partial(_dataset_repository, source))
        if source.image_folder is not None and Path(source.image_folder).is_file():
            add(source.image_folder, partial(_content, Path(source.image_folder)))
    for _, owner in template_owners(recipe):
        template = owner.chat_template
        if template is not None and template not in TEMPLATES:
            add(template, partial(_content, Path(template)))
    return {"recipe": values, "content": content}


def _sources(recipe: Recipe) -> Iterator[DataRecipe]:
    for stage in recipe.stages:
        yield from (*stage.data, *stage.eval_data)


def is_local(path: str) -> bool:
    """Return whether a recipe's path is a local path, as opposed to the name of a Hub repository."""
    return Path(path).exists() or path.startswith((".", "/"))


def _content(path: Path) -> str:
    """Return a hash of a file or folder, or REPOSITORY if it does not exist.

    Reading large files would delay every start, so only their size and evenly spaced pieces are hashed. A
    change between these pieces is not detected.
    """
    if not path.exists():
        return REPOSITORY
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    total = sha256()
    large = sum(file.stat().st_size > SAMPLES * SAMPLE for file in files)
    pieces = max(2, SAMPLES // max(large, 1))
    for file in files:
        size = file.stat().st_size
        total.update(f"{file.name}:{size}:".encode(errors="surrogateescape"))
        if file.suffix in (".md", ".lock"):
            continue
        if size <= SAMPLES * SAMPLE:
            total.update(sha256(file.read_bytes()).digest())
            continue
        with file.open("rb") as opened:
            for i in range(pieces):
                opened.seek(i * (size - SAMPLE) // (pieces - 1))
                total.update(opened.read(SAMPLE))
    return total.hexdigest()[:16]


# ------------------------------------------------------------------------------ the Hub


def input_name(path: str, revision: str | None) -> str:
    """Return the key of a Hub dataset in a manifest's content."""
    return f"{path}@{revision}" if revision else path


def _commit(content: dict[str, Any], path: str, revision: str | None) -> str:
    """Return the commit of a Hub dataset in a manifest's content, or "" if it is unknown."""
    return str(content.get(input_name(path, revision), "")).partition("@")[2]


def _dataset_repository(source: DataRecipe) -> str:
    """Return the commit of a Hub dataset as `repository@COMMIT`, or `repository` if the Hub does not answer."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(source.path, revision=source.revision, timeout=10).sha
    except Exception:  # offline or a wrong name: the reader of the data reports it
        return REPOSITORY
    return f"{REPOSITORY}@{found}" if found else REPOSITORY


def _model_repository(path: str, revision: str | None = None) -> str:
    """Return a hash of the names and hashes of a Hub model's files, as `repository@HASH`."""
    from huggingface_hub import HfApi

    try:
        name, revision = split_revision(path, revision)
        found = HfApi().model_info(name, revision=revision, files_metadata=True, timeout=10)
        files = found.siblings or []
    except Exception:  # offline or a wrong name: loading the model reports it
        return REPOSITORY
    names = [
        f"{f.rfilename}:{f.lfs.sha256 if f.lfs else f.blob_id}"
        for f in files
        if not f.rfilename.endswith((".md", ".gitattributes"))
    ]
    return f"{REPOSITORY}@{sha256(chr(10).join(sorted(names)).encode()).hexdigest()[:16]}"


def pin(recipe: Recipe, manifest: dict[str, Any]) -> None:
    """Set the revisions of the recipe's Hub datasets to the commits in the manifest."""
    for source in _sources(recipe):
        commit = _commit(manifest["content"], source.path, source.revision)
        if commit and not is_local(source.path):
            source.revision = commit


# ------------------------------------------------------------------------------ comparison


def check_manifest(output: Path, manifest: dict[str, Any]) -> bool:
    """Check that `output` is new or belongs to the same run.

    Args:
        output: the output folder.
        manifest: the manifest of the current command.

    Returns:
        False if a different recipe (perhaps a mistyped one) was started in `output` but saved no work, so
        that its files can be removed; else True.

    Raises:
        ValueError: `output` contains work of a different recipe, or other files.
    """
    path = output / WORK / MANIFEST
    if not path.is_file():
        if (output / "config.json").exists() or (output.exists() and not output.is_dir()):
            raise ValueError(
                f"output_dir {output}: expected a run of maya train, found other files: "
                "use another output_dir"
            )
        return True
    changed = _difference(read_manifest(output), manifest)
    if changed is None:
        return True
    if has_work(output):
        raise ValueError(
            f"output_dir {output} holds the work of another recipe ({changed}): "
            "use another output_dir, or use --restart to discard that work"
        )
    return False


def has_work(output: Path) -> bool:
    """Return whether the run in `output` has saved any checkpoint (even a damaged one) or finished a stage."""
    return any(
        next(output.glob(pattern), None) is not None
        for pattern in (f"{WORK}/*/{PREFIX}*", "*/config.json", "config.json")
    )


def check_stage_inputs(output: Path, stage: StageRecipe) -> None:
    """Raise ValueError if a stage's data changed since the start of the run in `output`."""
    content = read_manifest(output)["content"]
    for source in (*stage.data, *stage.eval_data):
        if is_local(source.path) and content.get(source.path) != _content(Path(source.path)):
            raise ValueError(
                f"stage {stage.name}: the files of {one_line(source.path)} have changed since the run "
                "began: put them back, or use another output_dir"
            )


def read_manifest(output: Path) -> dict[str, Any]:
    """Read the manifest of the run in `output`. Raise ValueError, in one line, if it is damaged."""
    path = output / WORK / MANIFEST
    try:
        found = read_json_mapping(path)
        if isinstance(found["recipe"]["stages"], list) and isinstance(found["content"], dict):
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{path} is damaged: use another output_dir, or use --restart to discard the work in {output}"
    )


def write_manifest(output: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of the run in `output`. Commits in an earlier manifest are kept."""
    content = dict(manifest["content"])
    if (output / WORK / MANIFEST).is_file():
        old = read_manifest(output)["content"]
        for path, value in content.items():
            if value.startswith(REPOSITORY) and "@" in str(old.get(path, "")):
                content[path] = old[path]
    write_json(output / WORK / MANIFEST, {**manifest, "content": content})


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return a description of the first difference between two manifests, or None if the run is the same."""
    # An earlier version also wrote default values and secrets: leave them out.
    before, after = (
        without_defaults(Recipe, without_secrets(manifest["recipe"])) for manifest in (old, new)
    )
    return _compare(before, after, "", (old["content"], new["content"]))


_MISSING: Any = object()


def _compare(
    old: Any, new: Any, key: str, contents: Sequence[dict[str, Any]], source: Any = None
) -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        if "path" in {*old, *new}:
            source = old, new
        for name in [*old, *(n for n in new if n not in old)]:
            found = _compare(
                old.get(name, _MISSING),
                new.get(name, _MISSING),
                f"{key}.{name}" if key else name,
                contents,
                source,
            )
            if found is not None:
                return found
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        each = (_compare(a, b, f"{key}[{i}]", contents, source) for i, (a, b) in pairs)
        return next((found for found in each if found is not None), None)
    if _PLACE.fullmatch(key):
        return _compare_places(old, new, key, contents, source)
    if old == new:
        return None
    return f"{key}: {_shown(old)} -> {_shown(new)}"


# Keys whose values are paths or names of inputs.
_PLACE = re.compile(
    r"model\.(vision_tower|language_model|checkpoint|chat_template)"
    r"|stages\[\d+\]\.(eval_)?data\[\d+\]\.(path|image_folder|revision|chat_template)"
)


def _compare_places(
    old: Any, new: Any, key: str, contents: Sequence[dict[str, Any]], source: Any
) -> str | None:
    """Compare two paths or names of inputs by their contents, like `_compare`.

    watched.py compares the pictures of an image_folder one by one. A Hub dataset stays at the commit of its
    first start.
    """
    texts = isinstance(old, str) and isinstance(new, str)
    if key.endswith(".revision"):
        if old == new:
            return None
        commits = [
            _commit(content, str(values.get("path")), values.get("revision"))
            for content, values in zip(contents, source, strict=True)
        ]
        same = commits[0] == commits[1] or not all(commits)
        return None if same else f"{key}: commit {commits[0]} -> {commits[1]}"
    if key.endswith(".image_folder") and not (texts and old in contents[0] and new in contents[1]):
        return None
    if not texts:
        return None if old == new else f"{key}: {_shown(old)} -> {_shown(new)}"
    before, after = (str(c.get(p, REPOSITORY)) for c, p in zip(contents, (old, new), strict=True))
    if before == after and (old == new or not before.startswith(REPOSITORY)):
        return None
    if old != new:
        return f"{key}: {_shown(old)} -> {_shown(new)}, whose content differs"
    hub = before.startswith(REPOSITORY) and after.startswith(REPOSITORY)
    if hub and (key.endswith(".path") or not ("@" in before and "@" in after)):
        return None  # a dataset stays at its commit; an unknown commit does not count as a change
    return f"the files of {one_line(new)} have changed"


def _shown(value: Any) -> str:
    if value is _MISSING:
        return "nothing"
    return one_line(json.dumps(value, ensure_ascii=False, default=str), 100)
