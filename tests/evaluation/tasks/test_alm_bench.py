import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.alm_bench import LANGUAGES, AlmBench
from tests.evaluation.judges.judge_server import judged, number, plan, server

from .public_rows import PICTURE, TEXT, picture, write_dataset

FEATURES = {"file_name": PICTURE} | dict.fromkeys(
    (
        *("ID", "Language", "Category", "Question_Type", "English_Question", "English_Answer"),
        *("Translated_Question", "Translated_Answer", "Image_Url"),
    ),
    TEXT,
)
ROWS = [
    (
        "001",
        "English",
        "Food",
        "Multiple Choice Questions",
        "Which dish?",
        "Rice (Rice, Soup, Bread)",
    ),
    ("002", "English", "Food", "True False Question", "Is it sweet?", "True"),
    ("001", "Chinese_(Simplified)", "Sports", "Long Question", "这是什么?", "足球是一项运动。"),
    (
        "002",
        "chinese (simplified)",
        "Food",
        "Multiple Choice Questions",
        "哪道菜?",
        "米饭（米饭，汤）",
    ),
    ("003", "English", "Sports", "Short Questions", "Who plays?", "Two teams (of eleven)"),
    ("001", "Klingon", "Food", "Short Questions", "nuq?", "gagh"),
]
TEXTS = ["Rice", "Yes", "足球", "汤", "Teams"]


def write(folder, rows=ROWS):
    made = [
        {
            "file_name": picture(place),
            "ID": own,
            "Language": language,
            "Category": category,
            "Question_Type": kind,
            "English_Question": "?",
            "English_Answer": "!",
            "Translated_Question": question,
            "Translated_Answer": answer,
            "Image_Url": f"https://x/{place}",
        }
        for place, (own, language, category, kind, question, answer) in enumerate(rows)
    ]
    return Selection(data=str(write_dataset(folder, FEATURES, {("default", "test"): made})))


def test_questions_are_asked_by_their_type(tmp_path):
    made = AlmBench()
    loaded = made.load(write(tmp_path))
    asked = {request.id: request for request in loaded.requests}
    assert asked["en/001"].text.endswith("else.\nWhich dish?\nRice, Soup, Bread")
    assert asked["en/001"].expected == "Rice"
    assert asked["en/002"].text == (
        "Is it sweet?\nThe above question is a True/False question. Please provide the answer as one word in "
        "English"
    )
    assert asked["zh/001"].text.endswith("in detail in Chinese (Simplified) language.")
    assert (asked["zh/002"].expected, asked["zh/002"].text[-4:]) == ("米饭", "米饭，汤")
    # In other question types, brackets do not hold options.
    assert asked["en/003"].expected == "Two teams (of eleven)"
    assert made.describe()["rows left out, by language that is not known"] == {"Klingon": 1}
    assert len(LANGUAGES) == len(set(LANGUAGES.values())) >= 100


@pytest.mark.parametrize("protocol", AlmBench.protocols)
def test_scores_of_ten_are_means_by_type_category_and_language(protocol, tmp_path):
    made = AlmBench(protocol)
    with server(record=True) as judge:
        loaded = made.load(write(tmp_path / "data"))
        made.prepare(plan(judge).open(tmp_path), None)
        scored = judged(made, loaded, TEXTS)
    grades = [number(text, 11) / 10 for text in TEXTS]
    assert [one.score.values["score"] for one in scored] == grades
    rows = {
        (row["subset"], row["language"]): row["value"]
        for row in made.aggregate(scored, "model", {"all": ["en", "zh"]}, 0)
    }
    english, chinese = (grades[0] + grades[1] + grades[4]) / 3, (grades[2] + grades[3]) / 2
    assert rows["type/all", "en"] == pytest.approx(english)
    assert rows["type/all", "all"] == pytest.approx((english + chinese) / 2)
    assert rows["category/Food", "en"] == pytest.approx((grades[0] + grades[1]) / 2)
    assert rows["type/choice", "zh"] == grades[3]
    shown = [body["messages"][-1]["content"] for _, body in judge.seen]
    assert sum("consistency, fluency and relevance" in text for text in shown) == 1
    assert all("Reply with" in text for text in shown)


def test_a_doubled_id_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="row 1: expected a unique ID in English"):
        AlmBench().load(write(tmp_path, [ROWS[0], ROWS[0]]))
