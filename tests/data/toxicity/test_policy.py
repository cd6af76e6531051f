"""Test the policy: the truth table, the papers' rule, and that no row is lost."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maya_vlm.training.data.toxicity.policy import (
    JudgeRule,
    Outcome,
    Policy,
    RowOutcomes,
    Thresholds,
    combine,
    confirmed,
    decide,
    outcome,
)
from tests.helpers.languages import PAPER

CLEAN, REVIEW, DROP = (
    Outcome("clean", "c", None, frozenset(["safe"])),
    Outcome("review", "r", "cat", frozenset(["review"])),
    Outcome("drop", "d", "cat", frozenset(["unsafe"])),
)


def verdict(score=None, label="safe", lang="en", **more):
    row = {"judge": "j", "label": label, "score": score, "lang": lang, "category": "insult"}
    return {**row, "parse_ok": True, "error": None, **more}


@pytest.mark.parametrize(
    ("score", "decided"), [(0.9, "drop"), (0.8999, "review"), (0.5, "review"), (0.4999, "clean")]
)
def test_thresholds(score, decided):
    assert outcome(JudgeRule(), verdict(score)).decided == decided


def test_a_threshold_may_have_to_be_passed():
    rule = JudgeRule(drop_at=0.8, review_at=0.8, compare=">")
    assert outcome(rule, verdict(0.8)).decided == "clean"
    assert outcome(rule, verdict(0.8000001)).decided == "drop"


def test_languages_have_their_thresholds():
    rule = JudgeRule(languages={"es": Thresholds(0.8, 0.3)})
    assert outcome(rule, verdict(0.85, lang="es")).decided == "drop"
    assert outcome(rule, verdict(0.85, lang="es-MX")).decided == "drop"
    assert outcome(rule, verdict(0.85, lang="fr")).decided == "review"
    assert outcome(rule, verdict(0.3, lang="es")).decided == "review"


@pytest.mark.parametrize(
    ("label", "decided"), [("safe", "clean"), ("review", "review"), ("unsafe", "drop")]
)
def test_labels_decide_where_there_is_no_score_or_where_the_rule_says_so(label, decided):
    assert outcome(JudgeRule(), verdict(None, label)).decided == decided
    assert outcome(JudgeRule(by="label"), verdict(0.01, label)).decided == decided


@pytest.mark.parametrize("rule", [JudgeRule(), JudgeRule(by="label")])
def test_what_was_not_understood_is_never_clean(rule):
    broken = verdict(None, "review", parse_ok=False)
    failed = verdict(None, "review", parse_ok=False, error="HTTP 503")
    assert outcome(rule, broken).decided == outcome(rule, failed).decided == "review"
    assert "HTTP 503" in outcome(rule, failed).reason


@pytest.mark.parametrize(
    ("outcomes", "any_", "all_"),
    [
        ([CLEAN], "clean", "clean"),
        ([REVIEW], "review", "review"),
        ([DROP], "drop", "drop"),
        ([CLEAN, CLEAN], "clean", "clean"),
        ([CLEAN, REVIEW], "review", "review"),
        ([CLEAN, DROP], "drop", "review"),
        ([REVIEW, DROP], "drop", "review"),
        ([DROP, DROP], "drop", "drop"),
    ],
)
def test_judges_together(outcomes, any_, all_):
    for order in (outcomes, outcomes[::-1]):
        assert combine(order, "any").decided == any_
        assert combine(order, "all").decided == all_


def test_labels_that_contradict_each_other_are_for_people():
    # The label says unsafe (0.6), but this policy starts reviews at 0.7.
    lenient = outcome(JudgeRule(drop_at=0.95, review_at=0.7), verdict(0.6, "unsafe"))
    assert combine([lenient]).decided == "clean"
    together = combine([lenient, CLEAN])
    assert together.decided == "review"
    assert "disagree" in together.reason
    assert combine([]) is None


def test_a_second_judge_restricts_the_first():
    assert confirmed(DROP, DROP, "r").decided == "drop"
    assert confirmed(DROP, CLEAN, "r").decided == "clean"
    assert confirmed(DROP, REVIEW, "r").decided == "review"
    assert confirmed(DROP, None, "r").decided == "review"
    assert confirmed(CLEAN, DROP, "r").decided == "clean"
    assert confirmed(REVIEW, CLEAN, "r").decided == "review"
    # A drop that the second judge clears is no disagreement.
    assert combine([confirmed(DROP, CLEAN, "r"), CLEAN]).decided == "clean"


# rows of one id: en is the source, fr and ja are translations.
# (image, en, fr, ja) -> decisions of en, fr, ja; c clean, r review, d drop, - not judged
TABLE = {
    "cccc": "ccc",
    "-ccc": "ccc",
    "cc--": "ccc",
    "dccc": "ddd",
    "dddd": "ddd",
    "cdcc": "ddd",
    "rdcc": "ddd",
    "rccc": "rrr",
    "crcc": "rrr",
    "ccdc": "rdr",
    "ccdd": "rdd",
    "ccrc": "crc",
    "rcdc": "rdr",
    "crdc": "rdr",
    "ccdr": "rdr",
    "c-dc": "rdr",
    "----": "ccc",
}
OUTCOMES = {"c": CLEAN, "r": REVIEW, "d": DROP, "-": None}


def rows(pattern, id_="1"):
    image, *texts = (OUTCOMES[letter] for letter in pattern)
    return [
        RowOutcomes(id_, lang, lang == "en", text, image)
        for lang, text in zip(("en", "fr", "ja"), texts, strict=True)
    ]


def letters(decisions):
    return "".join({"clean": "c", "review": "r", "flagged": "d"}[d.decision] for d in decisions)


@pytest.mark.parametrize(("pattern", "expected"), TABLE.items())
def test_truth_table(pattern, expected):
    found = decide(rows(pattern), Policy("p"))
    assert letters(found) == expected
    assert [d.lang for d in found] == ["en", "fr", "ja"]
    for made in found:
        assert (made.decision == "clean") == (made.stage == "")
        assert made.decision == "clean" or made.reason


def test_a_toxic_translation_may_take_the_others_along():
    policy = Policy("p", translation_drop="all_languages")
    assert letters(decide(rows("ccdc"), policy)) == "ddd"
    assert letters(decide(rows("ccrc"), policy)) == "crc"


def test_stages_and_reasons():
    image, source, one = (decide(rows(p), Policy("p"))[1] for p in ("dccc", "cdcc", "ccdc"))
    assert [d.stage for d in (image, source, one)] == ["image", "source", "translation"]
    assert decide(rows("cc--"), Policy("p"))[1].reason == "text not judged"
    assert "only fr is toxic" in decide(rows("ccdc"), Policy("p"))[0].reason


every = st.sampled_from([CLEAN, REVIEW, DROP, None])


@given(st.lists(st.tuples(every, every, every, every), max_size=20), st.booleans())
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_and_worse_verdicts_never_clear_a_row(groups, all_languages):
    policy = Policy("p", translation_drop="all_languages" if all_languages else "row")
    counts = Counter()
    for n, (image, *texts) in enumerate(groups):
        given_rows = [
            RowOutcomes(str(n), lang, lang == "en", text, image)
            for lang, text in zip(("en", "fr", "ja"), texts, strict=True)
        ]
        found = decide(given_rows, policy)
        assert [(d.id, d.lang) for d in found] == [(r.id, r.lang) for r in given_rows]
        counts.update(d.decision for d in found)
        for row, made in zip(given_rows, found, strict=True):
            bad = [o.decided for o in (row.text, row.image) if o is not None]
            if "drop" in bad:
                assert made.decision == "flagged"
            elif "review" in bad:
                assert made.decision != "clean"
            if any(o == DROP for o in (image, texts[0])):
                assert made.decision == "flagged"
    assert sum(counts.values()) == 3 * len(groups)


@pytest.mark.slow
def test_the_papers_arithmetic_in_full():
    """558,128 images in eight languages: 892 toxic captions and 7,111 toxic images, 472 are both.

    7,531 are dropped from each language, and 4,404,776 rows remain, as in the published dataset.
    """
    policy = Policy.read("paper")
    rule, guard = policy.rule("toxic-bert"), policy.rule("llavaguard-v1.2")
    caption = {True: outcome(rule, verdict(0.81)), False: outcome(rule, verdict(0.8))}
    seen = confirmed(outcome(guard, verdict(None, "unsafe")), DROP, "command-r-plus")
    image = {True: seen, False: outcome(guard, verdict(None, "safe"))}
    left = dropped = 0
    for n in range(558_128):
        toxic, unsafe = n < 892, 892 - 472 <= n < 892 - 472 + 7_111
        rows = [
            RowOutcomes(
                "x", lang, lang == "en", caption[toxic] if lang == "en" else None, image[unsafe]
            )
            for lang in PAPER
        ]
        found = Counter(made.decision for made in decide(rows, policy))
        assert found == {"flagged" if toxic or unsafe else "clean": 8}
        left += found["clean"]
        dropped += found["flagged"]
    assert dropped == 8 * 7_531
    assert left == 8 * 550_597 == 4_404_776


def test_shipped_policies():
    default, paper = Policy.read("default"), Policy.read("paper")
    v2 = default.rule("mine", "textdetox-v2")
    assert (v2.thresholds("en").drop_at, v2.thresholds("en").review_at) == (0.9, 0.5)
    assert v2.thresholds("ar").drop_at < 0.9
    assert v2.because
    assert default.rule("unknown") == default.default
    assert paper.rule("toxic-bert") == JudgeRule(
        drop_at=0.8, review_at=0.8, compare=">", because="the papers' threshold"
    )
    assert paper.rule("llavaguard-v1.2").confirmed_by == "command-r-plus"
    assert default.sha != paper.sha


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: p\ndefault: {drop_at: 0.4, review_at: 0.5}", "review_at <= drop_at"),
        ("name: p\njudges: {a: {drop_at: high}}", "judges.a.drop_at: expected a number"),
        ("name: p\nagreement: some", "agreement: expected 'any' | 'all'"),
        ("name: p\njudge: {}", "did you mean 'judges'"),
        ("judges: {}", "name: expected text, found nothing"),
        ("- a", "expected a mapping"),
    ],
)
def test_bad_policies(tmp_path, text, message):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"policy\.yaml") as error:
        Policy.read(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_policy():
    with pytest.raises(ValueError, match="policy: expected a file or one of default, paper"):
        Policy.read("defualt")
