import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.mtvqa import MtVqa

from .public_rows import PICTURE, TEXT, answered, picture, write_dataset

FEATURES = {"image": PICTURE, "id": datasets.Value("int64"), "qa_pairs": TEXT, "lang": TEXT}


def row(number, lang, *pairs):
    named = [{"question": question, "answer": gold} for question, gold in pairs]
    return {"image": picture(number), "id": 7, "qa_pairs": str(named), "lang": lang}


ROWS = [
    row(0, "DE", ("Was kostet es?", "3.5"), ("Was ist's?", "Brot")),
    row(1, "KR", ("뭐라고 써 있나요?", "서울")),
    row(2, "AR", ("ما الاسم؟", "بيروت")),
]


def write(folder, rows=ROWS):
    splits = {("default", "test"): rows}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)))


def test_each_pair_is_a_question_about_its_picture(tmp_path):
    loaded = MtVqa().load(write(tmp_path))
    assert list(loaded.languages) == ["ar", "de", "ko"]
    assert loaded.requests[1].text == (
        "Was ist's?\nAnswer the question using a word or phrase in the language of the question."
    )
    assert loaded.requests[0].item == loaded.requests[1].item
    assert loaded.requests[2].answer_language == "ko"
    assert (loaded.data["images"], loaded.data["requests"]) == (3, 4)
    assert loaded.pictures.load(loaded.requests[2].pictures[0]).getpixel((0, 0)) == (1, 90, 200)
    chosen = MtVqa().load(Selection(data=str(tmp_path), languages=["ko"]))
    assert [request.language for request in chosen.requests] == ["ko"]


@pytest.mark.parametrize(
    ("protocol", "right"),
    [("paper", [0, 1, 1, 0]), ("lmms_eval", [1, 1, 1, 0]), ("centurio", [0, 1, 0, 0])],
)
def test_scores_follow_the_protocol(tmp_path, protocol, right):
    task = MtVqa(protocol)
    answers = ["Es kostet 3.5.", "brot", "서울입니다", ""]
    scored = answered(task, task.load(write(tmp_path)), answers)
    assert [one.score.values["accuracy"] for one in scored] == right
    assert [one.score.values["same"] for one in scored] == [0, 1, 0, 0]
    assert [one.score.unparsable for one in scored] == [False, False, False, True]
    mean = [
        row["value"]
        for row in task.aggregate(scored, "model", {"all": ["ar", "de", "ko"]}, 0)
        if (row["metric"], row["language"]) == ("accuracy", "all")
    ]
    # The mean is over languages, not over questions.
    assert mean == [pytest.approx((sum(right[:2]) / 2 + right[2] + right[3]) / 3)]


@pytest.mark.parametrize(
    "cell", [None, "", "[]", "[{'question': 'a'}]", "[{'question': 'a', 'answer': ''}]", "3", "[["]
)
def test_a_cell_that_holds_no_pairs_is_named(tmp_path, cell):
    told = r"row 1: qa_pairs: expected a Python list of questions and answers, found "
    with pytest.raises(ValueError, match=told):
        MtVqa().load(write(tmp_path, [ROWS[0], ROWS[1] | {"qa_pairs": cell}]))


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"row 0: lang: expected one of AR, .*, found 'XX'"):
        MtVqa().load(write(tmp_path / "a", [row(0, "XX", ("a", "b"))]))
    bare = [{name: one[name] for name in one if name != "qa_pairs"} for one in ROWS]
    with pytest.raises(ValueError, match=r"found no qa_pairs: use the files of ByteDance/MTVQA"):
        MtVqa().load(write(tmp_path / "b", bare))
