import json

import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.tasks.mm_vet import MmVet
from tests.evaluation.judges.judge_server import judged, number, plan, reply, server

from .public_rows import PICTURE, TEXT, picture, write_dataset

FEATURES = {"question_id": TEXT, "image": PICTURE, "question": TEXT, "answer": TEXT}
FEATURES |= {"image_source": TEXT, "capability": TEXT}
ROWS = [
    ("v1_0", "What is x?", "-1<AND>-5", "ocr,math"),
    ("v1_1", "What is y?", "2<OR>two", "math,ocr"),
    ("v1_2", "Which animal?", "a cat", "rec"),
]
TEXTS = ["x = -1", "two", "a dog | or\na cat"]


def write(folder, rows=ROWS):
    made = [
        {
            "question_id": name,
            "image": picture(place),
            "question": question,
            "answer": answer,
            "image_source": "web",
            "capability": capability,
        }
        for place, (name, question, answer, capability) in enumerate(rows)
    ]
    return Selection(data=str(write_dataset(folder, FEATURES, {("default", "test"): made})))


def rows_of(made, folder, server):
    loaded = made.load(write(folder / "data"))
    made.prepare(plan(server).open(folder), None)
    scored = judged(made, loaded, TEXTS)
    rows = made.aggregate(scored, "model", {"all": ["en"]}, 0)
    return scored, {(row["metric"], row["subset"], row["language"]): row for row in rows}


def test_an_answer_is_graded_five_times_in_a_row_of_a_table(tmp_path):
    said = iter(["0.1", "0.3", "0.2", "0.5", "0.4"] + ["1.0"] * 5 + ["0.0"] * 5)
    asked = []

    def grade(text, lang):
        asked.append(text.split("\n")[-1] if " | a dog | " not in text else text)
        return next(said)

    made = MmVet()
    with server(fallback=grade) as judge:
        loaded = made.load(write(tmp_path / "data"))
        made.prepare(plan(judge, concurrency=1).open(tmp_path), None)
        scored = judged(made, loaded, TEXTS)
    assert judge.requests == 15
    assert asked[0] == "What is x? | -1 <AND> -5 | x = -1 | "
    rows = {
        (row["metric"], row["subset"]): row
        for row in made.aggregate(scored, "model", {"all": ["en"]}, 0)
        if row["language"] == "en"
    }
    assert scored[0].score.values["run_2"] == 0.3
    assert rows["score", "ability/all"]["value"] == pytest.approx((0.3 + 1 + 0) / 3)
    assert rows["score", "ability/math"]["value"] == pytest.approx(0.65)
    assert rows["score", "combination/math_ocr"]["n"] == 2
    assert rows["score", "combination/rec"]["value"] == 0
    # Runs differ only in the first answer: the deviation of .1 .3 .2 .5 .4, over three answers.
    assert rows["spread", "ability/all"]["value"] == pytest.approx(0.02**0.5 / 3)
    assert ("score", "ability/know") not in rows


def test_the_strict_protocol_grades_once_and_keeps_texts_apart(tmp_path):
    with server(record=True) as judge:
        scored, rows = rows_of(MmVet("strict"), tmp_path, judge)
    assert judge.requests == 3
    grades = [number(text, 11) / 10 for text in TEXTS]
    assert [one.score.values["score"] for one in scored] == grades
    assert rows["score", "ability/all", "en"]["value"] == pytest.approx(sum(grades) / 3)
    assert not any(metric == "spread" for metric, _, _ in rows)


def test_the_evaluators_file_has_every_answer(tmp_path):
    made = MmVet("strict")
    with server(fallback=reply) as judge:
        scored, _ = rows_of(made, tmp_path, judge)
    (path,) = made.export(scored, tmp_path)
    assert json.loads(path.read_text()) == dict(zip(["v1_0", "v1_1", "v1_2"], TEXTS, strict=True))


def test_an_unknown_capability_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"row 0: expected a unique question_id and a capab"):
        MmVet().load(write(tmp_path, [("v1_0", "What?", "a", "ocr,taste")]))
