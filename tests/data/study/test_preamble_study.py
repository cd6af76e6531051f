"""Test the preamble study: sampling, scores, and whole studies with an endpoint of known quality."""

import csv
import itertools
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import yaml

from maya_vlm.training.cli import main
from maya_vlm.training.common.endpoint import EndpointError
from maya_vlm.training.data.study.preamble_study import load_study, run_study
from maya_vlm.training.data.study.sampling import (
    readability,
    repeats_words,
    stratified_sample,
    syllables,
)
from maya_vlm.training.data.verification.scoring import compare, metric
from tests.helpers.endpoint_server import EndpointServer

ENGLISH = [
    ["a red", "a small", "an old", "a black", "a white"],
    ["dog", "cat", "horse", "bird"],
    ["sleeps", "runs", "waits", "stands"],
    ["near the river", "in front of the house", "under a tree", "on the beach at night"],
]
FRENCH = [
    ["un", "un petit", "un vieux", "un beau", "un grand"],
    ["chien", "chat", "cheval", "oiseau"],
    ["dort", "court", "attend", "se tient debout"],
    ["près de la rivière", "devant la maison", "sous un arbre", "sur la plage la nuit"],
]
CHINESE = [
    ["一只红色的", "一只小", "一只老", "一只黑色的", "一只白色的"],
    ["狗", "猫", "马", "鸟"],
    ["睡在", "跑在", "等在", "站在"],
    ["河边", "房子前面", "树下", "夜晚的海滩上"],
]


def joined(parts: list[list[str]], space: str) -> list[str]:
    return [space.join(words) for words in itertools.product(*parts)]


CAPTIONS = joined(ENGLISH, " ")
TRUTHS = {
    "fr": dict(zip(CAPTIONS, joined(FRENCH, " "), strict=True)),
    "zh": dict(zip(CAPTIONS, joined(CHINESE, ""), strict=True)),
}


# ------------------------------------------------------------------------------ sampling


def test_syllables_and_readability():
    counted = {"cat": 1, "table": 2, "umbrella": 3, "bridge": 1, "the": 1, "I": 1, "coffee": 2}
    assert {word: syllables(word) for word in counted} == counted
    easy = readability("The cat sat on the mat.")
    assert easy.ease == pytest.approx(206.835 - 1.015 * 6 - 84.6 * 1)
    assert easy.grade == pytest.approx(0.39 * 6 + 11.8 * 1 - 15.59)
    hard = readability("Photographic documentation of architectural transformations.")
    assert hard.ease < easy.ease
    assert hard.grade > easy.grade
    assert readability("123 !").ease > easy.ease
    assert readability("One. Two.").grade < readability("One two three four").grade


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("a black cat sits on a wooden chair", False),
        ("chair", False),
        ("dog dog dog dog dog dog dog dog dog dog dog dog", True),
        ("red lawn lawn red lawn red lawn lawn red lawn red lawn lawn", True),
        ("12 34", False),
        ("", False),
    ],
)
def test_captions_that_repeat_words(text, repeats):
    assert repeats_words(text) == repeats


def test_sample_covers_all_strata_in_proportion():
    draw = np.random.default_rng(0)
    words = ["cat", "photographic", "table", "architecture", "red", "of", "beautiful", "house"]
    texts = [
        " ".join(draw.choice(words, size=draw.integers(1, 7), replace=False)) for _ in range(2000)
    ]
    texts += ["lawn " * 30] * 7
    sample = stratified_sample(texts, 300, 5, 5, seed=42)
    assert len(set(sample.chosen)) == len(sample.chosen) == 300
    assert sample.repetitive == 7
    assert sum(there for *_, there, _ in sample.strata) == 2000
    assert len(sample.strata) > 15
    for _, _, there, drawn in sample.strata:
        assert abs(drawn - 300 * there / 2000) < 1
    assert max(sample.chosen) < 2000
    again = stratified_sample(texts, 300, 5, 5, seed=42)
    assert again.chosen == sample.chosen
    assert stratified_sample(texts, 300, 5, 5, seed=43).chosen != sample.chosen


