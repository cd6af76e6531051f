import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.run import planned
from maya_vlm.training.evaluation.tasks.scienceqa import ScienceQa

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

FEATURES = {
    "image": PICTURE,
    "question": TEXT,
    "choices": datasets.List(TEXT),
    "answer": datasets.Value("int8"),
} | dict.fromkeys(
    ("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"), TEXT
)


def row(image, question, choices, answer, hint=""):
    others = dict.fromkeys(FEATURES, "x")
    own = {"image": image, "question": question, "choices": choices, "answer": answer, "hint": hint}
    return others | own


ROWS = [
    row(picture(1), "Which is it?", ["a bird", "a fish"], 1, "Look at the picture."),
    row(None, "Which is a solid?", ["ice", "water", "steam"], 0),
    row(picture(3), "Is it big?", ["yes", "no"], 0),
]


def write(folder, rows=ROWS):
    splits = {("ScienceQA-FULL", "test"): rows}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)))


def test_questions_are_asked_as_llava_asks(tmp_path):
    loaded = ScienceQa().load(write(tmp_path))
    assert loaded.requests[0].text == (
        "Context: Look at the picture.\nWhich is it?\nA. a bird\nB. a fish\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert loaded.requests[1].text.startswith("Which is a solid?\nA. ice\n")
    assert [len(request.pictures) for request in loaded.requests] == [1, 0, 1]
    assert [request.expected for request in loaded.requests] == ["B", "A", "A"]
    assert loaded.pictures.load("test/2").getpixel((0, 0)) == (3, 90, 200)
    # The blind and shuffled runs do not change questions without a picture.
    plans = planned(loaded, ("blind", "shuffled"), None, 0)
    assert [request.pictures for request in plans["shuffled"]] == [("test/2",), (), ("test/0",)]
    assert not any(request.pictures for request in plans["blind"])


@pytest.mark.parametrize(
    ("protocol", "parsed"),
    [("llava", ["B", None, "E"]), ("lmms_eval", ["B", "A", "E"]), ("strict", ["B", "A", None])],
)
def test_scores_follow_the_protocol(tmp_path, protocol, parsed):
    task = ScienceQa(protocol)
    scored = answered(task, task.load(write(tmp_path)), ["B", "a", "E"])
    assert [one.score.parsed for one in scored] == parsed
    right = [float(found == gold) for found, gold in zip(parsed, "BAA", strict=True)]
    assert values(task, scored, "accuracy") == {
        "image": pytest.approx((right[0] + right[2]) / 2),
        "text": right[1],
        "all": pytest.approx(sum(right) / 3),
    }


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="expected the index of one of 2 choices, found -1"):
        ScienceQa().load(write(tmp_path / "a", [row(None, "?", ["x", "y"], -1)]))
    bare = [{name: cell for name, cell in one.items() if name != "choices"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no choices: use the files of lmms-lab/ScienceQA"):
        ScienceQa().load(write(tmp_path / "b", bare))
