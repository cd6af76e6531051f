"""Local models as judges: text models, and models of images and text."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from maya_vlm.training.evaluation.judges.judging import Judging
from maya_vlm.training.evaluation.judges.local import LocalJudge
from maya_vlm.training.evaluation.judges.plan import JudgePlan
from maya_vlm.training.evaluation.judges.rubric import Case, Rubric
from maya_vlm.training.inference.generation import Question, answer
from maya_vlm.training.inference.load import load
from tests.helpers.tiny_decoders import save_decoder
from tests.helpers.tiny_llava import save_tiny_llava
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

ANY = Rubric(
    "any", 1, "made up", "Is {this} right?", lambda reply: reply or "-", "text", max_tokens=5
)


class Pictures:
    def load(self, key: str) -> Image.Image:
        return tiny_picture(int(key))


def case(this: str = "a cat", pictures: tuple[str, ...] = (), rubric: Rubric = ANY) -> Case:
    return Case(rubric, {"this": this}, pictures, Pictures())


def replies(judge: LocalJudge, *cases: Case) -> list:
    found = {}
    judge.ask(cases, found.__setitem__)
    return [found[place] for place in range(len(cases))]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return save_decoder(tmp_path_factory.mktemp("judge") / "texts", "qwen3")


def test_a_model_of_texts_replies_as_its_chat_template_and_generate_do(texts):
    judge = LocalJudge(str(texts))
    first, second = replies(judge, case(), case("a dog"))
    tokenizer = AutoTokenizer.from_pretrained(texts)
    network = AutoModelForCausalLM.from_pretrained(texts, dtype=torch.float32).eval()
    for reply, this in ((first, "a cat"), (second, "a dog")):
        turns = [{"role": "user", "content": f"Is {this} right?"}]
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = network.generate(**ids, max_new_tokens=5, do_sample=False)
        known = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert reply.text == known.strip()
        assert reply.usage["prompt_tokens"] == ids["input_ids"].shape[1]
    assert judge.id == "texts"
    assert len(judge.version) == 64


def test_gradings_at_a_temperature_differ_and_come_again(texts):
    warm = replace(ANY, temperature=2.0)
    shown = [replace(case(rubric=warm), sample=sample) for sample in range(4)]
    judge = LocalJudge(str(texts))
    first = [reply.text for reply in replies(judge, *shown)]
    assert len(set(first)) > 1
    assert [reply.text for reply in replies(judge, *shown)] == first


def test_a_model_of_texts_is_not_shown_a_picture(texts, tmp_path):
    with pytest.raises(ValueError, match="judge texts: expected a model of images and text"):
        Judging(LocalJudge(str(texts)), tmp_path / "j.jsonl")([case(pictures=("1",))], "test")


@pytest.mark.parametrize("save", [save_tiny_maya, save_tiny_llava])
def test_a_model_of_images_and_texts_sees_the_picture(save, tmp_path):
    folder = save(tmp_path / "judge")
    judge = LocalJudge(str(folder))
    found = replies(judge, case(pictures=("1",)), case(pictures=("2",)), case())
    network, processor = load(str(folder))
    pictures = [tiny_picture(1), tiny_picture(2)]
    text = "Is a cat right?"
    known = answer(
        network,
        processor,
        pictures,
        [Question((0, text), 5), Question((1, text), 5), Question((text,), 5)],
    )
    assert [reply.text for reply in found] == [one.text for one in known]


def test_a_template_without_a_system_turn_is_told_its_text_before_the_question(tmp_path):
    judge = LocalJudge(str(save_decoder(tmp_path / "texts", "gemma")))
    shown = replace(ANY, system="Be fair.")
    judge.processor.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    (reply,) = replies(judge, case(rubric=shown))
    alone = replace(ANY, template="Be fair.\n\nIs {this} right?")
    assert replies(judge, case(rubric=alone)) == [reply]


def test_a_judgement_is_made_once(texts, tmp_path):
    judging = JudgePlan(str(texts)).open(tmp_path)
    first = judging([case(), case("a dog")], "test")
    assert judging.calls == 2
    again = JudgePlan(str(texts)).open(tmp_path)
    assert again([case(), case("a dog")], "test") == first
    assert again.calls == 0


def test_what_is_no_judge_is_one_line(texts, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        JudgePlan(str(tmp_path / "none")).open(tmp_path)
    with pytest.raises(ValueError, match="--judge-model: expected only with a server's address"):
        JudgePlan(str(texts), "gpt").open(tmp_path)
    with pytest.raises(ValueError, match="expected the model's name on the server, found none"):
        JudgePlan("http://127.0.0.1:9/v1").open(tmp_path)
    (texts / "chat_template.jinja").rename(texts / "away")
    with pytest.raises(ValueError, match="expected a chat model, found no chat template"):
        JudgePlan(str(texts)).open(tmp_path)
    (texts / "away").rename(texts / "chat_template.jinja")
