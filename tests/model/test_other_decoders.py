"""Decoders of other families: trained with their own chat template, their answers end."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from maya_vlm.training.inference.chat import chat
from maya_vlm.training.inference.generation import Question, answer
from maya_vlm.training.inference.load import load
from maya_vlm.training.recipe import load_recipe
from maya_vlm.training.run.train import train
from modeling_maya import MayaForConditionalGeneration
from processing_maya import MayaProcessor
from tests.helpers.tiny_decoders import FAMILIES, save_decoder

from ..run.tiny_run import make_bases, make_data, write

ANSWERS = ("a red boat", "the lake")


def make_recipe(folder: Path, family: str, steps: int, **model) -> dict:
    """Return a recipe of both stages on two images, for a decoder of a family."""
    vision, _ = make_bases(folder / "bases")
    language = save_decoder(folder / "bases" / family, family)
    data = make_data(folder / "data", images=2, languages=("en",))
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for row, said in zip(rows, ANSWERS, strict=True):
        row["messages"][1]["content"] = said
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    everything = [
        {"pattern": "vision_tower", "rate": "frozen"},
        {"pattern": ".*", "rate": 0.01},
    ]
    stage = {"batch_size": 2, "data": [{"path": str(data)}], "train": everything}
    captions = {**stage["data"][0], "chat_template": "plain"}
    image_token = FAMILIES[family].image_token
    return {
        "output_dir": str(folder / "run"),
        "model": {
            "vision_tower": str(vision),
            "language_model": str(language),
            "chat_template": "own",
            **({"image_token": image_token} if image_token else {}),
            **model,
        },
        "stages": [
            {**stage, "name": "pretrain", "data": [captions], "args": {"max_steps": 2}},
            {**stage, "name": "finetune", "args": {"max_steps": steps, "warmup_steps": 5}},
        ],
    }


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def trained(request, tmp_path_factory) -> tuple[str, Path]:
    """Return a family, and the folder of a run that has memorized two images."""
    folder = tmp_path_factory.mktemp(request.param)
    path = write(make_recipe(folder, request.param, 70), folder / "recipe.yaml")
    return request.param, train(str(path))


def test_the_saved_folder_knows_where_answers_end(trained):
    name, folder = trained
    family = FAMILIES[name]
    processor = MayaProcessor.from_pretrained(folder)
    model = MayaForConditionalGeneration.from_pretrained(folder)
    tokenizer = processor.tokenizer
    end = tokenizer.convert_tokens_to_ids(family.end)
    ends = model.generation_config.eos_token_id
    assert end in (ends if isinstance(ends, list) else [ends])
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id is not None
    assert processor.image_token == (family.image_token or "<image>")
    assert (
        model.config.image_token_id
        == processor.image_token_id
        < model.config.text_config.vocab_size
    )
    encoded = processor.encode_conversation(
        [{"role": "user", "content": "What is shown?"}, {"role": "assistant", "content": "a boat"}],
        1,
    )
    learned = [t for t, m in zip(encoded["input_ids"], encoded["assistant_mask"], strict=True) if m]
    assert learned[-1] == end
    assert encoded["input_ids"].count(processor.image_token_id) == processor.image_seq_length


def test_learned_by_heart_answers_end(trained, capsys):
    name, folder = trained
    model, processor = load(str(folder))
    files = [folder.parent / "data" / "pictures" / f"{i}.png" for i in range(2)]
    images = [Image.open(file) for file in files]
    question = "What is shown?"
    asked = [Question((i, question), 40) for i in range(2)]
    # A thinking template puts an empty thought before the answer.
    spoken = [
        re.sub(r"<think>\s*</think>", "", found.text).strip()
        for found in answer(model, processor, images, asked)
    ]
    assert tuple(spoken) == ANSWERS
    assert all(found.ended for found in answer(model, processor, images, asked))
    content = [{"type": "image", "image": images[0]}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
    assert tokens[-1] == processor.tokenizer.convert_tokens_to_ids(FAMILIES[name].end)
    assert len(tokens) < inputs["input_ids"].shape[1] + 40
    for file, said in zip(files, ANSWERS, strict=True):
        assert chat(str(folder), str(file), question, max_new_tokens=40).endswith(said)
    capsys.readouterr()


def test_stages_continue_with_the_template_of_the_first(trained, tmp_path):
    """A finished folder as checkpoint: its own template is the template of its training."""
    _, folder = trained
    recipe = load_recipe(folder / "recipe.yaml")
    made = {
        "output_dir": str(tmp_path / "run"),
        "model": {"checkpoint": str(folder), "chat_template": "own"},
        "stages": [
            {
                "name": "more",
                "batch_size": 2,
                "data": [{"path": recipe.stages[1].data[0].path}],
                "train": [{"pattern": ".*", "rate": 0.0001}],
                "args": {"max_steps": 1},
            }
        ],
    }
    again = train(str(write(made, tmp_path / "r.yaml")))
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert (again / "chat_template.jinja").read_text(encoding="utf-8") == template
    ends = [json.loads((f / "generation_config.json").read_text()) for f in (folder, again)]
    assert ends[0]["eos_token_id"] == ends[1]["eos_token_id"]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_other_templates_are_refused_with_the_choices_that_fit(name, tmp_path):
    recipe = make_recipe(tmp_path, name, 1)
    for wrong in ("maya", "aya"):
        recipe["model"]["chat_template"] = wrong
        recipe["stages"][1]["data"][0].pop("chat_template", None)
        with pytest.raises(
            ValueError,
            match=rf"chat_template {wrong}: it writes <\|.*_TOKEN\|>.*: use .*own \(the decoder's\)",
        ) as error:
            train(str(write(recipe, tmp_path / "r.yaml")), output_dir=str(tmp_path / wrong))
        assert "\n" not in str(error.value)
        assert not (tmp_path / wrong / "pretrain").exists()


def test_a_system_turn_that_a_template_refuses_names_the_row(tmp_path):
    recipe = make_recipe(tmp_path, "gemma", 1)
    data = Path(recipe["stages"][0]["data"][0]["path"])
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    rows[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe["stages"] = recipe["stages"][1:]
    with pytest.raises(ValueError, match=r"'1-en'.*System role not supported"):
        train(str(write(recipe, tmp_path / "r.yaml")))


def test_no_spare_row_names_the_tokens_that_could_be_taken(tmp_path):
    recipe = make_recipe(tmp_path, "llama3", 1)
    del recipe["model"]["image_token"]
    with pytest.raises(
        ValueError, match=r"no row is free for <image>: .*such as <\|reserved_special_token_0\|>$"
    ):
        train(str(write(recipe, tmp_path / "r.yaml")))
    recipe["model"]["image_token"] = "en"
    with pytest.raises(ValueError, match=r"image_token: .* found 'en', which is ordinary text"):
        train(str(write(recipe, tmp_path / "r.yaml")), output_dir=str(tmp_path / "other"))


def test_the_embedding_of_the_placeholder_is_not_read(trained):
    """A reserved token of the decoder can be the placeholder."""
    _, folder = trained
    model, processor = load(str(folder))
    row = model.get_input_embeddings().weight
    with torch.no_grad():
        row[processor.image_token_id] = float("nan")
    image = Image.new("RGB", (12, 12), (200, 30, 30))
    (found,) = answer(model, processor, [image], [Question((0, "What is shown?"), 3)])
    assert found.tokens
