"""A saved folder is all a stranger needs: loaded where this package is not installed."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from .bare_python import make_site, run_bare
from .tiny_maya import save_tiny_maya, tiny_maya, tiny_picture

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


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A working directory that is not the checkout, with a picture in it."""
    tiny_picture(3).save(tmp_path / "picture.png")
    return tmp_path


def code(folder: Path, rest: str = "") -> str:
    return f"QUESTION = {QUESTION!r}\nsys_folder = {str(folder)!r}\n" + LOAD + rest


def finished(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_strangers_get_the_packages_answer(folder, site, elsewhere):
    out = finished(
        run_bare(
            code(
                folder,
                """
print(json.dumps({
    "classes": [type(x).__name__ for x in (config, model, headless, processor)],
    "modules": [type(x).__module__.split(".")[0] for x in (config, model, headless, processor)],
    "ids": inputs["input_ids"].tolist(),
    "pixels": inputs["pixel_values"].double().sum().item(),
    "tokens": tokens.tolist(),
    "logits": model(**inputs).logits[0, -1, :5].tolist(),
    "hidden": headless(**inputs).last_hidden_state[0, -1, :5].tolist(),
}))
""",
            ),
            site,
            elsewhere,
        )
    )
    theirs = json.loads(out.splitlines()[-1])
    assert theirs["classes"] == [
        "MayaConfig",
        "MayaForConditionalGeneration",
        "MayaModel",
        "MayaProcessor",
    ]
    assert set(theirs["modules"]) == {"transformers_modules"}

    model, processor = tiny_maya()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(elsewhere / "picture.png")},
                {"type": "text", "text": QUESTION},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert theirs["ids"] == inputs["input_ids"].tolist()
    assert theirs["pixels"] == pytest.approx(inputs["pixel_values"].double().sum().item())
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        assert theirs["tokens"] == tokens.tolist()
        assert theirs["logits"] == pytest.approx(
            model(**inputs).logits[0, -1, :5].tolist(), abs=1e-5
        )
        hidden = model.model(**inputs).last_hidden_state[0, -1, :5].tolist()
    assert theirs["hidden"] == pytest.approx(hidden, abs=1e-5)
    # A model that ignored the picture would agree too: check that it does not.
    other = dict(inputs, pixel_values=inputs["pixel_values"].flip(-1) * -1)
    assert not torch.allclose(
        model(**other).logits[0, -1], model(**inputs).logits[0, -1], atol=1e-3
    )


def test_pipeline_answers_and_what_is_saved_again_loads(folder, site, elsewhere):
    again = elsewhere / "again"
    first = finished(
        run_bare(
            code(
                folder,
                f"""
from transformers import pipeline
pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
said = pipe(text=messages, max_new_tokens=12, do_sample=False, return_full_text=False)
model.save_pretrained({str(again)!r})
processor.save_pretrained({str(again)!r})
new = processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
print(json.dumps([said[0]["generated_text"], new, tokens.tolist()]))
""",
            ),
            site,
            elsewhere,
        )
    )
    said, direct, tokens = json.loads(first.splitlines()[-1])
    assert said == direct
    assert {path.name for path in again.glob("*.py")} == {path.name for path in folder.glob("*.py")}
    second = finished(run_bare(code(again, "print(json.dumps(tokens.tolist()))"), site, elsewhere))
    assert json.loads(second.splitlines()[-1]) == tokens


def test_untrusted_code_is_refused_without_a_question(folder, site, elsewhere):
    done = run_bare(
        f"""
from transformers import AutoModelForImageTextToText
AutoModelForImageTextToText.from_pretrained({str(folder)!r})
""",
        site,
        elsewhere,
    )
    assert done.returncode != 0
    assert "trust_remote_code" in done.stderr


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
