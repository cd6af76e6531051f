import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.run import chance_rows
from maya_vlm.training.evaluation.tasks.marvl import LANGUAGES, MaRvl

from .public_rows import PICTURE, TEXT, answered, picture, write_dataset

FEATURES = {
    "id": TEXT,
    "image": PICTURE,
    "conversations": datasets.List({"from": TEXT, "value": TEXT}),
}


def row(number, language, label):
    question = f"<image>\nIs statement {number} true or false, {language}? "
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": label}]
    return {"id": f"{language}-{number}", "image": picture(number // 2), "conversations": turns}


def rows(language):
    return [row(number, language, label) for number, label in enumerate(("true", "false", "true"))]


def write(folder, changed=rows):
    splits = {("default", name): changed(name) for name in LANGUAGES.values()}
    return str(write_dataset(folder, FEATURES, splits))


def test_the_joined_pictures_are_asked_about(tmp_path):
    task = MaRvl()
    loaded = task.load(Selection(data=write(tmp_path), languages=["sw", "ta"]))
    first = loaded.requests[0]
    assert first.text == ("Is statement 0 true or false, sw?. Answer with the option directly.")
    assert [request.expected for request in loaded.requests[:3]] == ["true", "false", "true"]
    assert first.answer_language is None
    assert first.item == loaded.requests[1].item != loaded.requests[2].item
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 6)
    assert loaded.pictures.load(loaded.requests[2].pictures[0]).getpixel((0, 0)) == (1, 90, 200)
    assert {row["value"] for row in chance_rows(task, loaded.requests)} == {0.5}


@pytest.mark.parametrize(
    ("protocol", "parsed", "right"),
    [
        ("pangea", ["true", "false", None, "true false", "false"], [1, 1, 0, 1, 0]),
        ("strict", ["true", None, None, None, "false"], [1, 0, 0, 0, 0]),
    ],
)
def test_scores_follow_the_protocol(tmp_path, protocol, parsed, right):
    task = MaRvl(protocol)
    labels = ("True", "False", "True", "False", "True")
    data = write(tmp_path, lambda lang: [row(n, lang, label) for n, label in enumerate(labels)])
    loaded = task.load(Selection(data=data, languages=["tr"]))
    answers = ["Yes.", "nothing", "maybe", "true or false", "False"]
    scored = answered(task, loaded, answers)
    assert [one.score.parsed for one in scored] == parsed
    assert [one.score.values["accuracy"] for one in scored] == right
    assert [one.score.unparsable for one in scored] == [said is None for said in parsed]


def test_a_strict_answer_may_be_in_another_language(tmp_path):
    task = MaRvl("strict")
    loaded = task.load(Selection(data=write(tmp_path), languages=["zh"]))
    assert [one.score.parsed for one in answered(task, loaded, ["是的", "不是", "TRUE."])] == [
        "true",
        "false",
        "true",
    ]


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    for name, label in (("none", "maybe"), ("both", "true or false")):
        data = write(tmp_path / name, lambda lang, label=label: [row(0, lang, label)])
        with pytest.raises(ValueError, match=r"row 0: conversations: expected a question and its"):
            MaRvl().load(Selection(data=data, languages=["en"]))
    bare = write(
        tmp_path / "bare", lambda lang: [{k: one[k] for k in ("id", "image")} for one in rows(lang)]
    )
    with pytest.raises(ValueError, match=r"found no conversations: use the files of neulab/Pangea"):
        MaRvl().load(Selection(data=bare, languages=["en"]))
