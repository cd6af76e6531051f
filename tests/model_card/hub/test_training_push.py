"""push_to_hub in a recipe, with a local Hub: every commit is a complete model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maya_vlm.training.recipe import load_recipe
from maya_vlm.training.run.train import train
from tests.helpers.bare_python import make_site, run_bare
from tests.helpers.hub_server import TOKEN, HubServer, Repository
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture
from tests.run.tiny_run import make_data, make_recipe, write

ROOT = Path(__file__).resolve().parents[3]
WHOLE = {
    ".gitattributes", "README.md", "chat_template.jinja", "config.json", "configuration_maya.py",
    "conversations_maya.py", "generation_config.json", "image_loading_maya.py",
    "image_processing_maya.py", "model.safetensors", "modeling_maya.py", "processing_maya.py",
    "processor_config.json", "projector_maya.py", "recipe.yaml", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
IN_TRAINING = "**In training, step {} of 4 of stage {}.** Later commits replace this model."


def pushing(folder: Path, **args) -> Path:
    """Write a recipe of two stages of four steps that saves after two steps and pushes."""
    recipe = make_recipe(folder)
    for stage in recipe["stages"]:
        stage["args"] |= {"push_to_hub": True, "hub_model_id": "user/tiny", **args}
        stage["args"]["hub_always_push"] = True
    return write(recipe, folder / "recipe.yaml")


def maya(hub: HubServer, home: Path, *arguments: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, **hub.environment(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "maya_vlm.training.cli", *arguments],
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        **options,
    )


def commits(hub: HubServer, name: str = "user/tiny") -> list[tuple[str, str, dict[str, bytes]]]:
    """Return (message, commit, files) of a repository's commits, oldest first, without the initial one."""
    repository = hub.repositories["model", name]
    found = zip(repository.messages, repository.commits.items(), strict=True)
    return [(message, oid, files) for message, (oid, files) in found][1:]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the commits of a whole run, and its folder."""
    folder = tmp_path_factory.mktemp("pushed")
    with HubServer() as hub:
        done = maya(hub, folder / "home", "train", str(pushing(folder)))
        assert done.returncode == 0, done.stdout + done.stderr
        yield hub, commits(hub), folder, done.stdout


def test_every_save_is_a_commit_and_the_last_has_the_finished_card(run):
    _, found, _, output = run
    assert [message for message, _, _ in found] == [
        "Training in progress, step 2 of 4 of stage pretrain (1 of 2)",
        "Training in progress, step 4 of 4 of stage pretrain (1 of 2)",
        "Training in progress, the end of stage pretrain (1 of 2)",
        "Training in progress, step 2 of 4 of stage finetune (2 of 2)",
        "Training in progress, step 4 of 4 of stage finetune (2 of 2)",
        "End of training",
    ]
    cards = [files["README.md"].decode() for _, _, files in found]
    assert IN_TRAINING.format(2, "pretrain (1 of 2)") in cards[0]
    assert IN_TRAINING.format(4, "finetune (2 of 2)") in cards[4]
    assert "In training" not in cards[5]
    assert "pushed to user/tiny: the finished model" in output


def test_a_commit_holds_a_model_and_nothing_else(run):
    _, found, folder, _ = run
    for message, _, files in found:
        # A finished stage also has its log.
        log = {"training_log.json"} if " step " not in message else set()
        assert set(files) == WHOLE | log, message
        for name, content in files.items():
            assert str(folder).encode() not in content, f"{message}: {name}"
            assert TOKEN.encode() not in content, f"{message}: {name}"
            assert not content.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x04")), name
    weights = [files["model.safetensors"] for _, _, files in found]
    assert len(set(weights)) == 4  # a finished stage equals its last checkpoint
    assert weights[5] == (folder / "run" / "model.safetensors").read_bytes()


def test_every_commit_loads_and_answers_where_only_transformers_is_installed(run, tmp_path):
    hub, found, _, _ = run
    tiny_picture().save(tmp_path / "picture.png")
    code = """
