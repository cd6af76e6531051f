"""The published answers of both Maya checkpoints (480 each), scored without a model.

The answers are under CC-BY-NC and are kept next to the repository; without them these tests are skipped.
"""

import json
from collections import defaultdict

import pyarrow.parquet as pq
import pytest

from maya_vlm.training.evaluation.rejudge import rejudge
from maya_vlm.training.evaluation.results import read_results
from maya_vlm.training.evaluation.scoring.reviews import Review, summary
from maya_vlm.training.evaluation.table import text_table
from tests.evaluation.scoring.golden import GOLDEN, golden, needs_golden
from tests.evaluation.tasks.test_llava_bench import row_of, write_rows

from .judge_server import between, pair_of, plan, server

pytestmark = needs_golden
MODELS = ("maya", "maya_toxicity_free")
CATEGORIES = ["complex"] * 28 + ["conv"] * 17 + ["detail"] * 15


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Write the published questions, with made-up references."""
    rows = defaultdict(list)
    for one in golden("palo_answers/maya.jsonl"):
        number = one["question_id"]
        reference = f"A reference for {one['language']}/{number}."
        rows[one["language"]].append(row_of(number, one["question"], reference, CATEGORIES[number]))
    return write_rows(tmp_path_factory.mktemp("asked") / "data", rows)


@pytest.fixture(scope="module")
def judged(asked, tmp_path_factory):
    """Judge both models' answers with one judge and one file of judgements; return the results and the judge."""
    folder = tmp_path_factory.mktemp("judged")
    with server(record=True) as judge:
        for model in MODELS:
            rejudge(
                GOLDEN / "palo_answers" / f"{model}.jsonl",
                "palo",
                folder / model,
                data=asked.data,
                languages=asked.languages,
                judge=plan(judge, journal=folder / "judgements.jsonl"),
            )
    return folder, judge


def test_no_review_is_shared_between_two_models(judged):
    folder, judge = judged
    answers = {
        model: {
            (row["language"], row["question_id"]): row["answer"]
            for row in golden(f"palo_answers/{model}.jsonl")
        }
        for model in MODELS
    }
    reviewed = {
        model: {
            row["id"]: row
            for row in pq.read_table(folder / model / "answers/llava_bench.parquet").to_pylist()
        }
        for model in MODELS
    }
    shown = {body["messages"][1]["content"] for _, body in judge.seen}
    for model in MODELS:
        assert len(reviewed[model]) == 480
        for (language, number), text in answers[model].items():
            row = reviewed[model][f"{language}/{number}"]
            assert row["answer"] == text
            # The judge saw this answer, and this answer got the judge's review.
            (prompt,) = [
                each
                for each in shown
                if f"[Assistant 2]\n{text}\n\n[End" in each
                and f"A reference for {language}/{number}." in each
            ]
            first, second = pair_of(prompt)
            assert row["judgements"] == [f"{first} {second}\nBecause."]
            assert (row["reference"], row["model"]) == (first, second)
    alike = sum(
        answers["maya"][key] == answers["maya_toxicity_free"][key] for key in answers["maya"]
    )
    # Only answers that are equal in both models share a judgement.
    assert judge.requests == 960 - alike
    assert max(judge.counts.values()) == 1


def test_values_are_those_of_the_published_summary(judged):
    folder, _ = judged
    for model in MODELS:
        results = read_results(folder / model / "results.json")
        assert results["model"]["name"] == model
        values = {(row["metric"], row["subset"], row["language"]): row for row in results["rows"]}
        table = pq.read_table(folder / model / "answers/llava_bench.parquet").to_pylist()
        for language in ("en", "hi", "ja"):
            own = [row for row in table if row["language"] == language]
            told = summary(
                Review(row["id"], row["subset"], (row["reference"], row["model"])) for row in own
            )
            for subset, category in told["categories"].items():
                row = values["relative", subset, language]
                assert 100 * row["value"] == pytest.approx(category["relative"], abs=0.06)
                assert row["n"] == category["n"]
                assert row["low"] < row["value"] < row["high"]
        assert len({row["language"] for row in results["rows"]}) == 9
        # The files do not give the number of tokens.
        assert {"tokens", "cut"}.isdisjoint(row["metric"] for row in results["rows"])


def test_the_untranslated_japanese_questions_are_named(judged):
    folder, _ = judged
    results = read_results(folder / "maya" / "results.json")
    expected = golden("palo_answers/labels.json")["english_questions_in_the_japanese_set"]
    info = results["tasks"]["llava_bench"]
    assert info["asked"]["questions in English, by language"] == {"ja": [str(n) for n in expected]}
    assert info["judge"]["id"] == "judge-1"
    assert info["judge"]["failed_share"] == 0.01
    assert "judge: judge-1, rubric llava_review@1; failed judgements: none" in text_table(
        results, "llava_bench"
    )


def test_answers_judged_before_are_not_paid_again(judged, asked):
    folder, _ = judged
    with server() as judge:
        again = rejudge(
            folder / "maya" / "answers" / "llava_bench.parquet",
            "llava_bench",
            folder / "again",
            data=asked.data,
            languages=asked.languages,
            judge=plan(judge, journal=folder / "judgements.jsonl"),
        )
    assert judge.requests == 0
    assert again["rows"] == read_results(folder / "maya" / "results.json")["rows"]
    assert json.loads((folder / "again" / "results.json").read_text())["model"]["name"] == "maya"


@pytest.mark.parametrize("fails", [False, True])
def test_published_reviews_give_their_published_summary(fails, tmp_path):
    """The judge returns 60 real reviews; in the second case three of them are failures."""
    reviews = golden("reviews/english_reviews.jsonl")
    expected = golden("reviews/expected.json")
    failed = expected["three_failed_judgements"]["question_ids"] if fails else []
    said = {
        f"Answer {one['question_id']}.": "no" if one["question_id"] in failed else one["review"]
        for one in reviews
    }
    rows = [
        row_of(one["question_id"], f"What is it, {one['question_id']}?", "It.", one["category"])
        for one in reviews
    ]
    asked = write_rows(tmp_path / "data", {"en": rows})
    lines = [
        {"question_id": one["question_id"], "language": "en", "answer": text}
        for one, text in zip(reviews, said, strict=True)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def reviewer(text, lang):
        return said[between(text, "[Assistant 2]\n", "\n\n[End of Assistant 2]")]

    with server(fallback=reviewer) as judge:
        results = rejudge(
            tmp_path / "a.jsonl",
            "palo",
            tmp_path / "out",
            data=asked.data,
            languages=["en"],
            judge=plan(judge, failed_share=0.3),
        )
    known = (
        expected["three_failed_judgements"]["right_way_leaves_them_out"]
        if fails
        else expected["summary"]
    )
    values = {
        (row["metric"], row["subset"]): row for row in results["rows"] if row["language"] == "en"
    }
    for category, summed in known.items():
        subset = category.removeprefix("llava_bench_")
        relative = float(summed["line"].split(" ")[1])
        assert round(100 * values["relative", subset]["value"], 1) == relative
        assert values["relative", subset]["n"] == summed["n"]
        assert values["model", subset]["value"] == pytest.approx(summed["mean_model"], abs=5e-4)
        reference = values["reference", subset]["value"]
        assert reference == pytest.approx(summed["mean_reference"], abs=5e-4)
