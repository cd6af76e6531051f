"""Models of other families: run with their own processor and `generate`, or refused in one line."""

import json
import re

import pytest
import torch

from maya_vlm.training.evaluation import run
from maya_vlm.training.evaluation.records import language_groups
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.inference.generation import Question, answer
from maya_vlm.training.inference.load import load
from tests.helpers.tiny_llava import save_tiny_llava
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("model") / "llava")


def test_answers_are_those_of_generate_one_by_one(llava):
    network, processor = load(str(llava))
    images = [tiny_picture(i) for i in range(3)]
    texts = ("What is this?", "How many of them are there, and why?", "Que vois-tu ?")
    questions = [Question((i, text), 5) for text in texts for i in range(3)]
    questions += [Question((text,), 5) for text in texts] + [Question((0, texts[0]), 2)]
    questions += [Question((i, "and", 1, text), 5) for text in texts for i in (0, 2)]
    questions += [Question((i, texts[0]), 5, system="You are brief.") for i in range(2)]
    said = answer(network, processor, images, questions[:2])
    questions += [
        Question((i, texts[0]), 5, stop=(said[i].text[2:4], "never said")) for i in range(2)
    ]
    found = answer(network, processor, images, questions, batch_size=4)
    assert all(given.ended and given.tokens < 5 for given in found[-2:])
    for question, given in zip(questions, found, strict=True):
        turns, places = question.turns(), iter(question.images)
        for part in turns[-1]["content"]:
            if part["type"] == "image":
                part["image"] = images[next(places)]
        inputs = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            tokens = network.generate(
                **inputs, max_new_tokens=question.max_new_tokens, do_sample=False
            )[0, inputs["input_ids"].shape[1] :]
        text = processor.decode(tokens, skip_special_tokens=True)
        assert given.text == text.partition(question.stop[0] if question.stop else "\0")[0].strip()
        assert given.ended or given.tokens == question.max_new_tokens


def test_it_is_evaluated_as_maya_is(llava, tmp_path):
    results = evaluate(
        str(llava), output=tmp_path, limit=3, baseline_items=2, languages=["en", "hi"], sheet=False
    )
    runs = {row["run"] for row in results["rows"]}
    assert runs == {"model", "blind", "shuffled", "chance"}
    assert results["model"]["model_type"] == "llava"
    assert results["model"]["image_tokens"] is None
    assert (tmp_path / "results.json").is_file()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda f: (f / "model.safetensors").write_bytes(b"x" * 100),
            "expected a safetensors file",
        ),
        (lambda f: (f / "chat_template.jinja").write_text("{% for"), "cannot be loaded"),
        (lambda f: (f / "chat_template.jinja").unlink(), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "processor_config.json").write_text("[]"), "cannot be loaded"),
    ],
)
def test_a_damaged_one_is_one_line(tmp_path, damage, words):
    folder = save_tiny_llava(tmp_path / "llava")
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        evaluate(str(folder), output=tmp_path / "out", limit=2, languages=["en"], sheet=False)
    assert str(folder) in str(error.value)
    assert str(error.value).isprintable()
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ before the work


@pytest.fixture
def maya(tmp_path):
    return save_tiny_maya(tmp_path / "maya")


@pytest.fixture
def nothing_loaded(monkeypatch):
    def load(*args):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(run, "load", load)


def test_an_output_that_cannot_be_written(maya, tmp_path, nothing_loaded):
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "out"):
        with pytest.raises(OSError, match=r"--output .*expected a folder, found the file .*file"):
            evaluate(str(maya), output=place, limit=2, sheet=False)


def test_too_few_pictures_to_shuffle(maya, tmp_path, nothing_loaded):
    with pytest.raises(ValueError, match="shuffled"):
        evaluate(str(maya), output=tmp_path / "out", limit=1, sheet=False)
    assert not (tmp_path / "out").exists()


def test_cut_weights_before_the_data_are_read(maya, tmp_path, nothing_loaded):
    file = maya / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors: cut short"):
        evaluate(str(maya), data=str(tmp_path / "nowhere"), sheet=False)


@pytest.mark.parametrize(
    "text", ["[1]", "stages: 3", "stages: [{name: pretrain}]", "{", "a: [" * 99]
)
def test_a_recipe_that_is_none_of_ours_means_no_groups(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    assert language_groups(str(tmp_path), ["en"]) == {"all": ["en"]}


def test_ids_beyond_the_embeddings(maya):
    file = maya / "generation_config.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({**found, "eos_token_id": 10**6}))
    with pytest.raises(ValueError, match=r"eos_token_id: expected a token id below"):
        load(str(maya))
