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
from transformers import CohereForCausalLM

from maya_vlm.training.model.assemble import build_maya
from modeling_maya import MayaForConditionalGeneration
from tests.helpers.bare_python import make_site, run_bare
from tests.helpers.hub_server import TOKEN, HubServer, Repository
from tests.helpers.tiny import DECODERS, tiny_inputs
from tests.helpers.tiny_maya import tiny_picture
from tests.helpers.tiny_processing import tiny_tokenizer
from tests.run.tiny_run import make_bases

ROOT = Path(__file__).resolve().parents[3]
DECODER, TOWER = "user/decoder", "user/tower"
ROWS = len(tiny_tokenizer()) + 4
FILES = {
    ".gitattributes", "README.md", "chat_template.jinja", "config.json", "configuration_maya.py",
    "conversations_maya.py", "generation_config.json", "image_loading_maya.py",
    "image_processing_maya.py", "modeling_maya.py", "processing_maya.py", "processor_config.json",
    "projector_maya.py",
    "projector.safetensors", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    "training_log.json",
}  # fmt: skip


def push(hub: HubServer, name: str, folder: Path) -> str:
    """Put a folder on the Hub; returns the commit."""
    files = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    repository = hub.repositories.setdefault(("model", name), Repository("model", name))
    return repository.commit("main", files, f"{name} {len(repository.commits)}")


def save(folder: Path, bases: tuple[Path, Path], half: bool = False) -> Path:
    """A Maya after a pretrain stage: a new projector between two bases, with its recipe.

    half: decoder and tower are in bfloat16, as after training with `bf16`.
    """
    vision, language = bases
    torch.manual_seed(1)
    dtype = torch.bfloat16 if half else torch.float32
    model, processor = build_maya(str(vision), str(language), chat_template="aya", dtype=dtype)
    model.model.multi_modal_projector.float()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    stage = {
        "name": "pretrain",
        "batch_size": 2,
        "data": [{"path": "user/captions", "config": "all", "languages": ["en", "hi"]}],
        "train": [{"pattern": "multi_modal_projector", "rate": 0.001}],
        "args": {"max_steps": 4, "output_dir": str(folder), "hub_token": TOKEN},
    }
    stages = [stage, {**stage, "name": "finetune"}]
    model_keys = {"vision_tower": TOWER, "language_model": DECODER}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": model_keys, "stages": stages}))
    (folder / "training_log.json").write_text(json.dumps({"stage": "pretrain", "log": []}))
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "README.md").write_text("# The whole model\n")
    return folder


def tiny_decoder(folder: Path, **changes: Any) -> None:
    """A tiny decoder of the bases' kind with other sizes."""
    config_class, fields = DECODERS["cohere"]
    rows = {"vocab_size": ROWS}
    CohereForCausalLM(config_class(**{**fields, **rows, **changes})).save_pretrained(folder)


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
            [
                sys.executable,
                "-c",
                head + code + "\nprint(json.dumps(told))",
                json.dumps(arguments),
            ],
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
    told["said"] = told["output"]
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
from huggingface_hub import hf_hub_download
from maya_vlm.training.cli import main
card = open(hf_hub_download("user/projector", "README.md")).read()
(command,) = [line for line in card.splitlines() if line.startswith("maya ")]
told["returned"] = main(command.split()[1:])
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
    assert (
        f"the pushed projector, joined with its bases, answers as {world.whole} does"
        in told["said"]
    )


def test_a_dry_run_lists_the_files_and_sends_nothing(world, told):
    assert told["dry"] == "nowhere: nothing was sent"
    assert ("model", "user/dry") not in world.hub.repositories
    assert (world.whole / "README.md").read_text() == "# The whole model\n"


def test_the_joined_model_is_the_published_one_bit_for_bit(world, told):
    # The card's own command wrote it.
    joined = world.folder / "projector"
    assert told["returned"] == 0
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
    # The recipe's next stage has not trained this projector.
    assert "| pretrain | 4 | 2 | en hi |" in text
    assert "| finetune |" not in text


