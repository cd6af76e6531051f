"""`maya renew`: update the code files in a saved or published Maya; weights and card do not change.

A saved folder contains the code of its time, and this code may not work with newer transformers. `renew`
replaces the code files, the list of Auto classes in config.json, and a chat template of this package that
has been rewritten since. It changes no other file, and it changes no file at all unless the logits before
and after are equal.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import modeling_maya
import processing_maya
from maya_vlm.training.common.files import write_bytes
from maya_vlm.training.common.models import check_weights, find_model
from maya_vlm.training.common.reading import parse_json
from maya_vlm.training.common.revisions import split_revision
from maya_vlm.training.common.telling import one_line
from maya_vlm.training.common.versions import own_version
from modeling_maya.configuration_maya import AUTO_MAP

CODE = (
    *(
        Path(modeling_maya.__file__).with_name(f"{n}_maya.py")
        for n in ("configuration", "modeling", "projector")
    ),
    *(
        Path(processing_maya.__file__).with_name(f"{name}_maya.py")
        for name in ("processing", "image_processing", "image_loading", "conversations")
    ),
)
# SHA-256 of a template in an earlier version of this package -> arguments of load_chat_template.
EARLIER_TEMPLATES = {
    "e9c93955fadee6f2053b497f1b65315c9b24ff5ff435ebc430536bde177e1db4": ("aya", False),
    "a5411867f0225206ffa5392e0deb6a973769b55513a0fbd77cfa91c9e423c88a": ("plain", False),
    # Models converted from the original Maya had a newline in the prompt.
    "e4ab79c4d5e331eb3268ae06d59893e268e3171d5779649631eb9e9e3615d962": ("plain", True),
}
TOLERANCE = 1e-5
# Suffixes of the files that `renew` reads.
SMALL = (".json", ".jinja", ".py")

# This script runs in a separate process, so that it can use the folder's code instead of this package's.
ANSWER = """
import json, sys
import torch
from PIL import Image
trust = json.loads(sys.argv[3])
if not trust:
    import modeling_maya, processing_maya
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.manual_seed(0)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], dtype="auto", **trust).eval()
processor = AutoProcessor.from_pretrained(sys.argv[1], **trust)
picture = Image.linear_gradient("L").convert("RGB").crop((0, 0, 200, 120))
content = [{"type": "image", "image": picture}, {"type": "text", "text": "What is this?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
with torch.no_grad():
    logits = model(**inputs).logits[0, -1].double()
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
found = {"ids": inputs["input_ids"].tolist(), "logits": logits.tolist(), "tokens": tokens.tolist()}
open(sys.argv[2], "w").write(json.dumps(found))
"""


@dataclass
class Renewed:
    """Result of a renewal: the changed files, the lines of the check, and the commit's address if any."""

    files: list[str]
    checks: list[str] = field(default_factory=list)
    address: str | None = None


def renew(
    source: str | Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
    dry_run: bool = False,
    create_pr: bool = False,
    token: str | None = None,
) -> Renewed:
    """Renew the code of a folder, or of a repository in one commit.

    A folder's logits are compared before and after. Only the small files of a repository are downloaded, and
    a small model with random weights and the repository's config is compared instead.

    Args:
        source: a folder of `maya train`, or `user/name`.
        revision: branch of a repository.
        trust_remote_code: also run the old code, and compare with its logits.
        check: compare logits, for which a folder's weights are loaded twice.
        dry_run: report the changes without making them.
        create_pr: open a pull request instead of committing to the branch.
        token: default: the token that huggingface_hub finds.

    Raises:
        FileNotFoundError: the source is not a Maya; nothing was changed.
        ValueError: a file is wrong, or the logits differ; nothing was changed.
        OSError: the Hub refused.
    """
    name, revision = split_revision(str(source), revision)
    folder = Path(name)
    if folder.is_dir():
        changes = changed_files(_read(folder))
        renewed = Renewed(sorted(changes))
        if changes and check:
            renewed.checks = check_folder(folder, changes, trust_remote_code)
        if not dry_run:
            for name, content in changes.items():
                write_bytes(folder / name, content)
        return renewed
    return _renew_repository(name, revision, trust_remote_code, check, dry_run, create_pr, token)


def changed_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the files of a Maya that `renew` changes, with their new content.

    Args:
        files: name -> content of the present files.

    Raises:
        FileNotFoundError: a required file is missing.
        ValueError: the files do not belong to a Maya.
    """
    for name in ("config.json", "processor_config.json"):
        if name not in files:
            raise FileNotFoundError(f"expected the files of a Maya, found no {name}")
    config = _parse(files["config.json"], "config.json")
    if config.get("model_type") != "maya":
        raise ValueError(
            f"config.json: model_type: expected 'maya', found {config.get('model_type')!r}"
        )
    changes = {file.name: file.read_bytes() for file in CODE}
    before = copy.deepcopy(config)
    config["auto_map"] = dict(AUTO_MAP)
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part, {}), dict):
            raise ValueError(f"config.json: {part}: expected a mapping, found another value")
        config.get(part, {}).pop("_name_or_path", None)
    if config != before:
        changes["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    template = files.get("chat_template.jinja")
    if template is not None:
        earlier = EARLIER_TEMPLATES.get(hashlib.sha256(template).hexdigest())
        if earlier is not None:
            changes["chat_template.jinja"] = processing_maya.load_chat_template(*earlier).encode()
    return {name: content for name, content in changes.items() if files.get(name) != content}


def _parse(content: bytes, name: str) -> dict[str, Any]:
    found = parse_json(content, name)
    if not isinstance(found, dict):
        raise ValueError(f"{name}: expected a mapping, found {type(found).__name__}")
    return found


def _read(folder: Path) -> dict[str, bytes]:
    """Return the small files of a folder that `renew` reads."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.suffix in SMALL and path.stat().st_size < 2**22
    }


# ------------------------------------------------------------------------------ check


def check_folder(folder: Path, changes: Mapping[str, bytes], trust_remote_code: bool) -> list[str]:
    """Compare a folder's answers before and after the changes.

    Args:
        folder: the model's folder.
        changes: name -> new content of the changed files.
        trust_remote_code: also run the old code, and compare with its answers.

    Returns:
        A line for each comparison.

    Raises:
        ValueError: the answers differ, or the renewed folder does not answer.
    """
    check_weights(find_model(str(folder)))
    with tempfile.TemporaryDirectory() as temporary:
        after = Path(temporary) / "renewed"
        after.mkdir()
        for path in folder.iterdir():
            if path.name not in changes and path.is_file():
                (after / path.name).symlink_to(path.resolve())
        for name, content in changes.items():
            (after / name).write_bytes(content)
        trust = {"trust_remote_code": trust_remote_code}
        before, told = _answer(folder, {})
        if before is None:
            raise ValueError(f"{folder}: does not load, so nothing was renewed: {told}")
        renewed, told = _answer(after, trust if trust_remote_code else {})
        if renewed is None:
            raise ValueError(f"{folder}: the renewed code does not answer: {told}")
        checks = [_compare(folder, before, renewed, "this package's code")]
        if trust_remote_code:
            old, told = _answer(folder, trust)
            if old is None:
                checks.append(f"the old code does not run with the installed libraries: {told}")
            else:
                checks.append(_compare(folder, old, renewed, "the old code"))
    return checks


def _answer(folder: Path, trust: dict[str, bool]) -> tuple[dict[str, Any] | None, str]:
    """Return (ids, logits and tokens of one question, ""), or (None, last line of the error).

    Args:
        folder: the model's folder.
        trust: arguments of `from_pretrained` that make it run the folder's code; empty for this package's.
    """
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary) / "answer.json"
        # A separate modules cache, so that transformers does not reuse modules of another folder.
        environment = {**os.environ, "HF_MODULES_CACHE": str(Path(temporary) / "modules")}
        done = subprocess.run(
            [sys.executable, "-c", ANSWER, str(folder.resolve()), str(output), json.dumps(trust)],
            cwd=temporary,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            return None, one_line((done.stderr.strip().splitlines() or ["no message"])[-1], 300)
        return json.loads(output.read_text()), ""


def _compare(folder: Path, one: dict[str, Any], other: dict[str, Any], whose: str) -> str:
    far = max(
        abs(a - b) / (1 + abs(a)) for a, b in zip(one["logits"], other["logits"], strict=True)
    )
    if one["ids"] != other["ids"] or one["tokens"] != other["tokens"] or not far <= TOLERANCE:
        raise ValueError(
            f"{folder}: expected the logits of {whose} within {TOLERANCE:g} of their size, found a difference "
            f"of {far:.1e} after the renewal; nothing was renewed"
        )
    return f"same tokens as with {whose}, logits within {max(far, 1e-16):.0e}"


# ------------------------------------------------------------------------------ repositories


def _renew_repository(
    repo_id: str,
    revision: str | None,
    trust_remote_code: bool,
    check: bool,
    dry_run: bool,
    create_pr: bool,
    token: str | None,
) -> Renewed:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import HFValidationError

    api = HfApi(token=token)
    try:
        commit = api.model_info(repo_id, revision=revision).sha
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "repository"
            api.snapshot_download(
                repo_id,
                revision=commit,
                local_dir=folder,
                allow_patterns=[f"*{ending}" for ending in SMALL],
                ignore_patterns=["*/*", "*.index.json"],
            )
            changes = changed_files(_read(folder))
            renewed = Renewed(sorted(changes))
            if changes and check:
                _add_small_weights(folder)
                small_changes = changed_files(_read(folder))
                renewed.checks = check_folder(folder, small_changes, trust_remote_code)
                renewed.checks.append("compared on a small model with random weights")
        if changes and not dry_run:
            done = api.create_commit(
                repo_id,
                [
                    CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
                    for name, content in sorted(changes.items())
                ],
                commit_message=f"Renew the code (maya-vlm {own_version()})",
                revision=revision,
                create_pr=create_pr,
                parent_commit=None if create_pr else commit,
            )
            renewed.address = done.pr_url or done.commit_url
    except HfHubHTTPError as error:
        answer = error.server_message or " ".join(str(error).split())
        raise OSError(f"the Hub refused {repo_id}: {answer}") from None
    except HFValidationError:
        raise FileNotFoundError(
            f"{repo_id}: expected a folder, or a repository as user/name, found neither"
        ) from None
    return renewed


def _add_small_weights(folder: Path) -> None:
    """Write a small model with random weights and the same kinds of parts, and its config, into `folder`."""
    from safetensors.torch import save_file

    config = modeling_maya.MayaConfig.from_pretrained(folder)
    fields = _parse((folder / "config.json").read_bytes(), "config.json")
    for name, part in (
        ("text_config", config.text_config),
        ("vision_config", config.vision_config),
    ):
        small: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_hidden_layers": 3,
        }
        known = part.to_dict()
        small = {key: value for key, value in small.items() if known.get(key) is not None}
        if known.get("layer_types"):
            small["layer_types"] = known["layer_types"][:3]
        fields.setdefault(name, {"model_type": part.model_type}).update(small)
    layers = config.vision_config.num_hidden_layers
    # The same layer counted from the end, limited to the three layers.
    fields["vision_feature_layer"] = max(-3, min(-1, config.vision_layers_used - layers - 1))
    fields.pop("quantization_config", None)
    fields["dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
    model = modeling_maya.MayaForConditionalGeneration(
        modeling_maya.MayaConfig.from_pretrained(folder)
    )
    tensors = {
        name: tensor.contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not model.config.tie_word_embeddings
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
