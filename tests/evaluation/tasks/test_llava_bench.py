import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks import task
from maya_vlm.training.evaluation.tasks.llava_bench import LlavaBench
from tests.evaluation.judges.judge_server import judged, number, plan, reply, server

from .public_rows import PICTURE, TEXT, picture, write_dataset

NUMBER = datasets.Value("int64")
FEATURES = {"question_id": NUMBER, "image": PICTURE, "question": TEXT, "caption": TEXT}
FEATURES |= {"image_id": TEXT, "gpt_answer": TEXT, "category": TEXT}
QUESTIONS = {
    "en": ["What is the name of this sight?", "Describe this photo.", "Why is it so?"],
    "ja": ["この名所の名前は何ですか?", "Describe this photo.", "なぜですか?"],
}


def row_of(place: int, question: str, reference: str, category: str):
    return {
        "question_id": place,
        "image": picture(place // 2),
        "question": question,
        "caption": "A photo of an island.",
        "image_id": f"{place // 2:03}",
        "gpt_answer": reference,
        "category": category,
    }


def write_rows(folder, rows):
    """Write a dataset of these rows by language."""
    splits = {("default", language): own for language, own in rows.items()}
    return Selection(data=str(write_dataset(folder, FEATURES, splits)), languages=list(rows))


def write(folder, languages=("en", "ja")):
    categories = ("conv", "detail", "complex")
    return write_rows(
        folder,
        {
            language: [
                row_of(place, question, f"Reference {place}", category)
                for place, (question, category) in enumerate(
                    zip(QUESTIONS[language], categories, strict=True)
                )
            ]
            for language in languages
        },
    )


def rows_of(made, folder, texts, server, **changes):
    """Return the results rows of these answers, by (metric, subset, language)."""
    loaded = made.load(write(folder / "data"))
    made.prepare(plan(server, **changes).open(folder), None)
    scored = judged(made, loaded, texts)
    rows = made.aggregate(scored, "model", {"all": ["en", "ja"]}, 0)
    return scored, {(row["metric"], row["subset"], row["language"]): row for row in rows}


TEXTS = ["Diamond Head", "An island.", "Because.", "島", "An island.", "はい"]


def test_the_papers_protocol_is_one_order_and_a_ratio_of_means(tmp_path):
    made = task("palo")
    assert isinstance(made, LlavaBench)
    with server(record=True) as judge:
        scored, rows = rows_of(made, tmp_path, TEXTS, judge)
    (_, body), *_ = judge.seen
    # Both languages have one case in common, which is one call.
    assert judge.requests == 5
    assert body["temperature"] == 0.2
    assert body["max_tokens"] == 1024
    assert "response_format" not in body
    assert body["messages"][0]["content"].startswith("You are a helpful and precise assistant")
    assert body["messages"][1]["content"].startswith(
        "[Context]\nA photo of an island.\n\n[Question]\nWhat is the name of this sight?\n\n"
        "[Assistant 1]\nReference 0\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nDiamond Head\n\n[End of Assistant 2]\n\n[System]\nWe would like"
    )
    ours = [1 + number(text, 10) for text in TEXTS[:3]]
    theirs = [1 + number(f"Reference {place}", 10) for place in range(3)]
    english = rows["relative", "all", "en"]
    assert english["value"] == pytest.approx(sum(ours) / sum(theirs))
    assert english["low"] <= english["value"] <= english["high"]
    assert rows["model", "all", "en"]["value"] == pytest.approx(sum(ours) / 3)
    assert rows["reference", "conv", "en"]["value"] == theirs[0]
    mean = (english["value"] + rows["relative", "all", "ja"]["value"]) / 2
    assert rows["relative", "all", "all"]["value"] == pytest.approx(mean)
    assert scored[0].score.judgements == (reply(body["messages"][1]["content"]),)


def test_questions_in_english_are_named_and_may_be_answered_so(tmp_path):
    made = LlavaBench()
    loaded = made.load(write(tmp_path))
    assert made.describe()["questions in English, by language"] == {"ja": ["1"]}
    assert [r.answer_language for r in loaded.requests[3:]] == ["ja", "en", "ja"]


def test_both_orders_are_averaged_and_their_consistency_is_told(tmp_path):
    """Two orders reveal a judge that prefers the first position."""

    def first_place(text, lang):
        return '{"explanation": "", "assistant_1": 8, "assistant_2": 4}'

    with server(fallback=first_place, record=True) as judge:
        _, rows = rows_of(LlavaBench("both"), tmp_path, TEXTS, judge)
    assert judge.requests == 10
    assert judge.seen[0][1]["response_format"]["json_schema"]["strict"] is True
    assert rows["relative", "all", "en"]["value"] == 1
    assert rows["consistency", "all", "en"]["value"] == 0
    with server() as judge:
        _, rows = rows_of(LlavaBench("both"), tmp_path / "fair", TEXTS, judge)
    assert rows["consistency", "all", "en"]["value"] == 1


def test_a_language_of_failed_judgements_has_no_score_and_neither_has_the_mean(tmp_path, capsys):
    made = LlavaBench()

    def fails_for_one(text, lang):
        return "I cannot decide." if "\n島\n" in text else reply(text)

    with server(fallback=fails_for_one) as judge:
        scored, rows = rows_of(made, tmp_path, TEXTS, judge)
    assert scored[3].score.values["relative"] is None
    assert scored[3].score.judgements[0].startswith("failed: expected two scores of 1 to 10")
    assert ("relative", "all", "en") in rows
    assert ("relative", "all", "ja") not in rows
    assert ("relative", "all", "all") not in rows
    # Subsets without failed judgements keep their score.
    assert ("relative", "detail", "ja") in rows
    info = made.judge_info()
    assert info["failed"] == {"model": ["ja/0"]}
    assert {"run": "model", "subset": "all", "language": "ja", "failed": 1, "asked": 3} in info[
        "withheld"
    ]
    with server(fallback=fails_for_one) as judge:
        _, rows = rows_of(made, tmp_path / "b", TEXTS, judge, failed_share=0.4)
    assert rows["relative", "all", "ja"]["n"] == 2
    assert rows["relative", "all", "ja"]["failures"] == 1


def test_a_changed_column_or_category_is_one_line(tmp_path):
    rows = {"en": [row_of(0, "What?", "It.", "poem")]}
    with pytest.raises(ValueError, match=r"row 0: expected a unique question_id and a category"):
        LlavaBench().load(write_rows(tmp_path / "a", rows))
    rows = {"en": [{**row_of(0, "What?", "It.", "conv")}]}
    del rows["en"][0]["caption"]
    with pytest.raises(ValueError, match="found no caption"):
        LlavaBench().load(write_rows(tmp_path / "b", rows))
