"""AyaVisionBench and m-WildVision."""

import json

import datasets
import pytest

from maya_vlm.training.evaluation.protocol import Selection, shuffled
from maya_vlm.training.evaluation.tasks import task
from maya_vlm.training.evaluation.tasks.judged import give_judge
from tests.evaluation.judges.judge_server import judged, number, plan, server

from .public_rows import TEXT, picture, write_dataset

PICTURES = datasets.List(datasets.Image())
AYA = {"image": PICTURES, "image_source": TEXT, "image_source_category": TEXT}
AYA |= {"index": datasets.Value("int64"), "question": TEXT, "language": TEXT}
WILD = {"image": PICTURES, "instruction": TEXT, "question_id": TEXT, "language": TEXT}
TASKS = {
    "aya_vision_bench": (AYA, "index", "question"),
    "m_wildvision": (WILD, "question_id", "instruction"),
}
CONFIGS = {"en": "eng_Latn", "hi": "hin_Deva"}
TEXTS = ["A cat.", "Two dogs.", "No idea.", "बिल्ली", "दो कुत्ते", "पता नहीं"]
OTHERS = ["A dog.", "Two cats.", "No idea at all.", "कुत्ता", "दो बिल्ली", "नहीं"]


def write(folder, name):
    features, key, question = TASKS[name]
    splits = {}
    for language, config in CONFIGS.items():
        splits[config, "test"] = [
            dict.fromkeys(features, "x")
            | {
                key: place if name == "aya_vision_bench" else f"q{place}",
                question: f"What is it, {language} {place}?",
                "image": [picture(10 * place + shade) for shade in range(1 + place % 2)],
            }
            for place in range(3)
        ]
    return Selection(data=str(write_dataset(folder, features, splits)), languages=list(CONFIGS))


def against(folder, loaded, texts=OTHERS):
    path = folder / "other.jsonl"
    lines = [
        json.dumps(
            {"id": request.id, "language": request.language, "answer": text, "model": "other"}
        )
        for request, text in zip(loaded.requests, texts, strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


def balance(first, second):
    """Return by how much the judge prefers the first text; it is the same in both orders."""
    return max(-2, min(2, number(first, 5) - number(second, 5)))


def prepared(name, folder, server, protocol=""):
    made = task(name + protocol)
    loaded = made.load(write(folder / "data", name))
    options = plan(server, against=against(folder, loaded))
    give_judge([made], {made.key: loaded}, options, folder)
    return made, loaded


@pytest.mark.parametrize("name", TASKS)
def test_both_orders_are_judged_with_the_pictures(name, tmp_path):
    with server(record=True) as judge:
        made, loaded = prepared(name, tmp_path, judge)
        scored = judged(made, loaded, TEXTS)
    assert judge.requests == 12
    rows = {
        (row["metric"], row["language"]): row
        for row in made.aggregate(scored, "model", {"all": ["en", "hi"]}, 0)
    }
    balances = [balance(ours, theirs) for ours, theirs in zip(TEXTS, OTHERS, strict=True)]
    wins = [float(each > 0) for each in balances]
    assert [one.score.values["win"] for one in scored] == wins
    assert 0 < sum(wins) < 6
    assert rows["win", "en"]["value"] == pytest.approx(sum(wins[:3]) / 3)
    assert rows["win", "all"]["value"] == pytest.approx(sum(wins) / 6)
    assert rows["loss", "all"]["value"] == pytest.approx(sum(each < 0 for each in balances) / 6)
    assert rows["consistency", "all"]["value"] == 1
    assert made.describe()["against"] == "other"
    shown = [body["messages"][1]["content"] for _, body in judge.seen]
    assert sorted(len(content) for content in shown) == [2] * 8 + [3] * 4
    assert any("It must be mainly in Hindi" in content[-1]["text"] for content in shown)


def test_the_papers_protocol_is_one_order(tmp_path):
    with server() as judge:
        made, loaded = prepared("aya_vision_bench", tmp_path, judge, ":paper")
        scored = judged(made, loaded, TEXTS)
        assert judge.requests == 6
    assert "consistency" not in scored[0].score.values
    assert scored[0].score.judgements[0].startswith("Explanation: so\nFinal Decision: [[")


def test_a_judge_that_prefers_the_first_place_wins_nothing(tmp_path):
    with server(fallback=lambda text, lang: '{"explanation": "", "verdict": "A>B"}') as judge:
        made, loaded = prepared("m_wildvision", tmp_path, judge)
        scored = judged(made, loaded, TEXTS)
    for one in scored:
        assert one.score.values == {"win": 0, "loss": 0, "tie": 1, "consistency": 0}


def test_the_judge_sees_the_right_picture_in_the_shuffled_run(tmp_path):
    with server(record=True) as judge:
        made, loaded = prepared("m_wildvision", tmp_path, judge)
        first = loaded.requests[0]
        other = shuffled(loaded.requests, 0)[0]
    assert other.pictures != first.pictures
    assert made.cases(other, "x")[0].pictures == first.pictures


def test_answers_to_compare_with_are_wanted_and_complete(tmp_path):
    with server() as judge:
        made = task("m_wildvision")
        loaded = made.load(write(tmp_path / "data", "m_wildvision"))
        with pytest.raises(ValueError, match="expected another model's answers, found none"):
            give_judge([made], {made.key: loaded}, plan(judge), tmp_path)
        path = against(tmp_path, loaded)
        path.write_text("\n".join(path.read_text().split("\n")[1:]))
        with pytest.raises(ValueError, match=r"found none to 1 questions, the first 'en/q0'"):
            give_judge([made], {made.key: loaded}, plan(judge, against=path), tmp_path)