def test_lines_of_the_card_answer_from_the_joined_folder(world, told, tmp_path):
    card = world.hub.files("model", "user/projector")["README.md"].decode()
    snippets = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    assert len(snippets) == 3
    tiny_picture(3).save(tmp_path / "picture.png")
    (tmp_path / "projector").symlink_to(world.folder / "projector")
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = run_bare("\n".join(snippets), make_site(tmp_path / "site"), tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    words = done.stdout.split()
    assert words == words[: len(words) // 3] * 3 != []


@pytest.fixture(scope="module")
def refused(world, told) -> dict[str, Any]:
    """What publishing and joining say where another model would come out, and where the bases have copies."""
    half = save(world.folder / "half", world.bases, half=True)
    trained, moved, local = (world.folder / name for name in ("trained", "moved", "local"))
    for folder in (trained, moved, local):
        save(folder, world.bases)
    world.trained = change(trained / "model.safetensors", "model.language_model.layers.1.", 1e-6)
    world.moved = change(moved / "model.safetensors", "model.vision_tower.encoder.", 0.25)
    recipe = yaml.safe_load((local / "recipe.yaml").read_text())
    recipe["model"]["language_model"] = str(world.bases[1])
    (local / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    wide = world.folder / "wide"
    tiny_decoder(wide, hidden_size=64)
    push(world.hub, "user/wide", wide)
    return world.session(
        """
half, trained, moved, local, wide, later, copy, decoder = given
def only(folder, **options):
    return publish(folder, "user/never", only="projector", verify=False, dry_run=True, **options)
told["trained"] = refused(only, trained, base_model=decoder)
told["moved"] = refused(only, moved, base_model=decoder)
told["other values"] = refused(only, half)
told["other shape"] = refused(only, half, base_model="user/wide")
told["folder"] = refused(only, local)
told["named"] = only(local, base_model=decoder)
told["without only"] = refused(publish, half, "user/never", vision_tower="user/tower")
told["dataset"] = refused(publish, half, "user/never", kind="dataset", only="projector")

convert("user/projector", "of copies", base_model=copy)
told["join other values"] = refused(convert, "user/projector", "never", base_model=later)
told["join other shape"] = refused(convert, "user/projector", "never", base_model=wide)
told["join another revision"] = refused(convert, "user/projector", "never", base_model="user/decoder")

from maya_vlm.training.inference.load import load
told["load"] = refused(load, "user/projector")
from huggingface_hub import snapshot_download
told["place"] = place = snapshot_download("user/projector", local_dir="place")
told["again"] = refused(publish, place, "user/never")
told["again, only"] = refused(publish, place, "user/never", only="projector")

publish(half, "user/half", only="projector", base_model=decoder, verify=False)
convert("user/half", "half joined")
""",
        *map(str, (half, trained, moved, local, wide, world.later, world.bases[1])),
        f"{DECODER}@{world.commits[DECODER]}",
    )


def test_a_trained_decoder_or_tower_is_refused_by_its_first_tensor(world, refused):
    assert refused["trained"].startswith(
        f"{world.folder / 'trained' / 'model.safetensors'}: {world.trained}: expected the values of the base "
        f"{DECODER}@{world.commits[DECODER]}, found others (largest difference "
    )
    assert "publish the whole model (leave --only out)" in refused["trained"]
    assert f"{world.moved}: expected the values of the base {TOWER}@" in refused["moved"]
    assert "found others (largest difference 0.25)" in refused["moved"]
    assert not [name for kind, name in world.hub.repositories if name == "user/never"]


def test_another_base_is_refused_when_publishing(world, refused):
    # Since the run, the decoder's repository has other weights.
    assert "expected the values of the base user/decoder@" in refused["other values"]
    assert refused["other shape"] == (
        f"user/wide: model.language_model.embed_tokens.weight: expected a tensor of shape [{ROWS}, 32] by config.json, "
        f"found [{ROWS}, 64]: this is another language_model than the model's: name the right one with --base-model"
    )


def test_a_base_that_others_do_not_have_is_refused(world, refused):
    told = refused["folder"]
    assert told.startswith(
        f"{world.folder / 'local' / 'recipe.yaml'}: model.language_model: expected "
    )
    assert told.endswith("which others do not have: name the repository with --base-model")
    assert refused["named"] == "nowhere: nothing was sent"


def test_options_without_only_are_refused(refused):
    assert refused["without only"] == "vision_tower: only with --only projector: leave it out"
    assert refused["dataset"] == "only: only for models"


def test_another_base_is_refused_when_joining(world, refused):
    digest = json.loads((Path(refused["place"]) / "config.json").read_text())["bases"]
    known = digest["language_model"]["sha256"][:12]
    for case in ("join other values", "join another revision"):
        assert (
            f"with which the projector was trained (SHA-256 {known}), found others" in refused[case]
        )
    assert f"expected a tensor of shape [{ROWS}, 32]" in refused["join other shape"]
    assert not list(world.folder.glob("*never*"))


def test_copies_of_the_bases_give_the_same_model(world, refused):
    whole = (world.whole / "model.safetensors").read_bytes()
    assert (world.folder / "of copies" / "model.safetensors").read_bytes() == whole


def test_bases_in_another_dtype_are_rounded_as_the_run_rounded_them(world, refused):
    own = load_file(world.folder / "half" / "model.safetensors")
    found = load_file(world.folder / "half joined" / "model.safetensors")
    assert own.keys() == found.keys()
    assert {str(each.dtype) for each in own.values()} == {"torch.float32", "torch.bfloat16"}
    for name, each in own.items():
        assert each.dtype == found[name].dtype, name
        assert torch.equal(each, found[name]), name


def test_what_asks_a_projector_is_told_to_join_it(refused):
    command = "join it with its bases first: maya convert {} OUTPUT"
    assert refused["load"] == (
        "user/projector: expected a whole model, found only a projector (projector.safetensors): "
        + command.format("user/projector")
    )
    for case in ("again", "again, only"):
        assert refused[case].endswith(command.format(refused["place"])), refused[case]


def test_every_refusal_is_one_line(told, refused):
    texts = [text for name, text in refused.items() if name != "output"]
    assert all(isinstance(text, str) and "\n" not in text for text in texts)
    assert told["to llava"].endswith(
        "join it with its bases first: maya convert user/projector OUTPUT"
    )
