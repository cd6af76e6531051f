"""Publishing to a local Hub, and loading by repository name like a new user."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maya_vlm.model_card.hub.publish import check_model, chosen_files, publish
from maya_vlm.model_card.hub.try_out import answer
from maya_vlm.training.cli import publish as cli
from tests.helpers.bare_python import make_site, run_bare
from tests.helpers.hub_server import HubServer, Repository
from tests.helpers.tiny_maya import save_tiny_maya, tiny_maya, tiny_picture

ROOT = Path(__file__).resolve().parents[3]
MINI = ROOT / "training" / "data" / "mini"


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")
    (folder / "pretrain").mkdir()
    (folder / "pretrain" / "model.safetensors").write_bytes(b"an earlier stage")
    (folder / "optimizer.pt").write_bytes(b"state")
    (folder / "answers.parquet").write_bytes(b"answers")
    return folder


SESSION = """
import json
from pathlib import Path
from datasets import Dataset, load_dataset
from maya_vlm.model_card.hub.publish import publish
from peft import LoraConfig, get_peft_model
from tests.helpers.tiny_maya import tiny_maya
from transformers import AutoModelForImageTextToText, AutoProcessor

told = {}
told["nowhere"] = publish(FOLDER, "user/dry", dry_run=True, verify=False)
told["card of a dry run"] = Path(FOLDER, "README.md").exists()
told["url"] = publish(FOLDER, "user/tiny", trust_remote_code=True)
told["branch url"] = publish(FOLDER, "user/tiny", revision="again", verify=False)
try:
    publish(FOLDER, "user/tiny", token="hf_wrong", verify=False)
except OSError as error:
    told["refused"] = str(error)
told["request"] = publish(FOLDER, "user/tiny", create_pr=True, message="Better", verify=False)
from maya_vlm.model_card.hub import publish as module
publish(FOLDER, "user/base", licence="cc-by-nc-4.0", verify=False)
# The Hub on this machine answers nothing about cards.
module.licence_of = lambda name, token: {"user/base": "cc-by-nc-4.0"}.get(name)
base = AutoModelForImageTextToText.from_pretrained("user/base")
get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained("adapter")
told["form"] = Path("adapter", "README.md").read_text()
try:
    publish("adapter", "user/adapter", licence="mit")
except ValueError as error:
    told["other licence"] = str(error)
told["adapter"] = publish("adapter", "user/adapter")
answers = iter([[1, 2], [1, 3]])
module.answer = lambda *args: next(answers)
try:
    publish(FOLDER, "user/other")
except OSError as error:
    told["other answer"] = str(error)

model, processor = tiny_maya()
model.push_to_hub("user/pushed")
processor.push_to_hub("user/pushed")
again = AutoModelForImageTextToText.from_pretrained("user/pushed")
own, loaded = model.state_dict(), again.state_dict()
told["same weights"] = own.keys() == loaded.keys() and all(
    bool((own[name] == loaded[name]).all()) for name in own
)
told["image_seq_length"] = AutoProcessor.from_pretrained("user/pushed").image_seq_length

told["data url"] = publish(MINI, "user/mini", kind="dataset")
told["hindi"] = next(iter(load_dataset("user/mini", "instruct_hi", split="test", streaming=True)))
pictures = load_dataset("user/mini", "images", split="test", streaming=True)
told["picture"] = next(iter(pictures))["picture"].size
for streaming in (False, True):
    rows = load_dataset("user/mini", "messages", split="test", streaming=streaming)
    told[f"messages, streaming {streaming}"] = [p.size for p in next(iter(rows))["images"]]