def test_a_sample_cannot_be_larger_than_what_is_there():
    with pytest.raises(ValueError, match=r"at most 2, the captions .*1 that repeat words, found 3"):
        stratified_sample(["a cat", "a dog", "red " * 20], 3, 5, 5, seed=0)
    whole = stratified_sample(["a cat", "a dog"], 2, 5, 5, seed=0)
    assert whole.chosen == [0, 1]


# ------------------------------------------------------------------------------ scores


def test_each_language_has_its_tokenizer():
    near = {
        "zh": ("一只黑色的猫坐在木头椅子上", "一只黑猫坐在木头椅子上"),
        "ja": ("黒い猫が木の椅子に座っている", "黒猫が木の椅子に座っている"),
        "fr": ("un chat noir est assis sur une chaise", "un chat noir assis sur une chaise"),
    }
    signatures = {"zh": "tok:zh", "ja": "tok:ja-mecab", "fr": "tok:13a"}
    for lang, (hypothesis, reference) in near.items():
        found = compare("bleu", lang, {"one": [hypothesis]}, [reference], resamples=2)
        assert signatures[lang] in found.signature
        assert found.scores["one"].score > 30
        by_spaces = sacrebleu.corpus_bleu([hypothesis], [[reference]], tokenize="13a").score
        assert (by_spaces < 1) == (lang != "fr")
    assert "nw:2" in compare("chrf++", "zh", {"one": ["猫"]}, ["猫"], 2).signature
    with pytest.raises(ValueError, match=r"metric: expected one of bleu.*, found 'ter'"):
        metric("ter", "fr")


@pytest.mark.parametrize("lang", ["fr", "zh"])
def test_scores_are_sacrebleus(lang):
    truths = list(TRUTHS[lang].values())[:40]
    noisy = [noise(t, 0.2, seed=str(i)) for i, t in enumerate(truths)]
    for name, scorer in (("bleu", metric("bleu", lang)), ("chrf++", metric("chrf++", lang))):
        found = compare(name, lang, {"noisy": noisy, "right": truths}, truths, resamples=200)
        assert found.scores["noisy"].score == pytest.approx(
            scorer.corpus_score(noisy, [truths]).score
        )
        assert found.scores["right"].score == pytest.approx(100)
        own = found.scores["noisy"]
        assert own.low < own.score < own.high
        assert found.winner == found.best == "right"
        assert found.best_share == {"noisy": 0.0, "right": 1.0}
        again = compare(name, lang, {"noisy": noisy, "right": truths}, truths, resamples=200)
        assert again == found


def noise(text: str, share: float, seed: str) -> str:
    """Replace some words, or characters if there are no spaces."""
    draw = random.Random(seed)
    words = text.split() if " " in text else list(text)
    other = "xyz" if " " in text else "空"
    return (" " if " " in text else "").join(
        other if draw.random() < share else word for word in words
    )


def test_equal_systems_seldom_have_a_winner():
    truths = [f"le {a} {b} {c}" for a, b, c in itertools.product("abcd", "efgh", "ijkl")]
    winners = 0
    for trial in range(20):
        systems = {str(n): [noise(t, 0.3, f"{trial} {n} {t}") for t in truths] for n in range(3)}
        winners += compare("chrf++", "fr", systems, truths, 100).winner is not None
    assert winners <= 3


def test_one_system_is_no_winner_and_lengths_must_fit():
    found = compare("chrf++", "fr", {"one": ["a b"]}, ["a b"], resamples=10)
    assert (found.best, found.winner, found.against) == ("one", None, {})
    with pytest.raises(ValueError, match="one: expected 2 translations, found 1"):
        compare("chrf++", "fr", {"one": ["a"]}, ["a", "b"])


# ------------------------------------------------------------------------------ whole studies

SHARES = {"rules": 0.02, "bare": 0.35, "native": 0.36}


def quality(messages: list[dict], truth: str) -> str:
    """Translate with a share of wrong words that depends on the preamble."""
    system = messages[0]["content"]
    if "Rules:\n1." in system:
        share = SHARES["rules"]
    else:
        share = SHARES["bare" if system.startswith("Translate the message") else "native"]
    return noise(truth, share, system[:20] + messages[-1]["content"])


