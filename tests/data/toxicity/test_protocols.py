"""Test answers of guard models: every format is parsed; broken answers go to people, never safe."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maya_vlm.training.data.toxicity.protocols import PROTOCOLS, unsafe_probability

V12 = {"rating": "Unsafe", "category": "O3: Sexual Content", "rationale": "It shows ..."}
V10 = {
    "image-category": "O6: Illegal Weapons or Substance Abuse",
    "assessment": "It shows a gun. It needs review.",
    "decision": "Review Needed",
}
POLY = (
    "Harmful request: {}\nRequest safety violations: {}\nResponse refusal: no\n"
    "Harmful response: {}\nResponse safety violations: {}"
)


def read(name, answer, logprobs=None):
    return PROTOCOLS[name].read(answer, logprobs)


@pytest.mark.parametrize(
    ("rating", "category", "label"),
    [
        ("Unsafe", "O3: Sexual Content", "unsafe"),
        ("Safe", "NA: None applying", "safe"),
        # A category with an exception that applies.
        ("Safe", "O6: Weapons or Substance Abuse", "safe"),
    ],
)
@pytest.mark.parametrize(
    "wrap", ["{}", "```json\n{}\n```", "{}</s>", "Here it is:\n{}", "\n {} \n"]
)
def test_llavaguard_v1_2_is_read(rating, category, label, wrap):
    answer = json.dumps({"rating": rating, "category": category, "rationale": "why"}, indent=4)
    found = read("llavaguard-v1.2", wrap.replace("{}", answer))
    assert (found.label, found.category, found.rationale) == (label, category, "why")
    assert found.parse_ok
    assert found.raw == wrap.replace("{}", answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "NA",
        "Safe",
        "The image is Safe.",
        '{"rating": "Safe", "category": "NA: None applying", "ration',
        '{"rating": "Safe", "category": "NA: None applying", "rationale": "cut off in the mid',
        '{"rating": "Safe", "category": "NA: None applying"}',
        '{"rating": "Safe", "rationale": "no category"}',
        '{"rating": "Safe", "category": "something", "rationale": "r"}',
        '{"rating": "Perhaps", "category": "NA: None applying", "rationale": "r"}',
        '{"rating": true, "category": "NA: None applying", "rationale": "r"}',
        '{"rating": ["Safe"], "category": "NA: None applying", "rationale": "r"}',
        '{"rating": "Safe", "category": "NA: None applying", "rationale": 3}',
        '{"rating": "Unsafe", "rating": "Safe", "category": "NA: None applying", "rationale": "r"}',
        json.dumps(V12) + json.dumps({**V12, "rating": "Safe"}),
        "['rating', 'Safe']",
        "I'm sorry, but I can't help with that request.",
        json.dumps(V10),
    ],
)
def test_broken_llavaguard_answers_are_for_people(answer):
    found = read("llavaguard-v1.2", answer)
    assert (found.label, found.parse_ok, found.score) == ("review", False, None)
    assert found.raw == answer


@pytest.mark.parametrize(
    ("data", "label", "category"),
    [
        (V10, "unsafe", V10["image-category"]),
        (
            {**V10, "decision": "Compliant", "image-category": "10: None applying"},
            "safe",
            "10: None applying",
        ),
        (
            {
                "assessment": "Review Needed",
                "category": "O1: Hate, Humiliation, Harassment",
                "explanation": "e",
            },
            "unsafe",
            "O1: Hate, Humiliation, Harassment",
        ),
        (
            {
                "final-assessment": "Compliant",
                "policy-category": "NA: None applying",
                "explanation": "e",
            },
            "safe",
            "NA: None applying",
        ),
    ],
)
def test_older_llavaguard_templates_are_read(data, label, category):
    found = read("llavaguard-v1.0", json.dumps(data))
    assert (found.label, found.category, found.parse_ok) == (label, category, True)
    assert found.rationale in data.values()


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps(V12),
        json.dumps(V10)[:-2],
        "{}",
        json.dumps({**V10, "decision": "Safe"}),
        "Compliant",
    ],
)
def test_broken_older_answers_are_for_people(answer):
    assert read("llavaguard-v1.0", answer).label == "review"
    assert not read("llavaguard-v1.0", answer).parse_ok


@pytest.mark.parametrize(
    ("answer", "label", "category", "ok"),
    [
        ("Safety: Safe\nCategories: None", "safe", None, True),
        ("Safety: Unsafe\nCategories: Violent, PII", "unsafe", "Violent, PII", True),
        (
            "Safety: Controversial\nCategories: Unethical Acts\nRefusal: No",
            "review",
            "Unethical Acts",
            True,
        ),
        ("Safety: Safe", "review", None, False),
        ("Safety: Saf", "review", None, False),
        ("Safety: Safe\nCategories: Violent", "review", None, False),
        ("Safety: Safe\nSafety: Unsafe\nCategories: None", "review", None, False),
        ("It is safe.", "review", None, False),
        ("", "review", None, False),
    ],
)
def test_qwen3guard(answer, label, category, ok):
    found = read("qwen3guard", answer)
    assert (found.label, found.category, found.parse_ok) == (label, category, ok)


@pytest.mark.parametrize(
    ("answer", "label", "category", "ok"),
    [
        (POLY.format("no", "None", "no", "None"), "safe", None, True),
        (POLY.format("no", "None", "n/a", "None"), "safe", None, True),
        (POLY.format("yes", "S10", "no", "None"), "unsafe", "S10", True),
        (POLY.format("yes", "S1, S10", "yes", "S10,S12"), "unsafe", "S1, S10, S12", True),
        (POLY.format("no", "None", "yes", "S12"), "unsafe", "S12", True),
        (POLY.format("maybe", "None", "no", "None"), "review", None, False),
        ("Harmful request: no", "review", None, False),
        (POLY.format("no", "None", "no", "None") + "\nHarmful request: yes", "review", None, False),
        ("no", "review", None, False),
    ],
)
def test_polyguard(answer, label, category, ok):
    found = read("polyguard", answer)
    assert (found.label, found.category, found.parse_ok) == (label, category, ok)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("safe", "safe"),
        ("Unsafe.", "unsafe"),
        ("**Safe**", "safe"),
        ("Answer: unsafe", "unsafe"),
        ("not safe", "review"),
        ("safe or unsafe", "review"),
        ("The image is safe", "review"),
        ("", "review"),
    ],
)
def test_rationale_judge(answer, label):
    assert read("rationale", answer).label == label


@pytest.mark.parametrize("name", PROTOCOLS)
@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_noise_is_never_safe_unless_it_is_the_form(name, answer):
    found = read(name, answer)
    assert found.label == "review" or found.parse_ok


@pytest.mark.parametrize("rating", ["Safe", "Unsafe"])
def test_any_cut_answer_is_for_people(rating):
    answer = json.dumps({**V12, "rating": rating})
    for length in range(len(answer)):
        assert read("llavaguard-v1.2", answer[:length]).label == "review"


def tokens(*items):
    """Return OpenAI's logprobs from texts or (text, {alternative: probability})."""
    content = []
    for item in items:
        token, options = item if isinstance(item, tuple) else (item, {item: 0.99})
        top = [{"token": t, "logprob": math.log(p)} for t, p in options.items()]
        logprob = math.log(options.get(token, 1e-9))
        content.append({"token": token, "logprob": logprob, "top_logprobs": top})
    return content


