import json
from dataclasses import replace

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.vizwiz import VizWiz

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

FEATURES = {
    "question_id": TEXT,
    "image": PICTURE,
    "question": TEXT,
    "answers": datasets.List(TEXT),
    "category": TEXT,
}


def row(number, question, given, category):
    return {
        "question_id": f"VizWiz_val_{number:08}",
        "image": picture(number),
        "question": question,
        "answers": given,
        "category": category,
    }


ROWS = [
    row(0, "Can you tell me what this iPod says?", ["unanswerable"] * 10, "unanswerable"),
    row(1, "Is it on?", ["yes"] * 8 + ["unsuitable"] * 2, "yes/no"),
    row(2, "What is this?", ["basil leaves"] * 9 + ["basil"], "other"),
]


def write(folder, rows=ROWS, split="val"):
    splits = {("default", split): rows}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)))


def test_questions_are_asked_as_each_protocol_asks(tmp_path):
    suffix = (
        "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
        "\nAnswer the question using a single word or phrase."
    )
    selection = write(tmp_path)
    loaded = VizWiz().load(selection)
    assert loaded.requests[0].text == f"Can you tell me what this iPod says?{suffix}"
    assert (loaded.data["images"], loaded.data["requests"]) == (3, 3)
    assert loaded.pictures.load("VizWiz_val_00000002").getpixel((0, 0)) == (2, 90, 200)
    other = VizWiz("lmms_eval").load(selection)
    assert other.requests[0].text == f"Can you tell me what this ipod says?{suffix}"


def test_kinds_have_their_own_figures(tmp_path):
    task = VizWiz()
    scored = answered(task, task.load(write(tmp_path)), ["Unanswerable", "Yes.", "basil"])
    # The annotator who wrote basil has no other equal answer; the nine others have one.
    assert values(task, scored, "accuracy") == {
        "unanswerable": 1.0,
        "yes_no": 1.0,
        "other": pytest.approx(0.3),
        "all": pytest.approx(2.3 / 3),
    }


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"row 0: answers: expected a list of annotators' answers, found None"
    ):
        VizWiz().load(write(tmp_path / "a", [ROWS[0] | {"answers": None, "category": "other"}]))
    with pytest.raises(ValueError, match=r"row 0: category: expected one of .*, found 'x'"):
        VizWiz().load(write(tmp_path / "c", [ROWS[0] | {"category": "x"}]))
    bare = [{name: one[name] for name in one if name != "category"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no category: use the files of lmms-lab/VizWiz"):
        VizWiz().load(write(tmp_path / "b", bare))


def test_answers_are_exported_for_the_server(tmp_path):
    rows = [one | {"answers": None, "category": None} for one in ROWS]
    selection = write(tmp_path, rows, "test")
    task = VizWiz()
    loaded = task.load(replace(selection, split="test"))
    scored = answered(task, loaded, ["Unanswerable", "Two, maybe?", ""])
    assert values(task, scored, "accuracy") == {}
    (file,) = task.export(scored, tmp_path)
    assert file.name == "vizwiz.json"
    assert json.loads(file.read_text()) == [
        {"image": "VizWiz_val_00000000.jpg", "answer": "unanswerable"},
        {"image": "VizWiz_val_00000001.jpg", "answer": "2 maybe"},
        {"image": "VizWiz_val_00000002.jpg", "answer": ""},
    ]
