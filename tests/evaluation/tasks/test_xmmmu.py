import pytest

from maya_vlm.training.evaluation.protocol import Picture, Selection
from maya_vlm.training.evaluation.tasks.xmmmu import Xmmmu

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

IMAGES = tuple(f"image_{number}" for number in range(1, 8))
NAMES = ("id", "question", "options", "explanation", *IMAGES, "img_type", "answer")
FEATURES = dict.fromkeys((*NAMES, "topic_difficulty", "question_type", "subfield"), TEXT)
FEATURES |= dict.fromkeys(IMAGES, PICTURE)


def row(number, question, options, answer, kind="multiple-choice", **images):
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
        | images
    )


ROWS = [
    row(1, "Look: <image 1> What is it?", "['a bird',\n 'a fish']", "B"),
    row(2, "<image 1> How many?", "[]", "['2', 'two']", "open"),
    row(
        3,
        "<image 2> or <image 1>?",
        "['<image 3>', 'y']",
        "A",
        image_2=picture(20),
        image_3=picture(30),
    ),
    row(4, "What?", "['x', 'y', 'z']", "A"),
    row(5, "<image 1> or <image 2>?", "['x', 'y']", "A"),
]


def write(folder, rows=ROWS, languages=("en",)):
    splits = {("default", language): rows for language in languages}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)), languages=languages)


def test_pictures_stand_where_the_question_names_them(tmp_path):
    task = Xmmmu()
    loaded = task.load(write(tmp_path, languages=("en", "fr")))
    assert loaded.languages == ["en", "fr"]
    assert loaded.requests[0].content == (
        "Look: ",
        Picture("en/validation_Art_1/1"),
        " What is it?\nA. a bird\nB. a fish\n"
        "Answer with the option letter from the given choices directly.",
    )
    assert loaded.requests[1].text == (
        " How many?\nAnswer the question using a single word or phrase."
    )
    # A question without a mark gets its picture in front.
    assert loaded.requests[3].content[0] == Picture("en/validation_Art_4/1")
    assert loaded.pictures.load("fr/validation_Art_4/1").getpixel((0, 0)) == (4, 90, 200)
    several = loaded.requests[2]
    assert several.content[:5] == (
        Picture("en/validation_Art_3/2"),
        " or ",
        Picture("en/validation_Art_3/1"),
        "?\nA. ",
        Picture("en/validation_Art_3/3"),
    )
    shades = [loaded.pictures.load(key).getpixel((0, 0))[0] for key in several.pictures]
    assert shades == [20, 3, 30]
    assert several.about["options"] == {"A": "", "B": "y"}
    left_out = task.describe()["left out, without a picture that is named"]
    assert left_out == {"en": 1, "fr": 1}


@pytest.mark.parametrize(("protocol", "third"), [("strict", None), ("mmmu", "C")])
def test_scores_follow_the_protocol(tmp_path, protocol, third):
    task = Xmmmu(protocol)
    scored = answered(
        task, task.load(write(tmp_path)), ["B", "There are two", "A", "C or (A) or (C)"]
    )
    assert [one.score.parsed for one in scored] == ["B", "There are two", "A", third]
    assert values(task, scored, "accuracy") == {
        "choice": pytest.approx(2 / 3),
        "open": 1.0,
        "all": 0.75,
    }
    empty = answered(task, task.load(write(tmp_path)), ["", "", "?", "?"])
    assert all(one.score.unparsable for one in empty)


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"a list of options and the letter of one, found .* 'D'"):
        Xmmmu().load(write(tmp_path / "a", [row(1, "?", "['x', 'y']", "D")]))
    bare = [{name: cell for name, cell in one.items() if name != "options"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no options: use the files of neulab/PangeaBench"):
        Xmmmu().load(write(tmp_path / "b", bare))
