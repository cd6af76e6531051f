import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.xgqa import LANGUAGES, XGqa

from .public_rows import PICTURE, TEXT, answered, picture, write_dataset

FEATURES = {"image": PICTURE, "question": TEXT, "answer": TEXT}


def rows(language):
    return [
        {"image": picture(1), "question": f"What is it, {language}? ", "answer": "man"},
        {"image": picture(1), "question": f"Is it open, {language}?", "answer": "no"},
        {"image": picture(2), "question": f"Who is it, {language}?", "answer": "light blue"},
    ]


def write(folder, changed=rows):
    splits = {("default", name): changed(name) for name in LANGUAGES.values()}
    return str(write_dataset(folder, FEATURES, splits))


def test_answers_are_english_in_all_languages(tmp_path):
    loaded = XGqa().load(Selection(data=write(tmp_path), languages=["de", "en"]))
    assert list(loaded.languages) == ["de", "en"]
    german, english = loaded.requests[0], loaded.requests[3]
    assert german.text == (
        "What is it, de? Answer the question using a single word or phrase in English."
    )
    assert english.text == "What is it, en? Answer the question using a single word or phrase."
    assert (german.language, german.answer_language) == ("de", "en")
    # A picture is one item in all rows and languages.
    assert german.item == english.item == loaded.requests[1].item != loaded.requests[2].item
    assert (loaded.data["images"], loaded.data["requests"]) == (2, 6)
    assert loaded.pictures.load(loaded.requests[2].pictures[0]).getpixel((0, 0)) == (2, 90, 200)


@pytest.mark.parametrize(("protocol", "right"), [("centurio", [0, 0, 1]), ("pangea", [1, 1, 1])])
def test_scores_follow_the_protocol(tmp_path, protocol, right):
    task = XGqa(protocol)
    loaded = task.load(Selection(data=write(tmp_path), languages=["bn", "pt"]))
    scored = answered(task, loaded, ["woman", "No.", "Light blue"] + [""] * 3)
    assert [one.score.values["accuracy"] for one in scored] == [*right, 0, 0, 0]
    assert [one.score.unparsable for one in scored] == [False] * 3 + [True] * 3
    table = {
        (row["metric"], row["language"]): row["value"]
        for row in task.aggregate(scored, "model", {"all": ["bn", "pt"]}, 0)
    }
    assert table["same", "bn"] == pytest.approx(2 / 3)
    assert table["accuracy", "pt"] == 0
    assert table["accuracy", "all"] == pytest.approx(sum(right) / 6)


def test_what_is_wrong_is_told_in_one_line(tmp_path):
    data = write(tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"languages: expected some of en, zh.* in 'neulab/.*', found 'fr'"
    ):
        XGqa().load(Selection(data=data, languages=["fr"]))
    with pytest.raises(ValueError, match=r"split: expected none, .* found 'en': choose languages"):
        XGqa().load(Selection(data=data, split="en"))
    empty = write(tmp_path / "b", lambda lang: [row | {"answer": " "} for row in rows(lang)])
    with pytest.raises(ValueError, match=r"row 0: answer: expected a text, found none"):
        XGqa().load(Selection(data=empty, languages=["en"]))
    null = write(tmp_path / "d", lambda lang: [row | {"question": None} for row in rows(lang)])
    with pytest.raises(ValueError, match=r"row 0: question: expected a text, found None"):
        XGqa().load(Selection(data=null, languages=["en"]))
    bare = write(
        tmp_path / "c",
        lambda lang: [{name: row[name] for name in ("image", "question")} for row in rows(lang)],
    )
    with pytest.raises(ValueError, match=r"found no answer: use the files of neulab/PangeaBench-x"):
        XGqa().load(Selection(data=bare, languages=["en"]))
