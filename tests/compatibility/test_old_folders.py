"""Folders of earlier versions of the package: they load with the present one, and `maya renew` updates them.

`saved_by_0_1_0` is a tiny Maya of a version whose Hub code worked only with transformers 5.23;
`expected.json` has its answers of that time.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForImageTextToText, AutoProcessor

import modeling_maya
from maya_vlm.model_card.hub import renew as module
from maya_vlm.model_card.hub.renew import CODE, changed_files, renew
from maya_vlm.training.cli import main
from tests.helpers.bare_python import make_site, run_bare
from tests.helpers.hub_server import HubServer
from tests.helpers.tiny_maya import save_tiny_maya

OLD = Path(__file__).with_name("saved_by_0_1_0")
EXPECTED = json.loads((OLD / "expected.json").read_text())
QUESTION = "What is shown in the picture?"

# A script for a process with the libraries and the folder, but without this repository.
ANSWER = """
import json, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
torch.set_num_threads(1)
trust = {"trust_remote_code": True}
model = AutoModelForImageTextToText.from_pretrained(SOURCE, **trust)
processor = AutoProcessor.from_pretrained(SOURCE, **trust)
content = [{"type": "image", "path": PICTURE}, {"type": "text", "text": QUESTION}]
inputs = processor.apply_chat_template([{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
with torch.no_grad():
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    logits = model(**inputs).logits[0, -1].double()
print(json.dumps([tokens.tolist(), logits.tolist()]))
"""


def bare_code(source: Path | str) -> str:
    picture = OLD / "picture.png"
    names = {"SOURCE": str(source), "PICTURE": str(picture), "QUESTION": QUESTION}
    return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + ANSWER


def check_answer(tokens: list, logits: list) -> None:
    assert tokens == EXPECTED["tokens"]
    assert logits == pytest.approx(EXPECTED["logits"], abs=1e-4)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Return a copy of the old folder, with a card by its owner."""
    shutil.copytree(OLD, tmp_path / "old")
    (tmp_path / "old" / "README.md").write_text("# My own words\n")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return make_site(tmp_path_factory.mktemp("bare") / "site")


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_an_old_folder_answers_with_the_package(trust):
    model = AutoModelForImageTextToText.from_pretrained(OLD, **trust).eval()
    processor = AutoProcessor.from_pretrained(OLD, **trust)
    assert type(model) is modeling_maya.MayaForConditionalGeneration
    content = [
        {"type": "image", "path": str(OLD / "picture.png")},
        {"type": "text", "text": QUESTION},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"].tolist() == EXPECTED["input_ids"]
    assert inputs["pixel_values"].double().sum().item() == pytest.approx(EXPECTED["pixel_sum"])
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        logits = model(**inputs).logits[0, -1].double()
    check_answer(tokens.tolist(), logits.tolist())


def test_renewed_it_answers_without_the_package(folder, site, capsys):
    if Version(transformers.__version__) >= Version("5.24"):
        broken = run_bare(bare_code(folder), site, folder.parent)
        assert "unexpected keyword argument 'cache'" in broken.stderr
    kept = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.iterdir()
        if path.suffix not in (".py", ".jinja") and path.name != "config.json" and path.is_file()
    }
    assert main(["renew", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "same tokens as with this package's code, logits within" in told
    assert "renewed: chat_template.jinja, config.json, configuration_maya.py" in told
    for name, (content, time) in kept.items():
        assert (folder / name).read_bytes() == content, name
        assert (folder / name).stat().st_mtime_ns == time, name
    done = run_bare(bare_code(folder), site, folder.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    check_answer(*json.loads(done.stdout.splitlines()[-1]))
    assert main(["renew", str(folder)]) == 0
    assert capsys.readouterr().out == "nothing to renew\n"


def test_the_old_code_is_run_only_when_it_is_trusted(folder):
    done = renew(folder, trust_remote_code=True, dry_run=True)
    assert len(done.checks) == 2
    assert "the old code" in done.checks[1]
    assert (folder / "modeling_maya.py").read_bytes() == (OLD / "modeling_maya.py").read_bytes()


def test_nothing_is_renewed_where_the_logits_differ(folder, tmp_path, monkeypatch):
    """Check new code that scales logits differently: the check finds the difference, and no file changes."""
    other = tmp_path / "code" / "modeling_maya.py"
    other.parent.mkdir()
    text = next(file for file in CODE if file.name == other.name).read_text()
    assert "logits = logits * scale\n" in text
    other.write_text(text.replace("logits = logits * scale\n", "logits = logits * (2 * scale)\n"))
    replaced = tuple(other if file.name == other.name else file for file in CODE)
    monkeypatch.setattr(module, "CODE", replaced)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=r"expected the logits of .*found a difference of .*nothing was renewed"
    ):
        renew(folder, trust_remote_code=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_this_package_saves_needs_no_renewing(tmp_path):
    folder = save_tiny_maya(tmp_path / "new")
    assert renew(folder).files == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "found no config.json"),
        ({"config.json": b"{", "processor_config.json": b"{}"}, "config.json: not JSON"),
        ({"config.json": b"[]", "processor_config.json": b"{}"}, "expected a mapping, found list"),
        (
            {"config.json": b'{"model_type": "llama"}', "processor_config.json": b"{}"},
            "model_type: expected 'maya', found 'llama'",
        ),
    ],
)
def test_what_is_no_maya_is_refused(files, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        changed_files(files)


def test_a_template_of_somebody_else_is_left_alone():
    files = {path.name: path.read_bytes() for path in OLD.iterdir() if path.is_file()}
    assert "chat_template.jinja" in changed_files(files)
    files["chat_template.jinja"] += b"\n"
    assert "chat_template.jinja" not in changed_files(files)


def test_places_of_a_machine_are_taken_out():
    files = {path.name: path.read_bytes() for path in OLD.iterdir() if path.is_file()}
    config = json.loads(files["config.json"])
    config["text_config"]["_name_or_path"] = "/home/someone/bases"
    files["config.json"] = json.dumps(config).encode()
    assert b"someone" not in changed_files(files)["config.json"]


# On the Hub


PUSH = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("me/old")
api.upload_folder(repo_id="me/old", folder_path=sys.argv[1])
"""


def test_a_repository_is_renewed_without_its_weights(folder, site, tmp_path):
    (folder / "expected.json").unlink()
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "hf")}

        def run(*command: str) -> str:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            return done.stdout

        run(sys.executable, "-c", PUSH, str(folder))
        before = hub.files("model", "me/old")
        commits = len(hub.repositories["model", "me/old"].commits)
        hub.requests.clear()
        maya = str(Path(sys.executable).with_name("maya"))
        assert "discussions/1" in run(maya, "renew", "me/old", "--create-pr")
        assert hub.files("model", "me/old") == before
        told = run(maya, "renew", "me/old")
        assert "compared on a small model with random weights" in told
        assert not [request for request in hub.requests if "safetensors" in request]
        after = hub.files("model", "me/old")
        assert len(hub.repositories["model", "me/old"].commits) == commits + 2
        changed = {
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        }
        assert changed == {"chat_template.jinja", "config.json"} | {file.name for file in CODE}
        assert hub.files("model", "me/old", "refs/pr/1") == after
        done = run_bare(
            bare_code("me/old"), site, tmp_path, env={**hub.environment(tmp_path / "other")}
        )
        assert done.returncode == 0, done.stderr[-3000:]
        check_answer(*json.loads(done.stdout.splitlines()[-1]))
        assert "nothing to renew" in run(maya, "renew", "me/old")
