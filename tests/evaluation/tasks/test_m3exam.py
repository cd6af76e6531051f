import base64
import io

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Picture, Selection
from maya_vlm.training.evaluation.tasks.m3exam import M3Exam

from .public_rows import TEXT, answered, picture, values, write_dataset

IMAGES = tuple(f"image_{number}" for number in range(10))
FEATURES = dict.fromkeys(("question_text", "answer_text", "language", "subject_category"), TEXT)
FEATURES |= dict.fromkeys(("options", "background_description"), datasets.List(TEXT))
FEATURES |= dict.fromkeys(IMAGES, TEXT)


def written(shade):
    file = io.BytesIO()
    picture(shade).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def row(number, options, answer, background=(), **images):
    return dict.fromkeys(IMAGES, "None") | {
        "image_0": written(number),
        "question_text": f"Which? (image)[image-{number}.jpg]",
        "options": options,
        "answer_text": answer,
        "language": "english",
        "subject_category": "natural-science",
        "background_description": list(background),
        **images,
    }


ROWS = [
    row(1, ["(1) a bird", "(2) a fish"], "(2)", ["Read this."]),
    row(2, ["1.5 m", "2.5 m", "3.5 m"], "A"),
    row(3, ["A. (image)[b.jpg]", "B. y"], "2", image_1=written(9)),
    row(6, ["A. x", "B. y"], "2", image_1=written(9)),
    row(4, ["A. x", "B. y"], "E"),
    row(5, ["A. salt", "B. ice"], "B", image_0="None"),
]


def write(folder, rows=ROWS):
    splits = {("default", split): rows for split in ("english", "thai")}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)), languages=["en"])


def test_questions_are_asked_as_pangea_asks(tmp_path):
    task = M3Exam()
    loaded = task.load(write(tmp_path))
    assert loaded.requests[0].content == (
        "The following is a multiple choice question about Natural Science. Please only respond with the "
        "letter (A, B, C, or D) corresponding to the correct answer, without any additional explanation."
        "\n\nRead this.\nWhich? ",
        Picture("en/0/0"),
        "\n(A) a bird\n(B) a fish\nAnswer:",
    )
    # A number that is part of the text is not read as a label.
    assert loaded.requests[1].text.endswith("(A) 1.5 m\n(B) 2.5 m\n(C) 3.5 m\nAnswer:")
    several = loaded.requests[2]
    assert several.content[1:] == (
        Picture("en/2/0"),
        "\n(A) ",
        Picture("en/2/1"),
        "\n(B) y\nAnswer:",
    )
    shades = [loaded.pictures.load(key).getpixel((0, 0))[0] for key in several.pictures]
    assert shades == [3, 9]
    assert loaded.requests[3].pictures == ()
    assert "(image)" not in loaded.requests[3].text
    assert [request.expected for request in loaded.requests] == ["B", "A", "B", "B"]
    assert loaded.pictures.load("en/1/0").getpixel((0, 0)) == (2, 90, 200)
    assert task.describe()["left out"] == {
        "en": {"other marks than pictures": 1, "no right option": 1}
    }
    thai = M3Exam().load(Selection(data=str(tmp_path), split="thai"))
    assert thai.languages == ["th"]
    assert "วิทยาศาสตร์" in thai.requests[0].text


@pytest.mark.parametrize(("protocol", "last"), [("strict", None), ("pangea", "D")])
def test_scores_follow_the_protocol(tmp_path, protocol, last):
    task = M3Exam(protocol)
    scored = answered(task, task.load(write(tmp_path)), ["B", "(A)", "B", "I do not know"])
    assert [one.score.parsed for one in scored] == ["B", "A", "B", last]
    assert values(task, scored, "accuracy") == {"all": 0.75}


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    bad = M3Exam().load(write(tmp_path / "a", [row(1, ["A. x", "B. y"], "A", image_0="%%%")]))
    with pytest.raises(ValueError, match="picture 'en/0/0' cannot be decoded"):
        bad.pictures.load("en/0/0")
    with pytest.raises(ValueError, match="expected rows, found none"):
        M3Exam().load(write(tmp_path / "b", [row(1, ["A. x"], "?")]))
    bare = [{name: cell for name, cell in one.items() if name != "options"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no options: use the files of neulab/PangeaBench"):
        M3Exam().load(write(tmp_path / "c", bare))


def test_a_mark_may_name_a_picture_again(tmp_path):
    options = ["A. (image)[b.jpg]", "B. (image)[image-7.jpg]"]
    selection = write(tmp_path, [row(7, options, "A", image_1=written(8))])
    (request,) = M3Exam().load(selection).requests
    assert request.pictures == ("en/0/0", "en/0/1", "en/0/0")
