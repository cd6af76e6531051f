import json

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.textvqa import TextVqa

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

NUMBER, TEXTS = datasets.Value("int32"), datasets.List(TEXT)
FEATURES = {
    "image_id": TEXT,
    "question_id": NUMBER,
    "question": TEXT,
    "question_tokens": TEXTS,
    "image": PICTURE,
    "image_width": NUMBER,
    "image_height": NUMBER,
    "flickr_original_url": TEXT,
    "flickr_300k_url": TEXT,
    "answers": TEXTS,
    "image_classes": TEXTS,
    "set_name": TEXT,
    "ocr_tokens": TEXTS,
}


def row(number, question, given, words):
    return {
        "image_id": f"003a8ae2ef43b901{number // 2}",
        "question_id": 34602 + number,
        "question": question,
        "question_tokens": question.rstrip("?").split(),
        "image": picture(number // 2),
        "image_width": 24,
        "image_height": 16,
        "flickr_original_url": "x",
        "flickr_300k_url": "x",
        "answers": given,
        "image_classes": ["Camera"],
        "set_name": "val",
        "ocr_tokens": words,
    }


ROWS = [
    row(0, "what is the brand of this Camera?", ["dakota"] * 10, ["DAKOTA", "DIGITAL"]),
    row(1, "how many lines?", ["2"] * 2 + ["3"] * 8, []),
    row(2, "what is it called?", ["the cafe"] * 6 + ["bar"] * 4, ["CAFE"]),
]


def write(folder, rows=ROWS):
    splits = {("default", "validation"): rows}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)))


def test_llava_gives_the_words_that_were_found(tmp_path):
    short = "\nAnswer the question using a single word or phrase."
    selection = write(tmp_path)
    loaded = TextVqa().load(selection)
    assert [request.text for request in loaded.requests[:2]] == [
        f"what is the brand of this Camera?\nReference OCR token: DAKOTA, DIGITAL{short}",
        f"how many lines?\nReference OCR token: {short}",
    ]
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 3)
    assert loaded.pictures.load(loaded.requests[2].pictures[0]).getpixel((0, 0)) == (1, 90, 200)
    plain = TextVqa("lmms_eval").load(selection)
    assert plain.requests[0].text == f"What is the brand of this camera?{short}"


def test_answers_are_compared_after_the_processor(tmp_path):
    task = TextVqa()
    scored = answered(task, task.load(write(tmp_path)), ["Dakota!", "two", ""])
    two = 0.6  # of 10 leave-one-out sets, 2 have one equal answer, 8 have two
    assert values(task, scored, "accuracy") == {"all": pytest.approx((1 + two + 0) / 3)}
    assert [one.score.parsed for one in scored] == ["dakota", "2", None]
    assert [one.score.unparsable for one in scored] == [False, False, True]


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"row 0: answers: expected a list of annotators' answers, found \[\]"
    ):
        TextVqa().load(write(tmp_path / "a", [row(0, "what?", [], [])]))
    bare = [{name: one[name] for name in one if name != "ocr_tokens"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no ocr_tokens: use the files of lmms-lab/textvqa"):
        TextVqa().load(write(tmp_path / "b", bare))


def test_answers_are_exported_for_the_server(tmp_path):
    rows = [one | {"answers": [""] * 10} for one in ROWS]
    data = write_dataset(tmp_path, FEATURES, {("default", "test"): rows})
    task = TextVqa()
    loaded = task.load(Selection(data=str(data), split="test"))
    scored = answered(task, loaded, ["Dakota.", "three", "The cafe"])
    assert values(task, scored, "accuracy") == {}
    (file,) = task.export(scored, tmp_path)
    assert file.name == "textvqa.json"
    assert json.loads(file.read_text()) == [
        {"question_id": 34602, "answer": "dakota"},
        {"question_id": 34603, "answer": "3"},
        {"question_id": 34604, "answer": "cafe"},
    ]
