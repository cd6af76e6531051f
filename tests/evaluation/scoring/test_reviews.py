import math

import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.reviews import (
    REVIEW_PARSERS,
    Review,
    llava_pair,
    lmms_eval_pair,
    maya_pair,
    parse_pair,
    summary,
    summary_as_published,
)

from .answers import around, texts
from .golden import golden, needs_golden


@pytest.mark.parametrize(
    "review",
    [
        "8 9", "8, 9", "8,9", "8  9", "8\t9", "\n8 9 ", "8 9.", "(8, 9)", "**8 9**", "８ ９", "8/10 9/10", "8.0 9.0", "8; 9",
        "Scores: 8 9", "8 9 - both are good", "8 9\n\nAssistant 1 has 3 faults", "Assistant 1: 8\nAssistant 2: 9",
        "Assistant 1: 8, Assistant 2: 9", "Assistant 1: 8/10; Assistant 2: 9/10\nBoth", "8 | 9", "<think>7 7</think>8 9", "٨ ٩",
        "**Assistant 1**: 8/10\n**Assistant 2**: 9/10\nBoth",
    ],
)  # fmt: skip
def test_both_scores_are_read_in_any_usual_form(review):
    assert parse_pair(review) == (8, 9)


@pytest.mark.parametrize(
    "review",
    [
        "", "8", "8 9 7", "8-9", "eight nine", "nan nan", "-1 -1", "0 11", "10 11", "0.5 9", "100 3", "8 9 of 10",
        "I'm sorry, but I can't assist with that.", "Assistant 2: 8\nAssistant 1: 9", "Assistant 1: 8", "1. 8 9", "8 to 9", "8 and 9", "inf 3",
        "Assistant 1: 8, Assistant 1: 9", "Assistant 1: 8, Assistant 2: good", "7,5 8", "8.9", "Here are the scores:\n8 9",
        "Both are good.\n8 9",
    ],
)  # fmt: skip
def test_anything_else_is_none(review):
    assert parse_pair(review) is None


@pytest.mark.parametrize(
    ("review", "llava", "maya", "lmms_eval"),
    [
        ("8 9", (8, 9), (8, 9), (8, 9)),
        ("8, 9", None, None, None),
        ("8,9", (8, 9), (8, 9), (8, 9)),
        ("8 9 ", None, (8, 9), (8, 9)),
        ("8 9 7", None, (8, 9), None),
        ("\n8 9", None, None, None),
        ("100 3", (100, 3), (100, 3), (100, 3)),
    ],
)
def test_public_parsers_keep_their_mistakes(review, llava, maya, lmms_eval):
    assert (llava_pair(review), maya_pair(review), lmms_eval_pair(review)) == (
        llava,
        maya,
        lmms_eval,
    )


@settings(deadline=None)
@given(texts, around, around)
def test_parsers_never_fail(review, before, after):
    for parser in REVIEW_PARSERS.values():
        pair = parser(review)
        assert pair is None or len(pair) == 2
    pair = parse_pair(review)
    assert pair is None or all(1 <= score <= 10 for score in pair)
    assert parse_pair(before + review + after) == pair


def test_a_failed_judgement_is_left_out_and_listed():
    reviews = [
        Review("1", "conv", (8.0, 4.0)),
        Review("2", "conv", None),
        Review("3", "detail", (10.0, 5.0)),
    ]
    score = summary(reviews)
    assert score["categories"]["all"]["relative"] == 50.0
    assert score["categories"]["conv"] == {
        "asked": 2, "n": 1, "mean_reference": 8.0, "mean_model": 4.0, "relative": 50.0, "line": "conv 50.0 80.0 40.0",
    }  # fmt: skip
    assert (score["failed"], score["failed_ids"]) == (1, ["2"])
    assert score["failed_share"] == pytest.approx(1 / 3)


def test_the_published_way_averages_minus_one():
    score = summary_as_published([Review("1", "conv", (8.0, 4.0)), Review("2", "conv", None)])
    assert score["categories"]["conv"]["line"] == "conv 42.9 35.0 15.0"
    assert score["metric"] != summary([Review("1", "conv", (8.0, 4.0))])["metric"]
    assert score["failed_ids"] == ["2"]


def test_a_category_without_a_judgement_has_no_score():
    score = summary([Review("1", "conv", None)])
    assert score["categories"]["conv"]["relative"] is None
    assert score["categories"]["all"]["line"] is None


def test_bad_rows_are_named():
    with pytest.raises(ValueError, match="review '1': expected two numbers"):
        summary([Review("1", "conv", (math.nan, 1.0))])
    with pytest.raises(ValueError, match="review '1': expected once"):
        summary([Review("1", "conv", (1.0, 1.0))] * 2)
    with pytest.raises(ValueError, match="at least one review"):
        summary([])


@needs_golden
def test_golden_reviews_are_read_as_both_scripts_read_them():
    def same(pair, expected):
        if expected == "nan":
            return pair is not None and all(map(math.isnan, pair))
        return (None if pair is None else list(pair)) == expected

    for case in golden("reviews/parse_cases.jsonl"):
        assert same(llava_pair(case["review"]), case["llava"]), case["review"]
        assert same(maya_pair(case["review"]), case["maya"]), case["review"]
        if case["source"] != "edge":
            assert same(parse_pair(case["review"]), case["llava"]), case["review"]


@needs_golden
def test_golden_summaries():
    known = golden("reviews/expected.json")
    failed = known["three_failed_judgements"]
    reviews = [
        Review(str(row["question_id"]), row["category"], parse_pair(row["review"]))
        for row in golden("reviews/english_reviews.jsonl")
    ]
    three = [
        Review(r.id, r.category, None if int(r.id) in failed["question_ids"] else r.pair)
        for r in reviews
    ]
    for score, expected in (
        (summary(reviews), known["summary"]),
        (summary_as_published(reviews), known["summary"]),
        (summary_as_published(three), failed["original_way_averages_minus_one"]),
        (summary(three), failed["right_way_leaves_them_out"]),
    ):
        for name, values in expected.items():
            assert score["categories"][name].items() >= values.items(), name
    assert summary(three)["failed_ids"] == [str(i) for i in failed["question_ids"]]