import json
from transformers import AutoModelForImageTextToText, AutoProcessor
told = []
for revision in REVISIONS:
    options = {"revision": revision, "trust_remote_code": True}
    model = AutoModelForImageTextToText.from_pretrained("user/tiny", **options)
    processor = AutoProcessor.from_pretrained("user/tiny", **options)
    content = [{"type": "image", "path": "picture.png"}, {"type": "text", "text": "What?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )
    told.append(model.generate(**inputs, max_new_tokens=3, do_sample=False).shape[1])
print(json.dumps(told))
"""
    revisions = [oid for _, oid, _ in found]
    site = make_site(tmp_path / "site")
    environment = hub.environment(tmp_path / "home")
    done = run_bare(code.replace("REVISIONS", repr(revisions)), site, tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])) == 6


@pytest.mark.slow
@pytest.mark.parametrize("upload", [1, 3])
def test_a_run_killed_in_an_upload_goes_on_with_the_same_repository(tmp_path, run, upload):
    """Kill a run while it sends weights: after a resume the repository equals that of an uninterrupted run."""
    recipe = pushing(tmp_path)
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with HubServer() as hub:
        puts = []

        def kill(request: str) -> None:
            if re.match(r"PUT /objects/", request):
                puts.append(request)
                if len(puts) == upload:
                    process.kill()
                    process.wait()

        hub.before = kill
        process = subprocess.Popen(
            [sys.executable, "-m", "maya_vlm.training.cli", "train", str(recipe)],
            env={**os.environ, **hub.environment(tmp_path / "home"), **environment},
            stdout=subprocess.DEVNULL,
        )
        process.wait(timeout=300)
        assert process.returncode == -9
        done = maya(hub, tmp_path / "home", "train", str(recipe))
        assert done.returncode == 0, done.stdout + done.stderr
        assert list(hub.repositories) == [("model", "user/tiny")]
        message, _, files = commits(hub)[-1]
        assert message == "End of training"
        whole = run[1][-1][2]
        assert set(files) == set(whole)
        assert files["model.safetensors"] == whole["model.safetensors"]
        # The interrupted upload leaves no files.
        assert not (tmp_path / "run" / ".work" / "push" / "finetune").exists()


@pytest.mark.slow
def test_the_end_alone_to_a_branch_of_a_private_repository(tmp_path):
    recipe = pushing(tmp_path, hub_strategy="end", hub_revision="mine", hub_private_repo=True)
    with HubServer() as hub:
        done = maya(hub, tmp_path / "home", "train", str(recipe))
        assert done.returncode == 0, done.stdout + done.stderr
        repository = hub.repositories["model", "user/tiny"]
        assert repository.private
        assert [message for message, _, _ in commits(hub)] == [
            "Training in progress, the end of stage pretrain (1 of 2)",
            "End of training",
        ]
        assert set(hub.files("model", "user/tiny", "main")) == {".gitattributes"}
        assert "model.safetensors" in hub.files("model", "user/tiny", "mine")


def test_a_public_repository_is_refused_before_training(tmp_path):
    with HubServer() as hub:
        repository = Repository("model", "user/tiny")
        repository.commit("main", {}, "initial commit")
        hub.repositories["model", "user/tiny"] = repository
        done = maya(hub, tmp_path, "train", str(pushing(tmp_path, hub_private_repo=True)))
    assert done.returncode == 2
    assert (
        "hub_private_repo: expected model user/tiny to be private, found it public" in done.stderr
    )
    assert "stage pretrain: from" not in done.stdout


def test_a_wrong_token_is_told_before_training_and_not_shown(tmp_path):
    with HubServer() as hub:
        environment = {k: v for k, v in hub.environment(tmp_path).items() if k != "HF_TOKEN"}
        recipe = pushing(tmp_path, hub_token="hf_wrongwrongwrongwrong")
        done = subprocess.run(
            [sys.executable, "-m", "maya_vlm.training.cli", "train", str(recipe)],
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "push_to_hub: the Hub refused model user/tiny: Invalid credentials" in done.stderr
    assert "hf_wrong" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_hub_out_of_order_does_not_stop_the_training_and_the_same_command_pushes(tmp_path):
    recipe = pushing(tmp_path, hub_strategy="end")
    with HubServer() as hub:
        hub.before = lambda request: "/commit/" in request or "/preupload/" in request
        done = maya(hub, tmp_path / "home", "train", str(recipe))
        assert done.returncode == 2, done.stdout
        assert (tmp_path / "run" / "config.json").is_file()
        assert "stage pretrain: not pushed: sending to model user/tiny failed" in done.stdout
        assert "the same command pushes it again" in done.stderr.splitlines()[-1]
        assert commits(hub) == []
        hub.before = lambda request: None
        again = maya(hub, tmp_path / "home", "train", str(recipe))
        assert again.returncode == 0, again.stderr
        assert [message for message, _, _ in commits(hub)][-1] == "End of training"
        # Nothing is left to push.
        count = len(commits(hub))
        assert maya(hub, tmp_path / "home", "train", str(recipe)).returncode == 0
        assert len(commits(hub)) == count


@pytest.mark.slow
def test_an_earlier_stage_is_not_pushed_over_the_finished_model(tmp_path):
    recipe = pushing(tmp_path, hub_strategy="end")
    asked = []

    def first_commit(request: str) -> bool:
        asked.extend([request] if "/commit/" in request else [])
        return "/commit/" in request and len(asked) == 1

    with HubServer() as hub:
        hub.before = first_commit
        maya(hub, tmp_path / "home", "train", str(recipe))
        hub.before = lambda request: None
        again = maya(hub, tmp_path / "home", "train", str(recipe))
        assert again.returncode == 0, again.stderr
        assert [message for message, _, _ in commits(hub)] == ["End of training"]


@pytest.mark.slow
def test_an_adapter_is_pushed_with_the_name_of_its_base(tmp_path):
    base = save_tiny_maya(tmp_path / "base")
    with HubServer() as hub:
        repository = Repository("model", "user/base")
        files = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
        oid = repository.commit("main", files, "base")
        hub.repositories["model", "user/base"] = repository
        args = {"push_to_hub": True, "hub_model_id": "user/lora", "hub_always_push": True}
        recipe = {
            "output_dir": str(tmp_path / "run"),
            "model": {"checkpoint": f"user/base@{oid}"},
            "stages": [
                {
                    "name": "finetune",
                    "batch_size": 2,
                    "data": [{"path": str(make_data(tmp_path / "data"))}],
                    "train": [{"pattern": ".*", "rate": "frozen"}],
                    "adapter": {"rate": 0.01, "r": 2},
                    "args": {"max_steps": 2, "save_steps": 1, "logging_steps": 1, **args},
                }
            ],
        }
        done = maya(hub, tmp_path / "home", "train", str(write(recipe, tmp_path / "recipe.yaml")))
        assert done.returncode == 0, done.stdout + done.stderr
        found = commits(hub, "user/lora")
        assert len(found) == 3
        for message, _, files in found:
            assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(files)
            assert "model.safetensors" not in files
            settings = json.loads(files["adapter_config.json"])
            assert settings["base_model_name_or_path"] == "user/base", message
            assert settings["revision"] == oid
            assert (
                "base_model:\n- user/base\nbase_model_relation: adapter"
                in files["README.md"].decode()
            )
            assert not any(str(tmp_path).encode() in content for content in files.values())
        code = (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
            "options = {'trust_remote_code': True}\n"
            "model = AutoModelForImageTextToText.from_pretrained('user/lora', **options)\n"
            "AutoProcessor.from_pretrained('user/lora', **options)\n"
            "print(sorted(model.peft_config), sum('lora_A' in n for n, _ in model.named_parameters()) > 0)"
        )
        environment = {**os.environ, **hub.environment(tmp_path / "other")}
        loaded = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert loaded.stdout == "['default'] True\n", loaded.stderr
        # `maya publish` sends the same adapter.
        adapter = tmp_path / "run" / "finetune" / "adapter"
        home = tmp_path / "home"
        done = maya(hub, home, "publish", str(adapter), "user/again", "--trust-remote-code")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the pushed model answers as" in done.stdout
        settings = json.loads(adapter.joinpath("adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(base)
        adapter.joinpath("adapter_config.json").write_text(json.dumps(settings))
        done = maya(hub, home, "publish", str(adapter), "user/third")
        assert done.returncode == 2
        assert "base_model_name_or_path: expected a repository of the Hub" in done.stderr


def test_an_adapter_on_a_base_that_is_not_on_the_hub_is_refused(tmp_path):
    recipe = make_recipe(tmp_path)
    recipe["stages"][1]["adapter"] = {"rate": 0.01}
    recipe["stages"][1]["args"] |= {"push_to_hub": True}
    path = write(recipe, tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"expected the base of the adapter on the Hub.*before"):
        train(str(path), make_pusher=lambda *args, **options: None)


def test_strategies_that_push_pickles_are_refused(tmp_path):
    path = pushing(tmp_path, hub_strategy="all_checkpoints")
    with pytest.raises(
        ValueError, match=r"args.hub_strategy: expected every_save or end, .*pickle"
    ):
        load_recipe(path)