urdu = load_dataset("user/mini", "ur", split="validation")
told["urdu"] = [len(urdu), urdu[0]["lang"]]
Dataset.from_list([{"a": 1}]).push_to_hub("user/rows", "one")
Dataset.from_list([{"a": 2}]).push_to_hub("user/rows", "two")
told["two"] = load_dataset("user/rows", "two", split="train")[0]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(hub, folder, tmp_path_factory) -> dict:
    """Return the results of one process that uses the local Hub, started after an older push to user/tiny."""
    older = Repository("model", "user/tiny")
    old = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"}
    older.commit("main", old, "older")
    hub.repositories["model", "user/tiny"] = older
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-c", f"FOLDER, MINI = {str(folder)!r}, {str(MINI)!r}\n" + SESSION],
        cwd=home,
        env={
            **os.environ,
            **hub.environment(home),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {**json.loads(done.stdout.splitlines()[-1]), "output": done.stdout}


def test_publish_sends_one_commit_and_says_where(hub, folder, told):
    assert told["url"] == f"{hub.url}/user/tiny"
    assert told["branch url"] == f"{hub.url}/user/tiny/tree/again"
    assert "left out: answers.parquet, optimizer.pt, pretrain/" in told["output"]
    files = hub.files("model", "user/tiny")
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not [name for name in files if name.endswith(".pt") or name.startswith("pretrain")]
    messages = ["older", "Publish tiny", "Publish tiny", "Better"]
    assert hub.repositories["model", "user/tiny"].messages == messages
    assert f"the pushed model answers as {folder} does" in told["output"]
    assert hub.files("model", "user/tiny", "again")["config.json"] == files["config.json"]


def test_a_pull_request_leaves_main_alone(hub, told):
    assert told["request"] == f"{hub.url}/user/tiny/discussions/1"
    branches = hub.repositories["model", "user/tiny"].branches
    assert branches["refs/pr/1"] != branches["main"]


def test_a_dry_run_writes_and_sends_nothing(hub, told):
    assert ("model", "user/dry") not in hub.repositories
    assert told["nowhere"] == "nowhere: nothing was sent"
    assert not told["card of a dry run"]
    assert "would send 14 files" in told["output"]
    assert re.search(r"  model.safetensors  [\d,]+ bytes", told["output"])
    # The card is shown, and written nowhere.
    assert "\n  # dry\n" in told["output"]


def test_a_pushed_model_that_answers_otherwise_is_told(told):
    assert re.fullmatch(
        r"model user/other at commit \w+: expected the answer of .*, tokens \[1, 2\], found \[1, 3\]: do not "
        "use this commit",
        told["other answer"],
    )


def test_the_base_of_an_adapter_decides_about_its_licence(hub, told):
    assert told["other licence"].startswith(
        "licence: expected cc-by-nc-4.0 or another non-commercial licence, because the base user/base has"
    )
    # A card replaces peft's empty template.
    assert "# Model Card for Model ID" in told["form"]
    card = hub.files("model", "user/adapter")["README.md"].decode()
    assert "license: cc-by-nc-4.0" in card
    assert "base_model_relation: adapter" in card
    assert "the pushed model answers as adapter does" in told["output"]


def test_code_of_the_folder_that_does_not_run_is_found_before_sending(tmp_path):
    folder = save_tiny_maya(tmp_path / "tiny")
    code = folder / "modeling_maya.py"
    code.write_text(code.read_text() + "\nraise RuntimeError('an old module')\n")
    with pytest.raises(ValueError, match="tiny does not load: an old module"):
        answer(str(folder), trust_remote_code=True)
    # The installed code differs from the folder's code.
    assert len(answer(str(folder))) > 0


def test_weights_of_an_earlier_push_do_not_linger(hub, told):
    names = set(hub.files("model", "user/tiny"))
    assert "model-00001-of-00002.safetensors" not in names
    assert {"notes.txt", "model.safetensors"} <= names


def test_what_the_hub_answers_is_one_line(told):
    assert "the Hub refused model user/tiny" in told["refused"]
    assert "credentials" in told["refused"]
    assert "\n" not in told["refused"]


def test_push_to_hub_of_model_and_processor_loads_back(hub, told):
    assert told["same weights"]
    assert told["image_seq_length"] == 9
    names = set(hub.files("model", "user/pushed"))
    assert {"modeling_maya.py", "configuration_maya.py", "processing_maya.py"} <= names


def test_datasets_load_by_config_and_stream(hub, told):
    assert told["data url"] == f"{hub.url}/datasets/user/mini"
    assert told["hindi"]["lang"] == "hi"
    assert told["picture"] == [64, 64]
    assert told["messages, streaming False"] == told["messages, streaming True"] == [[64, 64]]
    assert told["urdu"] == [1445, "ur"]
    assert told["two"] == {"a": 2}
    card = hub.files("dataset", "user/mini")["README.md"]
    assert card == (MINI / "README.md").read_bytes()


def test_lines_of_the_card_answer_by_name(hub, told, tmp_path):
    """Run the code in the card with only torch, transformers and pillow installed."""
    card = hub.files("model", "user/tiny")["README.md"].decode()
    snippets = [part.split("```")[0] for part in card.split("```python\n")[1:]]
    assert len(snippets) == 3
    tiny_picture(3).save(tmp_path / "picture.png")
    site = make_site(tmp_path / "site")
    done = run_bare("\n".join(snippets), site, tmp_path, env=hub.environment(tmp_path / "hf"))
    assert done.returncode == 0, done.stderr[-4000:]
    model, processor = tiny_maya()
    content = [
        {"type": "image", "path": str(tmp_path / "picture.png")},
        {"type": "text", "text": "What is this?"},
    ]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    tokens = model.generate(**inputs, max_new_tokens=32)
    expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    # The same answer from `generate`, from a stream and from a pipeline.
    assert done.stdout.split() == expected.split() * 3 != []


# The following tests send nothing.


def test_a_card_of_ones_own_is_kept(tmp_path):
    from maya_vlm.model_card.hub.publish import _write_card

    folder = save_tiny_maya(tmp_path / "tiny")
    _write_card(folder, "user/tiny")
    written = (folder / "README.md").read_text()
    (folder / "README.md").write_text(written.replace("not been evaluated", "changed"))
    _write_card(folder, "user/tiny")
    assert (folder / "README.md").read_text() == written
    (folder / "README.md").write_text("# My own\n")
    _write_card(folder, "user/tiny")
    assert (folder / "README.md").read_text() == "# My own\n"


def test_code_that_nothing_has_run_is_not_sent(tmp_path):
    folder = save_tiny_maya(tmp_path / "tiny")
    code = folder / "modeling_maya.py"
    code.write_text(code.read_text() + "\nraise RuntimeError('an old module')\n")
    with pytest.raises(
        ValueError, match=r"modeling_maya\.py: expected the code of the installed"
    ) as told:
        publish(folder, "user/tiny")
    assert "\n" not in str(told.value)
    assert not (folder / "README.md").exists()


@pytest.mark.parametrize("option", [["--dry-run"], ["--create-pr"], ["--license", "mit"]])
def test_options_of_models_are_refused_for_a_space(option):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    arguments = parser.parse_args(["user/tiny", "user/space", "--kind", "space", *option])
    with pytest.raises(ValueError, match=f"{option[0]}: expected a model or a dataset"):
        cli.run(arguments)


def test_other_files_and_pickles_are_left_out(folder):
    chosen, left_out = chosen_files(folder, "model")
    assert {"answers.parquet", "optimizer.pt", "pretrain/"} <= set(left_out)
    assert not {path.name for path in chosen} & set(left_out)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"folder": "/no/such/folder"}, FileNotFoundError, "no folder"),
        ({"repo_id": "just-a-name"}, ValueError, "expected 'user/name'"),
        ({"repo_id": "user/a b"}, ValueError, "expected 'user/name'"),
        ({"kind": "dataset", "licence": "mit"}, ValueError, "licence: only for models"),
        ({"kind": "space"}, ValueError, "expected 'model' or 'dataset'"),
        ({"kind": "dataset", "folder": "tests"}, FileNotFoundError, r"no \.parquet files"),
        ({"folder": "tests"}, FileNotFoundError, "not a model folder"),
    ],
)
def test_refuses_bad_arguments_before_sending(folder, monkeypatch, arguments, error, words):
    monkeypatch.chdir(ROOT)
    with pytest.raises(error, match=words) as caught:
        publish(**{"folder": folder, "repo_id": "user/tiny", **arguments})
    assert "\n" not in str(caught.value)


def damage_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "llama"
    (folder / "config.json").write_text(json.dumps(config))


def damage_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_processor(folder):
    content = json.loads((folder / "processor_config.json").read_text())
    content["image_seq_length"] = 5
    (folder / "processor_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_config, "model_type is 'llama', expected 'maya'"),
        (damage_weights, "does not load: .*missing"),
        (cut_weights, "does not load"),
        (only_pickle, "no .safetensors weights; pickles are not published"),
        (other_processor, "image_seq_length: its processor has 5, its config.json 9"),
        (
            lambda folder: (folder / "modeling_maya.py").unlink(),
            r"lacks its code \(modeling_maya.py\)",
        ),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "config.json").write_text("{"), ": not JSON: "),
    ],
)
def test_refuses_what_does_not_load(tmp_path, damage, words):
    folder = save_tiny_maya(tmp_path / "tiny")
    check_model(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        publish(folder, "user/tiny")
    assert "\n" not in str(caught.value)


def test_refuses_a_dataset_cut_short(tmp_path):
    whole = (MINI / "images" / "twemoji.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole parquet file"):
        publish(tmp_path, "user/data", kind="dataset")
