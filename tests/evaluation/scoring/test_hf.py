"""Every metric loads by path without a network, and returns the scores of our functions."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maya_vlm.training.evaluation.scoring.choices import LATIN
from maya_vlm.training.evaluation.scoring.hf import names, path

from .golden import GOLDEN, golden, needs_golden

OPTIONS = ["a dog", "a cat"]
# One case for each metric, and a part of its score.
CASES = {
    "pope": (
        {"predictions": ["Yes", "はい", "hm"], "references": ["yes", "no", "no"]},
        {"accuracy": 1 / 3, "yes_ratio": 2 / 3, "unparsable": 1, "parser": "yes_no@2"},
    ),
    "mme": (
        {
            "predictions": ["Yes", "No"],
            "references": ["Yes", "No"],
            "images": ["1.png", "1.png"],
            "categories": ["OCR", "OCR"],
            "parser": "yes_no_mme",
        },
        {"accuracy": 1.0, "perception": None, "parser": "yes_no_mme@1"},
    ),
    "multiple_choice": (
        {
            "predictions": ["答案是B", "both"],
            "references": ["B", "A"],
            "options": [OPTIONS, OPTIONS],
        },
        {"accuracy": 0.5, "unparsable_answers": [{"id": "1", "answer": "both"}]},
    ),
    "mmbench": (
        {
            "predictions": ["A", None],
            "references": ["A", "B"],
            "indexes": ["1", "1000001"],
            "options": [2, 2],
        },
        {"vanilla": 100.0, "circular": 0.0, "unparsable": 1},
    ),
    "scienceqa": (
        {
            "predictions": ["A", "The answer is B."],
            "references": ["A", "A"],
            "options": [OPTIONS, OPTIONS],
            "has_image": [True, False],
            "parser": "choice_llava_scienceqa",
        },
        {"metric": "scienceqa@1"},
    ),
    "mmmu_open": (
        {"predictions": ["It is 7.", "8"], "references": [["7"], ["7", "seven"]]},
        {"accuracy": 0.5, "right": [True, False]},
    ),
    "vqa_accuracy": (
        {
            "predictions": ["Yes"],
            "references": [["yes"] * 10],
            "question_types": ["is the"],
            "answer_types": ["yes/no"],
        },
        {"accuracy": 0.0, "per_answer_type": {"yes/no": 0.0}},
    ),
    "short_answers": (
        {"predictions": ["woman"], "references": [["man"]], "task": "xgqa"},
        {"rule": "centurio_exact", "n": 1},
    ),
    "captions": (
        {
            "predictions": ["A cat sleeps.", "Two boats."],
            "references": [["A cat sleeps."], ["Two boats.", "Boats at sea."]],
            "images": ["1.png", "2.png"],
            "language": "en",
        },
        {"n": 2, "tokenizer": "words@1"},
    ),
    "relative_score": (
        {"predictions": ["8, 4", "sorry"], "references": ["conv", "conv"]},
        {"failed": 1, "failed_ids": ["1"], "parser": "review@2"},
    ),
    "mmvet": (
        {"predictions": [[1.0, 0.5], [None, 0.5]], "references": [["rec"], ["ocr", "math"]]},
        {"total": 75.0, "failed_ids": ["1"]},
    ),
    "win_rate": (
        {
            "predictions": ["[[A>B]]", "hm"],
            "references": ["[[B>A]]", "[[A>B]]"],
            "languages": ["en", "en"],
        },
        {"macro_win": 100.0, "failed_ids": ["1"]},
    ),
    "language_fidelity": (
        {
            "predictions": ["La imagen muestra un perro pequeño en el suelo."],
            "references": ["es"],
            "questions": [""],
        },
        {"macro": 1.0},
    ),
}


def compute(cases, folder):
    """Return the scores of (metric, columns) pairs, computed in a process without a network."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("load_metrics.py"))],
        input=json.dumps(cases),
        env={**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_metric_loads_without_a_network(tmp_path):
    assert sorted(CASES) == names()
    scores = compute([(name, columns) for name, (columns, _) in CASES.items()], tmp_path)
    for (name, (_, expected)), score in zip(CASES.items(), scores, strict=True):
        for key, value in expected.items():
            close = pytest.approx(value) if isinstance(value, float) else value
            assert score[key] == close, (name, key)


def test_an_unknown_metric_is_told():
    with pytest.raises(ValueError, match=r"metric: expected one of captions, .*found 'meteor'"):
        path("meteor")


@needs_golden
def test_golden_numbers_through_evaluate(tmp_path):
    vqa, reviews = golden("vqa/cases.jsonl"), golden("reviews/english_reviews.jsonl")
    grades, duels = golden("mmvet/grades.json"), golden("pairwise/win_rate.json")
    coco = next(
        case for case in golden("captions/cases.json")["coco"] if case["tokenizer"] == "jieba"
    )
    chinese = golden("captions/cases.json")["raw"]["zh"]
    choices = golden("multiple_choice/cases.json")
    pope = golden("pope/counts.json")["random"]
    with (GOLDEN / "mmbench" / "predictions.csv").open(encoding="utf-8") as file:
        mmbench = list(csv.DictReader(file))
    # Answers with the published counts of right and wrong ones.
    answers = [("yes", "yes")] * pope["TP"] + [("yes", "no")] * pope["FP"]
    answers += [("no", "no")] * pope["TN"] + [("no", "yes")] * pope["FN"]
    xgqa = [case for case in golden("short_answers/cases.jsonl") if case["task"] == "xGQA"]
    spanish = [row for row in golden("palo_answers/maya.jsonl") if row["language"] == "es"]
    cases = {
        "pope": {
            "predictions": [answer for answer, _ in answers],
            "references": [label for _, label in answers],
            "parser": "yes_no_pope",
        },
        "vqa_accuracy": {
            "predictions": [case["prediction"] for case in vqa],
            "references": [case["answers"] for case in vqa],
            "question_types": [case["question_type"] for case in vqa],
            "answer_types": [case["answer_type"] for case in vqa],
        },
        "mmbench": {
            "predictions": [r["prediction"] if r["prediction"] in LATIN else None for r in mmbench],
            "references": [row["answer"] for row in mmbench],
            "indexes": [row["index"] for row in mmbench],
            "options": [int(row["n_options"]) for row in mmbench],
        },
        "relative_score": {
            "predictions": [row["review"] for row in reviews],
            "references": [row["category"] for row in reviews],
        },
        "mmvet": {
            "predictions": [row["grade_5runs"] for row in grades.values()],
            "references": [row["capability"] for row in grades.values()],
        },
        "win_rate": {
            "predictions": [f"[[{row['model_is_A']}]]" for row in duels["rows"]],
            "references": [f"[[{row['model_is_B']}]]" for row in duels["rows"]],
            "languages": [row["language"] for row in duels["rows"]],
        },
        "captions": {
            "predictions": [row["hypothesis"] for row in chinese],
            "references": [row["references"] for row in chinese],
            "images": [row["id"] for row in chinese],
            "language": "zh",
        },
        "multiple_choice": {
            "predictions": [case["response"] for case in choices["multiple_choice"]],
            "references": [
                case["expected"]["llava_scienceqa"] for case in choices["multiple_choice"]
            ],
            "options": [list(choices["options"].values())] * len(choices["multiple_choice"]),
            "parser": "choice_llava_scienceqa",
        },
        "mmmu_open": {
            "predictions": [case["response"] for case in choices["mmmu_open"]],
            "references": [
                [case["gold"]] if isinstance(case["gold"], str) else case["gold"]
                for case in choices["mmmu_open"]
            ],
        },
        "short_answers": {
            "predictions": [case["response"] for case in xgqa],
            "references": [[case["gold"]] for case in xgqa],
            "task": "xgqa",
        },
        "language_fidelity": {
            "predictions": [row["answer"] for row in spanish],
            "references": ["es"] * len(spanish),
            "questions": [row["question"] for row in spanish],
        },
    }
    scores = dict(zip(cases, compute(list(cases.items()), tmp_path), strict=True))
    for key, value in pope["expected"].items():
        assert scores["pope"][key] == pytest.approx(value, abs=1e-12), key
    assert scores["vqa_accuracy"]["overall"] == golden("vqa/expected.json")["official"]["overall"]
    expected = golden("mmbench/expected.json")
    assert scores["mmbench"]["circular"] == pytest.approx(expected["circular_accuracy"], abs=1e-9)
    assert scores["mmbench"]["per_row"] == pytest.approx(expected["per_row_accuracy"], abs=1e-9)
    line = golden("reviews/expected.json")["summary"]["all"]["line"]
    assert scores["relative_score"]["categories"]["all"]["line"] == line
    total = golden("mmvet/expected.json")["five_runs"]["total"]
    assert scores["mmvet"]["total"] == pytest.approx(total, abs=1e-9)
    win = duels["expected"]["both_orders_summed"]["win"]
    assert scores["win_rate"]["total"]["win"] == pytest.approx(win, abs=1e-9)
    assert scores["captions"]["cider"] == pytest.approx(coco["expected"]["CIDEr"], abs=1e-9)
    read = [case["expected"]["llava_scienceqa"] for case in choices["multiple_choice"]]
    assert scores["multiple_choice"]["correct"] == sum(letter is not None for letter in read)
    assert scores["mmmu_open"]["right"] == [case["correct"] for case in choices["mmmu_open"]]
    exact = [case["expected"]["centurio_exact"] for case in xgqa]
    assert scores["short_answers"]["scores"]["centurio_exact"] == sum(exact) / len(exact)
    assert scores["language_fidelity"]["macro"] == 1