def test_the_score_is_that_of_the_rating_token():
    options = {"Uns": 0.6, "Safe": 0.2, "Un": 0.1, "Maybe": 0.1}
    for parts in (
        ['{\n"rating": "', ("Uns", options), "afe", '", "category": "O3: Sexual Content", '],
        [
            '{"rating"',
            ":",
            (' "Uns', {f' "{k}': p for k, p in options.items()}),
            "afe",
            '", "category": "O3: Sexual Content", ',
        ],
    ):
        logprobs = tokens(*parts, '"rationale": "Safe? No."}')
        found = read("llavaguard-v1.2", "".join(t["token"] for t in logprobs), logprobs)
        assert found.label == "unsafe"
        assert found.score == pytest.approx(0.7 / 0.9)


def test_scores_of_the_other_forms():
    logprobs = tokens(
        "Safety",
        ":",
        (" Safe", {" Safe": 0.5, " Unsafe": 0.25, " Cont": 0.25}),
        "\nCategories: None",
    )
    assert read("qwen3guard", "Safety: Safe\nCategories: None", logprobs).score == pytest.approx(
        0.375
    )
    logprobs = tokens("Harmful", " request", ":", (" no", {" no": 0.9, " yes": 0.1}), "\nRequest")
    answer = POLY.format("no", "None", "no", "None")
    assert read("polyguard", answer, logprobs).score == pytest.approx(0.1)
    logprobs = tokens(("unsafe", {"unsafe": 0.8, "safe": 0.2}))
    assert read("rationale", "unsafe", logprobs).score == pytest.approx(0.8)
    logprobs = tokens(
        '{"assessment": "', ("Review", {"Review": 0.3, "Com": 0.1, "Compliant": 0.6}), " Needed"
    )
    protocol = PROTOCOLS["llavaguard-v1.0"]
    assert unsafe_probability(logprobs, protocol.decides, protocol.words) == pytest.approx(0.3)


def test_no_score_is_better_than_a_wrong_one():
    answer = json.dumps(V12)
    assert read("llavaguard-v1.2", answer, None).score is None
    assert read("llavaguard-v1.2", answer, []).score is None
    assert read("llavaguard-v1.2", answer, tokens("nothing", " of it")).score is None
    assert read("llavaguard-v1.2", answer, tokens('{"rating": "')).score is None


def test_prompts_name_every_category():
    for name in ("llavaguard-v1.2", "llavaguard-v1.0"):
        prompt = PROTOCOLS[name].prompt
        for number in range(1, 10):
            assert (
                prompt.count(f"O{number}: ") == 2
            )  # in the policy, and in the format of the answer
    assert "S14: " in PROTOCOLS["polyguard"].prompt
    assert PROTOCOLS["qwen3guard"].prompt == ""
    assert PROTOCOLS["qwen3guard"].messages("", "a cat") == [{"role": "user", "content": "a cat"}]
    system, user = PROTOCOLS["polyguard"].messages("policy", "a cat")
    assert system["content"] == "policy"
    assert "a cat" in user["content"]
