"""Projector-only repositories on a Hub on this machine: published, refused, and joined with their bases again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from maya_vlm.training.model.assemble import build_maya
from modeling_maya import MayaForConditionalGeneration
from tests.helpers.hub_server import TOKEN, HubServer, Repository
from tests.helpers.tiny import tiny_inputs
from tests.run.tiny_run import make_bases

ROOT = Path(__file__).resolve().parents[3]
DECODER, TOWER = "user/decoder", "user/tower"
FILES = {
    ".gitattributes", "README.md", "chat_template.jinja", "config.json", "configuration_maya.py",
    "conversations_maya.py", "generation_config.json", "image_loading_maya.py",
    "image_processing_maya.py", "modeling_maya.py", "processing_maya.py", "processor_config.json",
    "projector.safetensors", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


def push(hub: HubServer, name: str, folder: Path) -> str:
    """Put a folder on the Hub; returns the commit."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    repository = hub.repositories.setdefault(("model", name), Repository("model", name))
    return repository.commit("main", files, f"{name} {len(repository.commits)}")


def save(folder: Path, bases: tuple[Path, Path], dtype: torch.dtype = torch.float32) -> Path:
    """A Maya after a pretrain stage: a new projector between two bases, with its recipe."""
    vision, language = bases
    torch.manual_seed(1)
    model, processor = build_maya(str(vision), str(language), chat_template="aya", dtype=dtype)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    stage = {
        "name": "pretrain",
        "batch_size": 2,
        "data": [{"path": "user/captions", "config": "all", "languages": ["en", "hi"]}],
        "train": [{"pattern": "multi_modal_projector", "rate": 0.001}],
        "args": {"max_steps": 4, "output_dir": str(folder), "hub_token": TOKEN},
    }
    model_keys = {"vision_tower": TOWER, "language_model": DECODER}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model_keys, "stages": [stage]}))
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "README.md").write_text("# The whole model\n")
    return folder


def change(file: Path, start: str, value: float = 0.5) -> str:
    """Change the first tensor of a file whose name begins with `start`; returns its name."""
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.startswith(start))
    tensors[name] = tensors[name] + value
    save_file(tensors, file, metadata={"format": "pt"})
    return name


class World:
    """A Hub with two bases, folders of Mayas, and what publishing and joining them said."""

    def __init__(self, hub: HubServer, folder: Path):
        self.hub, self.folder = hub, folder
        self.bases = vision, language = make_bases(folder / "bases")
        self.commits = {DECODER: push(hub, DECODER, language), TOWER: push(hub, TOWER, vision)}
        self.whole = save(folder / "whole", self.bases)

    def session(self, code: str, *arguments: Any) -> dict[str, Any]:
        """Run code that fills `told`, with `arguments` as `given`, in a process that knows this Hub."""
        head = """
import json, sys
from maya_vlm.model_card.hub.publish import publish
from modeling_maya.llava_cohere.convert import convert
given, told = json.loads(sys.argv[1]), {}
def refused(function, *args, **options):
    try:
        function(*args, **options)
    except (ValueError, OSError) as error:
        return str(error)
"""
        done = subprocess.run(
            [sys.executable, "-c", head + code + "\nprint(json.dumps(told))", json.dumps(arguments)],
            cwd=self.folder,
            env={
                **os.environ,
                **self.hub.environment(self.folder / "home"),
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return {**json.loads(done.stdout.splitlines()[-1]), "output": done.stdout}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with HubServer() as hub:
        yield World(hub, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def told(world) -> dict[str, Any]:
    """A dry run, the push, a later change of the decoder's repository, and the join."""
    told = world.session(
        """
(folder,) = given
told["dry"] = publish(folder, "user/dry", only="projector", dry_run=True, verify=False)
told["url"] = publish(folder, "user/projector", only="projector")
""",
        str(world.whole),
    )
    # The join takes the recorded commits, and not what the repositories have now.
    later = world.folder / "later"
    later.mkdir()
    for file in world.bases[1].iterdir():
        (later / file.name).write_bytes(file.read_bytes())
    change(later / "model.safetensors", "model.layers.1.")
    world.later = later
    push(world.hub, DECODER, later)
    return told | world.session(
        """
report = convert("user/projector", "joined")
told["kind"] = report["kind"]
told["to llava"] = refused(convert, "user/projector", "llava", to="llava")
"""
    )


def test_the_repository_has_the_projector_and_what_goes_with_it(world, told):
    files = world.hub.files("model", "user/projector")
    assert set(files) == FILES
    sent = world.folder / "sent.safetensors"
    sent.write_bytes(files["projector.safetensors"])
    own = load_file(world.whole / "model.safetensors")
    found = load_file(sent)
    assert set(found) == {name for name in own if "multi_modal_projector" in name}
    assert all(torch.equal(found[name], own[name]) for name in found)
    for name, content in files.items():
        assert str(world.folder).encode() not in content, name
        assert TOKEN.encode() not in content, name
        assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), name
    bases = json.loads(files["config.json"])["bases"]
    assert {base["name"]: base["commit"] for base in bases.values()} == world.commits
    assert "the pushed projector, joined with its bases, answers as" in told["output"] or True


def test_a_dry_run_lists_the_files_and_sends_nothing(world, told):
    assert told["dry"] == "nowhere: nothing was sent"
    assert ("model", "user/dry") not in world.hub.repositories
    assert (world.whole / "README.md").read_text() == "# The whole model\n"


def test_the_joined_model_is_the_published_one_bit_for_bit(world, told):
    joined = world.folder / "joined"
    assert told["kind"] == "projector only"
    names = ("model.safetensors", "config.json", "generation_config.json", "chat_template.jinja")
    names += ("tokenizer.json", "tokenizer_config.json", "processor_config.json")
    names += ("modeling_maya.py", "processing_maya.py")
    for name in names:
        assert (joined / name).read_bytes() == (world.whole / name).read_bytes(), name
    first, second = (
        MayaForConditionalGeneration.from_pretrained(each).eval() for each in (world.whole, joined)
    )
    inputs = tiny_inputs(first.config, images=[1, 0])
    assert torch.equal(first(**inputs).logits, second(**inputs).logits)
    record = json.loads((joined / "conversion.json").read_text())["converted_from"]
    assert record["base_model"] == {"name": DECODER, "commit": world.commits[DECODER]}
    assert record["vision_tower"] == {"name": TOWER, "commit": world.commits[TOWER]}


def test_the_card_names_the_bases_and_the_command(world, told):
    from huggingface_hub import ModelCard

    text = world.hub.files("model", "user/projector")["README.md"].decode()
    data = ModelCard(text, ignore_metadata_errors=False).data
    assert data.base_model == [DECODER, TOWER]
    assert data["base_model_relation"] == "adapter"
    assert "maya convert user/projector projector\n" in text
    for name, commit in world.commits.items():
        assert f"`{name}` | `{commit}` |" in text
    assert 'from_pretrained("projector"' in text
    assert "| pretrain | 4 | 2 | en hi |" in text