def write_plan(folder: Path, url: str, **changes) -> Path:
    data = folder / "captions.csv"
    if not data.exists():
        with data.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text", "fr", "zh"])
            for number, text in enumerate(CAPTIONS):
                writer.writerow([f"{number:05}", text, TRUTHS["fr"][text], TRUTHS["zh"][text]])
    plan = {
        "name": "test",
        "output_dir": "./study",
        "captions": "./captions.csv",
        "references": "./captions.csv",
        "languages": ["fr", "zh"],
        "preambles": ["rules", "bare"],
        "samples": 24,
        "resamples": 100,
        "translator": {
            "endpoint": {"base_url": url, "model": "aya", "backoff": 0.001, "max_attempts": 3}
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**plan, **changes}, allow_unicode=True))
    return path


def test_the_better_preamble_wins_and_a_second_run_asks_nothing(tmp_path, capsys):
    with EndpointServer(TRUTHS, rewrite=quality) as server:
        path = write_plan(tmp_path, server.url)
        assert main(["data", "preambles", str(path)]) == 0
        assert server.requests == 24 * 2 * 2
        printed = capsys.readouterr().out
        assert "fr: rules wins" in printed
        results = (tmp_path / "study/results.json").read_bytes()
        run_study(path)
        assert server.requests == 24 * 2 * 2
    assert (tmp_path / "study/results.json").read_bytes() == results
    record = json.loads(results)
    assert record["sample"]["drawn"] == 24
    assert sum(s[2] for s in record["sample"]["strata"]) == len(CAPTIONS)
    for lang in ("fr", "zh"):
        found = record["languages"][lang]
        assert (found["winner"], found["best"], found["scored"]) == ("rules", "rules", 24)
        assert found["metrics"]["chrf++"]["scores"]["rules"]["score"] > 90
        assert found["metrics"]["bleu"]["against"]["bare"]["p"] < 0.05
        assert len({own["prompt_id"] for own in found["preambles"].values()}) == 2
        assert found["preambles"]["rules"]["requests"] == 24
    assert "tok:zh" in record["languages"]["zh"]["metrics"]["bleu"]["signature"]
    report = (tmp_path / "study/report.md").read_text()
    assert "**`rules`** wins: it leads every other preamble in chrF++" in report
    assert "References: given" in report
    for picture in re.findall(r"\]\((\w+\.png)\)", report):
        assert (tmp_path / "study" / picture).read_bytes().startswith(b"\x89PNG")
    # Files that may be published contain neither local paths nor the place of the key.
    assert str(tmp_path) not in report


def test_equal_preambles_have_no_significant_winner(tmp_path, capsys):
    with EndpointServer(TRUTHS, rewrite=quality) as server:
        path = write_plan(tmp_path, server.url, languages=["fr"], preambles=["bare", "native"])
        assert main(["data", "preambles", str(path)]) == 0
    assert "fr: no significant winner" in capsys.readouterr().out
    record = json.loads((tmp_path / "study/results.json").read_text())
    assert record["languages"]["fr"]["winner"] is None
    assert "**No significant winner.**" in (tmp_path / "study/report.md").read_text()


def test_failures_and_flags_are_counted_and_failed_requests_asked_again(tmp_path):
    with EndpointServer(TRUTHS) as server:
        path = write_plan(tmp_path, server.url, languages=["fr"])
        server.always = dict.fromkeys(CAPTIONS[:100], "refusal")
        server.always |= dict.fromkeys(CAPTIONS[100:140], "bad_request")
        _, record = run_study(path)
        own = record["languages"]["fr"]["preambles"]["rules"]
        assert own["flags"]["brackets"] == own["rejected"] > 0
        assert own["failed"] > 0
        assert own["failed"] + record["languages"]["fr"]["scored"] == 24
        assert record["languages"]["fr"]["unanswered_by_some"] == own["failed"]
        asked = server.requests
        server.always = {}
        _, record = run_study(path)
        assert server.requests == asked + 2 * own["failed"]
        again = record["languages"]["fr"]["preambles"]["rules"]
    assert again["failed"] == 0
    assert record["languages"]["fr"]["scored"] == 24
    assert again["rejected"] == own["rejected"]


