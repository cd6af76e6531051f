"""`user/name@revision` of a Hub: chatted with, trained from, merged, converted back, or told in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from modeling_maya import MayaForConditionalGeneration
from tests.helpers.hub_server import HubServer, Repository
from tests.helpers.tiny_decoders import save_decoder
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture
from tests.run.tiny_run import make_bases, make_data, write

MAYA = Path(sys.executable).with_name("maya")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Models whose branch `v1` is whole, and whose branch `main` is another model or damaged."""
    folder = tmp_path_factory.mktemp("hub")
    maya = save_tiny_maya(folder / "maya")
    adapted = get_peft_model(
        MayaForConditionalGeneration.from_pretrained(maya),
        LoraConfig(r=2, target_modules=r".*language_model.*q_proj"),
    )
    adapted.save_pretrained(folder / "adapter")
    file = folder / "adapter" / "adapter_config.json"
    named = {"base_model_name_or_path": "me/maya", "revision": "v1"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **named}))
    vision, _ = make_bases(folder / "bases")
    decoder = save_decoder(folder / "decoder", "qwen3")
    with HubServer() as server:
        for name, place in (
            ("maya", maya), ("adapter", folder / "adapter"), ("tower", vision), ("decoder", decoder)
        ):  # fmt: skip
            repository = Repository("model", f"me/{name}")
            repository.commit("v1", contents(place), "whole")
            repository.commit("main", {"README.md": b"moved"}, "moved away")
            server.repositories["model", f"me/{name}"] = repository
        yield server, folder


def maya(hub, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **hub[0].environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(MAYA), *arguments], capture_output=True, text=True, env=environment, cwd=tmp_path
    )


def test_chat_with_a_revision(hub, tmp_path):
    tiny_picture(2).save(tmp_path / "p.png")
    ask = ("chat", "p.png", "Why?", "--max-new-tokens", "4", "--model")
    here = maya(hub, tmp_path, *ask, str(hub[1] / "maya"))
    there = maya(hub, tmp_path, *ask, "me/maya@v1")
    assert (there.returncode, there.stderr) == (0, "")
    assert there.stdout == here.stdout
    for arguments, words in (
        (("me/maya",), "holds no model"),
        (("me/maya@v9",), "has no revision 'v9'"),
        (("me/maya@v1", "--revision", "v2"), "found 'v1' in the name and 'v2' beside it"),
        (("me/none@v1",), "neither a folder nor a readable Hub repository"),
    ):
        done = maya(hub, tmp_path, *ask, *arguments)
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_merge_and_convert_with_a_revision(hub, tmp_path):
    done = maya(hub, tmp_path, "merge", "me/adapter@v1", "merged")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    done = maya(
        hub, tmp_path, "convert", "me/maya", "back", "--to", "llava_cohere", "--revision", "v9"
    )
    assert done.returncode == 2
    assert "v9" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_train_from_bases_and_checkpoint_at_a_revision(hub, tmp_path):
    data = make_data(tmp_path / "data", images=2, languages=("en",))
    stage = {
        "name": "only",
        "batch_size": 2,
        "data": [{"path": str(data)}],
        "train": [{"pattern": "projector", "rate": 0.01}, {"pattern": ".*", "rate": "frozen"}],
        "args": {"max_steps": 1},
    }
    bases = {
        "vision_tower": "me/tower@v1",
        "language_model": "me/decoder@v1",
        "chat_template": "own",
    }
    for number, (model, code) in enumerate(
        (
            (bases, 0),
            ({"checkpoint": "me/maya", "revision": "v1"}, 0),
            ({**bases, "language_model": "me/decoder@v9"}, 2),
        )
    ):
        recipe = {"output_dir": f"run{number}", "model": model, "stages": [stage]}
        path = write(recipe, tmp_path / f"{number}.yaml")
        done = maya(hub, tmp_path, "train", str(path))
        assert done.returncode == code, done.stderr
        assert code == 0 or done.stderr.count("\n") == 1
