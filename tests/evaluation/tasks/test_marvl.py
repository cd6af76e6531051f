import io

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.records import chance_rows
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


BYTES = {"bytes": datasets.Value("binary"), "path": datasets.Value("null")}
APART = {"id": TEXT, "hypothesis": TEXT, "language": TEXT, "label": datasets.Value("bool")}
APART |= {"left_img": BYTES, "right_img": BYTES}


def write_apart(folder, labels=(True, False, True)):
    def bytes_of(shade):
        picture(shade).save(file := io.BytesIO(), "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = [
        {
            "id": f"sw-{number}",
            "hypothesis": f"Picha {number}. ",
            "language": "sw",
            "label": label,
            "left_img": bytes_of(number // 2),
            "right_img": bytes_of(10 + number),
        }
        for number, label in enumerate(labels)
    ]
    return str(write_dataset(folder, APART, {("default", "sw"): rows}))


def test_centurio_shows_the_pictures_apart(tmp_path):
    task = MaRvl("centurio")
    loaded = task.load(Selection(data=write_apart(tmp_path), languages=["sw"]))
    first, second, third = loaded.requests
    left, right, question = first.content
    assert question == 'is it correct to say "Picha 0."? Answer yes or no.'
    shades = [loaded.pictures.load(part.key).getpixel((0, 0))[0] for part in (left, right)]
    assert shades == [0, 10]
    # The second pair shares only its left picture.
    assert first.pictures[0] == second.pictures[0] != third.pictures[0]
    assert len({one.item for one in loaded.requests}) == 3
    assert loaded.data["images"] == 5
    scored = answered(task, loaded, ["Yes", "no ", "Yes."])
    assert [one.score.parsed for one in scored] == ["true", "false", None]
    assert [one.score.values["accuracy"] for one in scored] == [1, 1, 0]


def test_what_centurios_protocol_cannot_read_is_told(tmp_path):
    with pytest.raises(ValueError, match="row 1: label: expected true or false, found None"):
        MaRvl("centurio").load(
            Selection(data=write_apart(tmp_path / "a", [True, None]), languages=["sw"])
        )
    with pytest.raises(ValueError, match=r"languages: expected some of .*, found 'en'"):
        MaRvl("centurio").load(Selection(data=write_apart(tmp_path / "b"), languages=["en"]))
