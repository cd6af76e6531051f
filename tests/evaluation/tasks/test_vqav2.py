import json

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.scoring.vqa import accuracy
from maya_vlm.training.evaluation.tasks.vqav2 import VqaV2

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

NUMBER = datasets.Value("int64")
FEATURES = {
    "question_type": TEXT,
    "multiple_choice_answer": TEXT,
    "answers": datasets.List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": NUMBER}),
    "image_id": NUMBER,
    "answer_type": TEXT,
    "question_id": NUMBER,
    "question": TEXT,
    "image": PICTURE,
}


def row(number, kind, given):
    answers = [
        {"answer": text, "answer_confidence": "yes", "answer_id": place + 1}
        for place, text in enumerate(given)
    ]
    return {
        "question_type": "what",
        "multiple_choice_answer": "x",
        "answers": answers,
        "image_id": number // 2,
        "answer_type": kind,
        "question_id": 1000 + number,
        "question": "What is it?",
        "image": picture(number // 2),
    }


ROWS = [
    row(0, "yes/no", ["yes"] * 10),
    row(1, "number", ["2"] * 2 + ["3"] * 8),
    row(2, "other", ["a dog"] * 6 + ["cat"] * 4),
]


def write(folder, rows=ROWS, split="validation"):
    data = write_dataset(folder, FEATURES, {("default", split): rows})
    return Selection(data=str(data), split=split)


@pytest.mark.parametrize(("protocol", "unanimous"), [("official", 0.0), ("evalai", 1.0)])
def test_scores_follow_the_protocol(tmp_path, protocol, unanimous):
    task = VqaV2(protocol)
    loaded = task.load(write(tmp_path))
    assert loaded.requests[0].text == (
        "What is it?\nAnswer the question using a single word or phrase."
    )
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 3)
    scored = answered(task, loaded, ["Yes", "two", "the dog"])
    two = accuracy("two", ["2"] * 2 + ["3"] * 8, protocol)
    assert 0.6 <= two < 0.7
    assert values(task, scored, "accuracy") == {
        "yes_no": unanimous,
        "number": pytest.approx(two),
        "other": 1.0,
        "all": pytest.approx((unanimous + two + 1) / 3),
    }
    assert [one.score.parsed for one in scored][1:] == ["2", "dog"]


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"row 0: answers: expected a list of annotators' answers, found \[\]"
    ):
        VqaV2().load(write(tmp_path / "a", [row(0, "other", [])]))
    with pytest.raises(ValueError, match=r"row 0: answer_type: expected one of .*, found 'what'"):
        VqaV2().load(write(tmp_path / "c", [row(0, "what", ["x"] * 10)]))
    bare = [{name: one[name] for name in one if name != "answer_type"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no answer_type: use the files of lmms-lab/VQAv2"):
        VqaV2().load(write(tmp_path / "b", bare))


@pytest.mark.parametrize("kind", [None, "other"])
def test_a_split_without_answers_is_asked_for_the_server(tmp_path, kind):
    rows = [row(number, kind, []) | {"answers": None} for number in range(3)]
    task = VqaV2()
    loaded = task.load(write(tmp_path, rows, "testdev"))
    scored = answered(task, loaded, ["Yes", "The Dog's", ""])
    assert values(task, scored, "accuracy") == {}
    assert [one.score.unparsable for one in scored] == [False, False, True]
    (file,) = task.export(scored, tmp_path)
    assert file.name == "vqav2.json"
    assert json.loads(file.read_text()) == [
        {"question_id": 1000, "answer": "yes"},
        {"question_id": 1001, "answer": "dog 's"},
        {"question_id": 1002, "answer": ""},
    ]
    (file,) = VqaV2("evalai").export(scored, tmp_path)
    assert file.name == "vqav2:evalai.json"
