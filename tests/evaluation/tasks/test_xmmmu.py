import pytest

from maya_vlm.training.evaluation.protocol import Picture, Selection
from maya_vlm.training.evaluation.tasks.xmmmu import Xmmmu

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

IMAGES = tuple(f"image_{number}" for number in range(1, 8))
NAMES = ("id", "question", "options", "explanation", *IMAGES, "img_type", "answer")
FEATURES = dict.fromkeys((*NAMES, "topic_difficulty", "question_type", "subfield"), TEXT)
FEATURES |= dict.fromkeys(IMAGES, PICTURE)


def row(number, question, options, answer, kind="multiple-choice"):
    return (
        dict.fromkeys(FEATURES, "x")
        | dict.fromkeys(IMAGES)
        | {
            "id": f"validation_Art_{number}",
            "question": question,
            "options": options,
            "answer": answer,
            "question_type": kind,
            "image_1": picture(number),
        }
    )


ROWS = [
    row(1, "Look: <image 1> What is it?", "['a bird',\n 'a fish']", "B"),
    row(2, "<image 1> How many?", "[]", "['2', 'two']", "open"),
    row(3, "<image 1> or <image 2>?", "['x', 'y']", "A"),
    row(4, "What?", "['x', 'y', 'z']", "A"),
]


def write(folder, rows=ROWS, languages=("en",)):
    splits = {("default", language): rows for language in languages}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)), languages=languages)


def test_questions_about_one_picture_are_asked(tmp_path):
    task = Xmmmu()
    loaded = task.load(write(tmp_path, languages=("en", "fr")))
    assert loaded.languages == ["en", "fr"]
    assert loaded.requests[0].content == (
        "Look: ",
        Picture("en/validation_Art_1"),
        " What is it?\nA. a bird\nB. a fish\n"
        "Answer with the option letter from the given choices directly.",
    )
    assert loaded.requests[1].text == (
        " How many?\nAnswer the question using a single word or phrase."
    )
    # A question that does not say where its picture belongs has it in front.
    assert loaded.requests[2].content[:2] == ("", Picture("en/validation_Art_4"))
    assert loaded.pictures.load("fr/validation_Art_4").getpixel((0, 0)) == (4, 90, 200)
    assert task.describe()["left out, of several pictures"] == {"en": 1, "fr": 1}


@pytest.mark.parametrize(("protocol", "third"), [("strict", None), ("mmmu", "C")])
def test_scores_follow_the_protocol(tmp_path, protocol, third):
    task = Xmmmu(protocol)
    scored = answered(task, task.load(write(tmp_path)), ["B", "There are two", "C or (A) or (C)"])
    assert [one.score.parsed for one in scored] == ["B", "There are two", third]
    assert values(task, scored, "accuracy") == {
        "choice": 0.5,
        "open": 1.0,
        "all": pytest.approx(2 / 3),
    }
    empty = answered(task, task.load(write(tmp_path)), ["", "", "?"])
    assert [one.score.unparsable for one in empty] == [True, True, True]


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"a list of options and the letter of one, found .* 'D'"):
        Xmmmu().load(write(tmp_path / "a", [row(1, "?", "['x', 'y']", "D")]))
    bare = [{name: cell for name, cell in one.items() if name != "options"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no options: use the files of neulab/PangeaBench"):
        Xmmmu().load(write(tmp_path / "b", bare))
