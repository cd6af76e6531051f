import json

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.gqa import Gqa

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

FEATURES = dict.fromkeys(("id", "imageId", "question", "answer", "fullAnswer"), TEXT) | {
    "isBalanced": datasets.Value("bool"),
    "types": {"structural": TEXT, "semantic": TEXT, "detailed": TEXT},
    "image": PICTURE,
}
CONFIGS = ("testdev_balanced_instructions", "testdev_balanced_images")
QUESTIONS = [
    {
        "id": f"2014{number}",
        "imageId": image,
        "question": question,
        "answer": answer,
        "fullAnswer": f"It is {answer}.",
        "isBalanced": True,
        "types": {"structural": "query", "semantic": "attr", "detailed": "color"},
    }
    for number, (image, question, answer) in enumerate(
        (
            ("n161313", "What color is it?", "light blue"),
            ("n161313", "Is it open?", "no"),
            ("n235859", "Who is it?", "man"),
        )
    )
]
IMAGES = [{"id": "n235859", "image": picture(2)}, {"id": "n161313", "image": picture(1)}]


def write(folder, questions=QUESTIONS, images=IMAGES):
    splits = {(CONFIGS[0], "testdev"): questions, (CONFIGS[1], "testdev"): images}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)))


def test_questions_find_their_pictures(tmp_path):
    loaded = Gqa().load(write(tmp_path))
    first = loaded.requests[0]
    assert first.text == ("What color is it?\nAnswer the question using a single word or phrase.")
    assert loaded.pictures.load(first.pictures[0]).getpixel((0, 0)) == (1, 90, 200)
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 3)


@pytest.mark.parametrize(("protocol", "right"), [("llava", [1, 0, 1]), ("lmms_eval", [1, 1, 1])])
def test_scores_follow_the_protocol(tmp_path, protocol, right):
    task = Gqa(protocol)
    scored = answered(task, task.load(write(tmp_path)), ["Light blue.", "no!", "man"])
    assert [one.score.values["accuracy"] for one in scored] == right
    assert values(task, scored, "accuracy") == {"all": pytest.approx(sum(right) / 3)}
    assert values(task, scored, "same") == {"all": 1.0}


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"row 0: imageId: expected an id of .*, found 'n161313'"):
        Gqa().load(write(tmp_path / "a", images=IMAGES[:1]))
    with pytest.raises(ValueError, match=r"row 0: answer: expected a text, found none"):
        Gqa().load(write(tmp_path / "b", [row | {"answer": None} for row in QUESTIONS]))
    bare = [{name: row[name] for name in row if name != "imageId"} for row in QUESTIONS]
    with pytest.raises(ValueError, match=r"found no imageId: use the files of lmms-lab/GQA"):
        Gqa().load(write(tmp_path / "c", bare))


def test_a_file_is_no_dataset_and_is_not_looked_up_on_the_hub(tmp_path):
    file = tmp_path / "questions.json"
    file.write_text("[]")
    with pytest.raises(
        ValueError, match=r"^data: expected lmms-lab/GQA, or a folder .* found a file"
    ):
        Gqa().load(Selection(data=str(file)))


def test_results_name_the_pictures_files_too(tmp_path):
    first = Gqa().load(write(tmp_path / "a")).data["files_sha256"]
    assert Gqa().load(write(tmp_path / "b")).data["files_sha256"] == first
    other = [row | {"image": picture(9)} for row in IMAGES]
    assert Gqa().load(write(tmp_path / "c", images=other)).data["files_sha256"] != first


def test_predictions_are_exported_for_the_script(tmp_path):
    task = Gqa("lmms_eval")
    scored = answered(task, task.load(write(tmp_path)), ["Light blue.", "No", "men..."])
    (file,) = task.export(scored, tmp_path)
    assert file.name == "gqa:lmms_eval.json"
    assert json.loads(file.read_text()) == [
        {"questionId": "20140", "prediction": "light blue"},
        {"questionId": "20141", "prediction": "no"},
        {"questionId": "20142", "prediction": "men"},
    ]
