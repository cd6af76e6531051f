"""Write the files of a projector-only repository, for `maya publish --only projector`.

A pretrain stage trains the projector and leaves the decoder and the tower as they were. The projector then is
the whole result, and `maya convert` joins it with its two bases again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maya_vlm.training.common.files import write_text
from maya_vlm.training.common.reading import read_json_mapping, read_yaml
from maya_vlm.training.common.telling import one_line
from modeling_maya.llava_cohere.convert import convert
from modeling_maya.llava_cohere.headers import PROJECTOR
from modeling_maya.llava_cohere.join import (
    BASES,
    PARTS,
    PROJECTOR_PREFIX,
    SHARED_FILES,
    base_tensors,
    digest,
    open_config,
)
from modeling_maya.llava_cohere.loading import native_shapes
from modeling_maya.llava_cohere.origin import Origin, fetch
from modeling_maya.llava_cohere.tensors import (
    TensorRef,
    max_difference,
    read_weights,
    same_bytes,
    write_safetensors,
)

from .try_out import answer

# Part -> its key in the record of `maya convert`.
_CONVERTED = {"language_model": "base_model", "vision_tower": "vision_tower"}


def write_projector(
    folder: Path, target: Path, base_model: str | None, vision_tower: str | None
) -> Path:
    """Write the projector of a Maya and the small files that go with it into a new folder, and return that.

    Decoder and tower are compared with their bases, chunk by chunk, because the joined model would be another
    one if they differed.

    Args:
        folder: of the whole Maya.
        target: the folder to write.
        base_model, vision_tower: repositories of the bases, `user/name@revision` too; default: those that
            recipe.yaml or conversion.json name.

    Raises:
        ValueError, FileNotFoundError: in one line: a base is not known or not on the Hub, or a tensor of
            the decoder or the tower differs from the base's.
    """
    where = folder / "config.json"
    raw = read_json_mapping(where)
    expected = native_shapes(open_config(raw, where))
    own = read_weights(folder, pickles=False)
    given = {"language_model": base_model, "vision_tower": vision_tower}
    bases = {}
    for part, (prefixes, option) in PARTS.items():
        base = _base(folder, part, given[part])
        tensors = {key: own[key] for key in expected if key.startswith(prefixes)}
        # The dtype of most tensors. Others are found to differ.
        (dtype, _), *_ = Counter(ref.dtype for ref in tensors.values()).most_common()
        theirs = base_tensors(base, part, expected, dtype)
        _check_same(tensors, theirs, base, part, option)
        bases[part] = {
            "name": base.name,
            "commit": base.commit,
            "dtype": str(dtype).removeprefix("torch."),
            "sha256": digest(tensors),
        }
    target.mkdir(parents=True)
    projector = {key: own[key] for key in expected if key.startswith(PROJECTOR_PREFIX)}
    write_safetensors(target / PROJECTOR, projector)
    # A JSON of transformers' own form, so that the joined folder's is equal to it.
    config = {**_without_places(raw), BASES: bases}
    write_text(target / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    for file in sorted(folder.iterdir()):
        if file.is_file() and (file.name in SHARED_FILES or file.suffix == ".py"):
            shutil.copyfile(file, target / file.name)
    return target


def joined_answer(
    repo_id: str, commit: str, scratch: Path, trust_remote_code: bool, token: str | None
) -> list[int]:
    """Return the answer of a pushed projector, downloaded and joined with its bases in a temporary folder.

    Args:
        repo_id: of the projector.
        commit: of the push.
        scratch: a folder for the download and the joined model.
        trust_remote_code: have the joined model answer by the code of the repository.
        token: of the Hub; default: the one that huggingface_hub finds.

    Raises:
        ValueError: the projector cannot be joined, or the joined model does not answer.
    """
    from huggingface_hub import snapshot_download

    pushed = Path(
        snapshot_download(repo_id, revision=commit, token=token, cache_dir=scratch / "hub")
    )
    whole = scratch / "joined"
    convert(pushed, whole, log=lambda line: None)
    if trust_remote_code:
        for code in pushed.glob("*.py"):
            shutil.copyfile(code, whole / code.name)
    return answer(str(whole), None, trust_remote_code)


def _base(folder: Path, part: str, given: str | None) -> Origin:
    """Return a base of a Maya, from the Hub; the user, the recipe or a conversion's record names it."""
    option = PARTS[part][1]
    name, commit, where = given, None, option
    if name is None and (folder / "recipe.yaml").is_file():
        recipe = read_yaml(folder / "recipe.yaml")
        model = recipe.get("model") if isinstance(recipe, dict) else None
        name = model.get(part) if isinstance(model, dict) else None
        where = f"{folder / 'recipe.yaml'}: model.{part}"
    if name is None and (folder / "conversion.json").is_file():
        origin = read_json_mapping(folder / "conversion.json").get("converted_from") or {}
        found = origin.get(_CONVERTED[part]) if isinstance(origin, dict) else None
        if isinstance(found, dict):
            name, commit = found.get("name"), found.get("commit")
        where = f"{folder / 'conversion.json'}: converted_from.{_CONVERTED[part]}"
    told = f"{where}: expected the {part.replace('_', ' ')}'s repository on the Hub (user/name)"
    if not isinstance(name, str):
        raise ValueError(f"{told}, found {one_line(repr(name), 60)}: name it with {option}")
    local = (folder / name).is_dir()
    base = None if local else fetch(name, commit if isinstance(commit, str) else None)
    if base is None or base.commit is None:
        raise ValueError(
            f"{told}, found the folder {one_line(name, 100)}, which others do not have: name the repository "
            f"with {option}"
        )
    return base


def _check_same(
    own: Mapping[str, TensorRef],
    theirs: Mapping[str, TensorRef],
    base: Origin,
    part: str,
    option: str,
) -> None:
    """Raise ValueError, naming the first tensor, unless all tensors are those of the base, bit for bit."""
    for key, ref in own.items():
        if same_bytes(ref, theirs[key]):
            continue
        if ref.dtype != theirs[key].dtype:
            found = f"{ref.dtype} instead of {theirs[key].dtype}"
        else:
            found = f"others (largest difference {max_difference(ref, theirs[key]):.3g})"
        raise ValueError(
            f"{ref.file}: {key}: expected the values of the base {base.name}@{base.commit}, found {found}: if "
            f"the {part.replace('_', ' ')} was trained, publish the whole model (leave --only out); if this is not "
            f"its base, name the right one with {option}"
        )


def _without_places(value: Any) -> Any:
    """Return a config without the names of the folders that its parts were loaded from."""
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if name != "_name_or_path"}
        return {name: _without_places(each) for name, each in kept.items()}
    return [_without_places(each) for each in value] if isinstance(value, list) else value
