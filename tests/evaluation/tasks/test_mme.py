import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.scoring.mme import COGNITION, PERCEPTION, MmeRow, mme_score
from maya_vlm.training.evaluation.tasks.mme import Mme

from .public_rows import PICTURE, TEXT, answered, picture, values, write_dataset

FEATURES = dict.fromkeys(("question_id", "question", "answer", "category"), TEXT) | {
    "image": PICTURE
}


def rows(categories: tuple[str, ...], pictures: int = 1) -> list[dict]:
    return [
        {
            "question_id": f"{category}/{number:04}.png",
            "image": picture(number),
            "question": f"Is this {label.lower()}? Please answer yes or no.",
            "answer": label,
            "category": category,
        }
        for label in ("Yes", "No")
        for category in categories
        for number in range(pictures)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    every = rows((*PERCEPTION, *COGNITION), 2)
    return write_dataset(tmp_path_factory.mktemp("mme"), FEATURES, {("default", "test"): every})


def test_questions_are_asked_as_llava_asks(data):
    loaded = Mme().load(Selection(data=str(data)))
    first = loaded.requests[0]
    assert first.text == "Is this yes?\nAnswer the question using a single word or phrase."
    assert (first.subset, first.expected) == ("perception/existence", "yes")
    assert loaded.data["items"] == {"perception": 20, "cognition": 8}
    # The limit selects a picture with both of its questions.
    assert len(Mme().load(Selection(data=str(data), limit=3)).requests) == 6


def test_scores_are_the_tools(data):
    task = Mme()
    loaded = task.load(Selection(data=str(data)))
    texts = [
        ("Yes.", "no", "Not sure", "perhaps", "Yes, it is")[number * 7 % 5]
        for number in range(len(loaded.requests))
    ]
    scored = answered(task, loaded, texts)
    expected = mme_score(
        MmeRow(
            one.request.id,
            one.request.item,
            one.request.subset.split("/")[1],
            one.score.parsed,
            one.request.expected,
        )
        for one in scored
    )
    found = values(task, scored, "mme_score")
    for subset, value in found.items():
        part, name = subset.split("/")
        own = expected[part] if name == "sum" else expected["categories"][name]["score"]
        assert value == pytest.approx(own)
    assert {"perception/sum", "cognition/sum"} <= set(found)
    # "Not sure" begins with "no"; "perhaps" is neither yes nor no.
    assert all(one.score.unparsable == (one.answer.text == "perhaps") for one in scored)


def test_a_sum_without_all_categories_is_none(tmp_path):
    folder = write_dataset(tmp_path, FEATURES, {("default", "test"): rows(("count",))})
    task = Mme()
    found = values(
        task, answered(task, task.load(Selection(data=str(folder))), ["yes", "no"]), "mme_score"
    )
    assert found == {"perception/count": 200.0}


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    for change, words in (
        (
            lambda all_rows: all_rows[:1],
            "picture 'count:count/0000.png': expected 2 questions, found 1",
        ),
        (
            lambda all_rows: [row | {"category": "x"} for row in all_rows],
            "a category of MME, found",
        ),
    ):
        folder = tmp_path / words[:5].strip()
        write_dataset(folder, FEATURES, {("default", "test"): change(rows(("count",)))})
        with pytest.raises(ValueError, match=words):
            Mme().load(Selection(data=str(folder)))
    bare = [{name: row[name] for name in row if name != "category"} for row in rows(("count",))]
    write_dataset(tmp_path / "bare", FEATURES, {("default", "test"): bare})
    with pytest.raises(ValueError, match="found no category: use the files of lmms-lab/MME"):
        Mme().load(Selection(data=str(tmp_path / "bare")))


def test_answers_are_exported_for_the_tool(data, tmp_path):
    task = Mme()
    loaded = task.load(Selection(data=str(data)))
    scored = answered(task, loaded, ["Yes.\n\tIt is"] * len(loaded.requests))
    files = task.export(scored, tmp_path)
    assert {file.stem for file in files} == {*PERCEPTION, *COGNITION}
    assert {file.parent for file in files} == {tmp_path / "mme"}
    # The two questions of a picture are consecutive, as the tool requires.
    assert (tmp_path / "mme" / "OCR.txt").read_text().splitlines() == [
        f"000{number}.png\tIs this {label.lower()}? Please answer yes or no.\t{label}\tYes. It is"
        for number in (0, 1)
        for label in ("Yes", "No")
    ]