def test_a_study_goes_on_where_it_was_stopped(tmp_path):
    with EndpointServer(TRUTHS, model="aya") as server:
        path = write_plan(tmp_path, server.url, languages=["fr"])
        server.faults = type(server.faults)(unavailable=1.0)
        with pytest.raises(EndpointError, match="requests in a row failed"):
            run_study(
                path, ["translator.endpoint.stop_after=5", "translator.endpoint.max_attempts=1"]
            )
        server.faults = type(server.faults)()
        _, record = run_study(path)
    assert record["languages"]["fr"]["scored"] == 24


def test_another_sample_or_preamble_is_asked_anew(tmp_path):
    with EndpointServer(TRUTHS) as server:
        path = write_plan(tmp_path, server.url, languages=["fr"], preambles=["bare"])
        _, before = run_study(path)
        assert server.requests == 24
        _, after = run_study(path, ["seed=1"])
        assert server.requests == 48
        run_study(path, ["seed=1", "preambles=[bare, brief]"])
        assert server.requests == 72
    assert before["sample"]["sha256"] != after["sample"]["sha256"]


# ------------------------------------------------------------------------------ references


def test_references_in_rows_of_id_lang_text(tmp_path):
    lines = [
        {"id": f"{n:05}", "lang": lang, "text": TRUTHS[lang][text]}
        for n, text in enumerate(CAPTIONS[:50])
        for lang in ("fr", "zh")
    ]
    (tmp_path / "refs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with EndpointServer(TRUTHS) as server:
        path = write_plan(tmp_path, server.url, references="./refs.jsonl", preambles=["bare"])
        _, record = run_study(path)
    assert record["sample"]["captions"] == 50
    left = record["sample"]["left_out"]["no reference in every language"]
    assert left == len(CAPTIONS) - 50
    with (tmp_path / "refs.jsonl").open("a") as file:
        file.write("\n" + json.dumps(lines[0]))
    with pytest.raises(
        ValueError,
        match=r"refs\.jsonl: row 101: fr: expected one reference, found a second for id '00000'",
    ):
        run_study(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": []}, "languages: expected at least one, each once"),
        ({"preambles": ["bare", "bare"]}, "preambles: expected at least one, each once"),
        ({"references": None}, "references: expected text, found nothing"),
        ({"accept_unreviewed": True}, "accept_unreviewed: expected no such key, because a study"),
        (
            {"reference_translator": {"preset": "aya-23-35b"}},
            "reference_translator: expected no such key, .*: translate the captions",
        ),
        ({"samples": 0}, "samples: expected 1 or more, found 0"),
        (
            {"alpha": 5.0},
            "alpha: expected no such key, it is always 0.05 and the report has every p: remove it",
        ),
        ({"decide_by": "bleu"}, r"decide_by: expected no such key, chrf\+\+ always decides"),
        ({"sampels": 3}, "unknown key 'sampels'; did you mean 'samples'"),
        (
            {"translator": {"preset": "translategemma", "endpoint": {"base_url": "http://h"}}},
            "translator: fr: expected a model that takes a preamble",
        ),
        (
            {
                "languages": ["ur"],
                "translator": {"preset": "aya-23-35b", "endpoint": {"base_url": "http://h"}},
            },
            "aya-23-35b does not know ur",
        ),
    ],
)
def test_plans_are_checked(tmp_path, changes, message):
    path = write_plan(tmp_path, "http://h", **changes)
    with pytest.raises(ValueError, match=message) as raised:
        load_study(path)
    assert str(raised.value).startswith(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "expected a .csv, .jsonl, .json or .parquet file"),
        ("x.jsonl", "{\n", "x.jsonl: line 1 is not JSON: "),
        ("x.jsonl", "[1]\n", "x.jsonl: line 1: expected a mapping of fields"),
        ("x.json", "5", "x.json: expected a JSON array of rows, found b'5'"),
        ("x.json", '[{"id": 7, "text": "a"}]', "row 1: id: expected text, found 7"),
        (
            "x.csv",
            "id,text\n00000,a cat\n00000,a dog\n",
            "row 2: id: expected once, found '00000' twice",
        ),
    ],
)
def test_captions_are_checked(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    path = write_plan(tmp_path, "http://h", captions=f"./{name}")
    with pytest.raises(ValueError, match=message):
        run_study(path)
