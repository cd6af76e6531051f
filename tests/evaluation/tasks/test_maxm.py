from io import BytesIO

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.maxm import LANGUAGES, MaXm

from .public_rows import TEXT, answered, picture, write_dataset

TEXTS = datasets.List(TEXT)
FEATURES = {
    # The storage type of the feature Image, not the feature itself.
    "image": {"bytes": datasets.Value("binary"), "path": TEXT},
    "image_id": TEXT,
    "question_id": TEXT,
    "question": TEXT,
    "answers": TEXTS,
    "processed_answers": TEXTS,
    "language": TEXT,
}
ANSWERS = (["chien", "chat"], ["Paris"], ["3", "trois"])


def stored(shade):
    buffer = BytesIO()
    picture(shade).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def rows(language):
    return [
        {
            "image": stored(number // 2),
            "image_id": f"00a1b2{number // 2}",
            "question_id": f"{language}-{number}",
            "question": f"{language}, number {number}?",
            "answers": answers,
            "processed_answers": answers,
            "language": language,
        }
        for number, answers in enumerate(ANSWERS)
    ]


def write(folder, changed=rows):
    splits = {("default", name): changed(name) for name in LANGUAGES.values()}
    return str(write_dataset(folder, FEATURES, splits))


def test_every_language_is_asked_for_its_own(tmp_path):
    loaded = MaXm().load(Selection(data=write(tmp_path), languages=["fr", "he"]))
    hebrew = loaded.requests[3]
    assert hebrew.text == (
        "Given the image and the question, provide a concise answer. iw, number 0?\n"
        "Answer the question using a single word or phrase in Hebrew."
    )
    assert (hebrew.language, hebrew.answer_language) == ("he", "he")
    assert hebrew.item == loaded.requests[0].item == loaded.requests[1].item
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 6)
    assert loaded.data["split"] == "fr, iw"
    assert loaded.pictures.load(loaded.requests[2].pictures[0]).getpixel((0, 0)) == (1, 90, 200)


@pytest.mark.parametrize(("protocol", "right"), [("centurio", [0, 1, 1]), ("pangea", [1, 0, 1])])
def test_scores_follow_the_protocol(tmp_path, protocol, right):
    task = MaXm(protocol)
    loaded = task.load(Selection(data=write(tmp_path), languages=["fr"]))
    scored = answered(task, loaded, ["Un chat.", "paris", "Trois"])
    assert [one.score.values["accuracy"] for one in scored] == right
    assert [one.score.values["same"] for one in scored] == [0, 1, 1]
    assert answered(task, loaded, ["", " ", "?"])[0].score.unparsable


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    for name, answers in (("none", []), ("blank", ["one", " "]), ("null", [None])):
        data = write(
            tmp_path / name, lambda lang, a=answers: [row | {"answers": a} for row in rows(lang)]
        )
        with pytest.raises(
            ValueError, match=r"row 0: answers: expected a list of reference answers"
        ):
            MaXm().load(Selection(data=data, languages=["en"]))
    bare = write(
        tmp_path / "b",
        lambda lang: [{k: row[k] for k in row if k != "image_id"} for row in rows(lang)],
    )
    with pytest.raises(
        ValueError, match=r"found no image_id: use the files of neulab/PangeaBench-m"
    ):
        MaXm().load(Selection(data=bare, languages=["en"]))
