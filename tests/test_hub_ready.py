"""A saved folder is all a stranger needs: loaded where this package is not installed."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from .helpers.bare_python import make_site, run_bare
from .helpers.tiny_maya import save_tiny_maya, tiny_maya, tiny_picture

QUESTION = "What is shown in the picture?"

LOAD = """
import importlib.util, json, sys
for name in ("modeling_maya", "processing_maya", "training", "datasets", "trl", "peft"):
    assert importlib.util.find_spec(name) is None, name
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
folder = sys_folder
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
model = AutoModelForImageTextToText.from_pretrained(folder, **trust)
headless = AutoModel.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
messages = [{"role": "user", "content": [
    {"type": "image", "path": "picture.png"},
    {"type": "text", "text": QUESTION},
]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_maya(tmp_path_factory.mktemp("saved") / "maya")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return make_site(tmp_path_factory.mktemp("bare") / "site")


def code(folder: Path, rest: str = "") -> str:
    return f"QUESTION = {QUESTION!r}\nsys_folder = {str(folder)!r}\n" + LOAD + rest


def finished(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    """A working directory that is not the checkout, with a picture in it."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    tiny_picture(3).save(elsewhere / "picture.png")
    return elsewhere / "picture.png"


@pytest.fixture(scope="module")
def theirs(folder, site, picture) -> dict:
    """What a stranger sees who loads the folder, and then saves it again."""
    rest = f"""
from transformers import pipeline
pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
said = pipe(text=messages, max_new_tokens=12, do_sample=False, return_full_text=False)
again = {str(picture.parent / "again")!r}
model.save_pretrained(again)
processor.save_pretrained(again)
parts = (config, model, headless, processor)
print(json.dumps({{
    "classes": [type(part).__name__ for part in parts],
    "modules": [type(part).__module__.split(".")[0] for part in parts],
    "ids": inputs["input_ids"].tolist(),
    "pixels": inputs["pixel_values"].double().sum().item(),
    "tokens": tokens.tolist(),
    "logits": model(**inputs).logits[0, -1, :5].tolist(),
    "hidden": headless(**inputs).last_hidden_state[0, -1, :5].tolist(),
    "said": said[0]["generated_text"],
}}))
"""
    done = finished(run_bare(code(folder, rest), site, picture.parent))
    return json.loads(done.splitlines()[-1])


def test_strangers_get_the_packages_answer(theirs, picture):
    assert theirs["classes"] == [
        "MayaConfig",
        "MayaForConditionalGeneration",
        "MayaModel",
        "MayaProcessor",
    ]
    assert set(theirs["modules"]) == {"transformers_modules"}
    model, processor = tiny_maya()
    content = [{"type": "image", "path": str(picture)}, {"type": "text", "text": QUESTION}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert theirs["ids"] == inputs["input_ids"].tolist()
    assert theirs["pixels"] == pytest.approx(inputs["pixel_values"].double().sum().item())
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        logits = model(**inputs).logits[0, -1]
        hidden = model.model(**inputs).last_hidden_state[0, -1, :5].tolist()
        # A model that ignored the picture would agree too: check that this one does not.
        other = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits[0, -1]
    assert theirs["tokens"] == tokens.tolist()
    assert theirs["logits"] == pytest.approx(logits[:5].tolist(), abs=1e-5)
    assert theirs["hidden"] == pytest.approx(hidden, abs=1e-5)
    assert not torch.allclose(other, logits, atol=1e-3)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    assert theirs["said"] == processor.decode(new, skip_special_tokens=True)


def test_saved_again_it_loads_and_untrusted_code_is_refused_without_a_question(
    theirs, folder, site, picture
):
    again = picture.parent / "again"
    assert {path.name for path in again.glob("*.py")} == {path.name for path in folder.glob("*.py")}
    rest = """
try:
    AutoModelForImageTextToText.from_pretrained(folder)
    refused = None
except ValueError as error:
    refused = str(error)
print("\\n" + json.dumps([tokens.tolist(), refused]))
"""
    done = finished(run_bare(code(again, rest), site, picture.parent))
    tokens, refused = json.loads(done.splitlines()[-1])
    assert tokens == theirs["tokens"]
    assert refused is not None
    assert "trust_remote_code" in refused


def test_saved_folder_has_no_pickle_and_no_dangling_import(folder):
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "configuration_maya.py",
        "modeling_maya.py",
        "processing_maya.py",
        "image_processing_maya.py",
    } <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    config = json.loads((folder / "config.json").read_text())
    assert set(config["auto_map"]) >= {"AutoConfig", "AutoModel", "AutoModelForImageTextToText"}
    for target in config["auto_map"].values():
        assert (folder / f"{target.split('.')[0]}.py").is_file()
