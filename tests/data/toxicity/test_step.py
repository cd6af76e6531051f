"""Test judging and deciding a build twice: each input once, unread languages rejected, counts correct."""

import csv
import hashlib
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from maya_vlm.training.common.files import sha256_text
from maya_vlm.training.common.schema import build
from maya_vlm.training.data.review.filled import read_sheet
from maya_vlm.training.data.toxicity.decisions import decide_build, format_summary
from maya_vlm.training.data.toxicity.plan import ToxicityPlan
from maya_vlm.training.data.toxicity.policy import JudgeRule, Policy
from maya_vlm.training.data.toxicity.sheets import to_review, write_sheets
from maya_vlm.training.data.toxicity.step import ToxicityStep
from tests.data.toxicity import judges as toxicity_judges
from tests.data.toxicity.judges import picture, source_row, write_build
from tests.helpers.languages import MINI, PAPER
from tests.helpers.steps import run_step

WORDS = {
    "name": "words",
    "kind": "function",
    "function": "tests.data.toxicity.judges:words",
    "revision": "1",
    "stage": "text",
    "languages": ["en", "fr", "ja"],
    "batch_size": 2,
}
COLOUR = {
    "name": "colour",
    "kind": "function",
    "function": "tests.data.toxicity.judges:redness",
    "stage": "image",
}


def plan(*judges, **more) -> ToxicityPlan:
    return build(ToxicityPlan, {"judges": list(judges), **more}, "plan.yaml", "toxicity")


@pytest.fixture
def asked():
    toxicity_judges.asked_texts.clear()
    toxicity_judges.asked_images.clear()
    return toxicity_judges


@pytest.fixture
def folder(tmp_path):
    """Write seven rows with images, described in the comments; row 2 repeats row 1."""
    images = tmp_path / "images"
    images.mkdir()
    rows, shas = [], {}
    for name, red in {"a": 10, "b": 10, "red": 250, "pink": 150, "c": 20}.items():
        data = picture(red, seed=len(shas))
        (images / f"{name}.png").write_bytes(data)
        shas[name] = hashlib.sha256(data).hexdigest()
    for id_, text, image in [
        ("1", "a dog", "a"),  # clean
        ("2", "a dog", "a"),  # same caption and image as row 1
        ("3", "a cat", "red"),  # toxic image
        ("4", "this scum", "b"),  # toxic source
        ("5", "a bird", "pink"),  # doubtful image
        ("6", "a fish", "c"),  # toxic in French only
        ("7", "a horse", None),  # no image; Japanese was rejected
    ]:
        rows.append(source_row(id_, text, f"{image}.png" if image else None, shas.get(image)))
    fr = ["un chien", "un chien", "un chat", "ce type", "un oiseau", "salaud", "un cheval"]
    ja = ["inu", "inu", "neko", "yatsu", "tori", "sakana", None]
    write_build(tmp_path, rows, {"fr": fr, "ja": ja})
    return tmp_path


def make(folder, toxicity, **more):
    options = {"source_language": "en", "languages": ["fr", "ja"], "images": folder / "images"}
    return ToxicityStep(toxicity, folder, **{**options, "unit_rows": 2, **more})


def decisions(folder):
    rows = pq.read_table(folder / "toxicity" / "decisions.parquet").to_pylist()
    return {(row["id"], row["lang"]): row for row in rows}


def letters(folder):
    found = decisions(folder)
    first = {"clean": "c", "review": "r", "flagged": "d"}
    ids = sorted({id_ for id_, _ in found})
    return {
        id_: "".join(
            first[found[id_, lang]["decision"]] if (id_, lang) in found else "-"
            for lang in ("en", "fr", "ja")
        )
        for id_ in ids
    }


EXPECTED = {"1": "ccc", "2": "ccc", "3": "ddd", "4": "ddd", "5": "rrr", "6": "rdr", "7": "cc-"}


def test_a_build_is_judged_and_decided(folder, asked):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    summary = decide_build(step)
    assert letters(folder) == EXPECTED
    assert len(asked.asked_images) == 5  # seven rows, six images, five distinct
    # Each text of a language once: "a dog", "inu" and "un chien" occur in two rows each.
    assert Counter(asked.asked_texts) == Counter(set(asked.asked_texts))
    assert len(asked.asked_texts) == 6 + 6 + 5

    found = decisions(folder)
    assert found["3", "ja"]["stage"] == "image"
    assert found["4", "fr"]["category"] == "insult"
    assert [found["6", lang]["stage"] for lang in ("en", "fr")] == ["other_language", "translation"]
    assert summary.rows == {"en": 7, "fr": 7, "ja": 6}
    assert summary.without_text["ja"] == 1
    for lang in ("en", "fr", "ja"):
        parts = [summary.decisions[lang, d] for d in ("clean", "review", "flagged")]
        assert sum(parts) == summary.rows[lang]
    assert sum(n for (d, *_), n in summary.found.items() if d == "flagged") == 3 + 3 + 1
    text = format_summary(summary)
    assert "policy default" in text
    assert [line.split()[:6] for line in text.splitlines() if line.startswith("ja ")] == [
        ["ja", "6", "2", "2", "2", "0"]
    ]
    stored = json.loads((folder / "toxicity" / "summary.json").read_text())
    assert stored["languages"]["ja"]["flagged"] == 2


def test_every_verdict_is_in_the_audit_with_what_it_came_to(folder):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    decide_build(step)
    audit = pq.read_table(folder / "toxicity" / "audit.parquet").to_pylist()
    assert len(audit) == 5 + 6 + 6 + 5
    assert {row["judge"]: row["stage"] for row in audit} == {"words": "text", "colour": "image"}
    by = {(row["id"], row["lang"], row["judge"]): row for row in audit}
    assert by["3", "", "colour"]["decided"] == "drop"
    assert by["5", "", "colour"]["decided"] == "review"
    assert by["6", "fr", "words"]["reason"] == "words: 0.97 >= 0.9"
    assert by["6", "en", "words"]["decided"] == "clean"
    assert json.loads(by["4", "en", "words"]["raw"])["insult"] == 0.97
    assert ("2", "en", "words") not in by  # row 1's verdict applies


def test_nothing_is_judged_twice(folder, asked):
    judges = plan(WORDS, COLOUR)
    run_step(make(folder, judges))
    before = {path: path.read_bytes() for path in (folder / "toxicity").rglob("*.parquet")}
    asked.asked_texts.clear()
    asked.asked_images.clear()
    run_step(make(folder, judges))
    assert asked.asked_texts == []
    assert asked.asked_images == []
    assert {path: path.read_bytes() for path in before} == before

    # A new row and a new translation: only new inputs are judged.
    units = [pq.read_table(folder / f"source/0000{n}.parquet").to_pylist() for n in range(3)]
    all_rows = [row for unit in units for row in unit]
    extra = source_row("8", "a whale", "a.png", all_rows[0]["image_sha256"])
    texts = {
        "fr": [
            "un chien",
            "un chien",
            "un chat",
            "ce type",
            "un oiseau",
            "un poisson",
            "un cheval",
            "une baleine",
        ],
        "ja": ["inu", "inu", "neko", "yatsu", "tori", "sakana", "uma", "inu"],
    }
    write_build(folder, [*all_rows, extra], texts)
    step = make(folder, judges)
    run_step(step)
    assert sorted(asked.asked_texts) == ["a whale", "uma", "un poisson", "une baleine"]
    assert asked.asked_images == []
    decide_build(step)
    assert letters(folder) == {**EXPECTED, "6": "ccc", "7": "ccc", "8": "ccc"}


def test_judging_continues_where_it_was_cut_off(folder, asked, monkeypatch):
    judges, whole = plan(WORDS, COLOUR), toxicity_judges.words
    calls = 0

    def fails(texts):
        nonlocal calls
        calls += 1
        if calls > 4:
            raise OSError("the model is gone")
        return whole(texts)

    # The plan sets the judge's revision, so its key stays the same.
    monkeypatch.setattr(toxicity_judges, "words", fails)
    with pytest.raises(OSError, match="the model is gone"):
        run_step(make(folder, judges))
    done = list(asked.asked_texts)
    assert len(done) == 8
    with pytest.raises(ValueError, match="expected verdicts of 'words', found none"):
        decide_build(make(folder, judges))
    monkeypatch.setattr(toxicity_judges, "words", whole)
    run_step(make(folder, judges))
    assert len(asked.asked_texts) == 17
    assert len(set(asked.asked_texts)) == 17
    decide_build(make(folder, judges))
    assert letters(folder) == EXPECTED


def test_another_policy_runs_no_judge(folder, asked):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    asked.asked_texts.clear()
    strict = Policy("strict", judges={"colour": JudgeRule(drop_at=0.5)})
    decide_build(step, strict)
    assert letters(folder) == {**EXPECTED, "5": "ddd"}
    lenient = Policy("lenient", default=JudgeRule(drop_at=1.0, review_at=0.99))
    decide_build(step, lenient)
    assert set("".join(letters(folder).values())) == {"c", "-"}
    decide_build(step)
    assert letters(folder) == EXPECTED
    assert asked.asked_texts == []


def test_people_win(folder):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    overrides = {
        ("3", ""): {"decision": "clean", "reviewer": "ana", "note": "a sunset"},
        ("6", ""): {"decision": "clean", "reviewer": "ana", "note": None},
        ("1", "en"): {"decision": "flagged", "reviewer": None, "note": None},
    }
    summary = decide_build(step, overrides=overrides)
    # Row 6: people cleared the image, not the French text.
    assert letters(folder) == {**EXPECTED, "3": "ccc", "6": "cdc", "1": "dcc"}
    found = decisions(folder)
    assert found["3", "fr"]["override"]
    assert found["3", "fr"]["reason"] == "ana: a sunset"
    assert not found["6", "fr"]["override"]
    assert sum(summary.overrides.values()) == 3 + 2 + 1
    # They also override a later policy.
    decide_build(step, Policy("p"), overrides)
    assert decisions(folder)["1", "en"]["decision"] == "flagged"
    # A decision about one row has priority over one about the whole id.
    overrides["3", "ja"] = {"decision": "flagged"}
    decide_build(step, overrides=overrides)
    assert letters(folder)["3"] == "ccd"


def test_decisions_of_people_are_about_the_text_they_saw(folder):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    overrides = {
        ("6", "fr"): {"decision": "clean", "text_sha256": sha256_text("salaud")},
        ("4", ""): {"decision": "clean", "text_sha256": sha256_text("this other scum")},
        ("9", "en"): {"decision": "clean"},
    }
    summary = decide_build(step, overrides=overrides)
    assert letters(folder) == {**EXPECTED, "6": "rcr"}
    assert summary.stale == 2
    assert "no longer exist: 2" in format_summary(summary)


def test_what_people_are_to_see(folder):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    decide_build(step)
    rows = list(to_review(step, rare=4, clean=2))
    seen = {(row.id, row.lang): row for row in rows}
    # In review: ids 5 and 6 as a whole. Rare categories: insult with four flagged rows, red with three.
    assert {key for key in seen if key[1] == ""} == {("3", ""), ("5", ""), ("6", "")}
    assert Counter(row.lang for row in rows if row.lang) == {"en": 2, "fr": 2, "ja": 2}
    assert seen["5", ""].text == "a bird"
    assert seen["5", ""].image == "pink.png"
    assert seen["5", ""].reason.startswith("review: image: colour: 0.588")
    assert next(row for row in rows if row.lang == "fr").source in ("a dog", "a horse")
    assert list(to_review(step, rare=4, clean=2)) == rows
    assert ("6", "fr") in {(row.id, row.lang) for row in to_review(step, rare=50, clean=0)}


def test_a_sheet_filled_by_people_wins(folder):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    decide_build(step)
    (sheet,) = write_sheets(step, clean=1)
    page = sheet.html.read_text(encoding="utf-8")
    assert page.count('<img class="blurred"') == sheet.rows - 2  # row 7 has no image
    lines = sheet.csv.read_text(encoding="utf-8-sig").splitlines()
    header = lines[0].replace('"', "").split(",")
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["lang"] == "":
            row |= {"decision": "clean" if row["id"] != "5" else "flagged", "reviewer": "ana"}
    filled = folder / "filled.csv"
    with filled.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    read_sheet(folder, filled)
    decide_build(step)
    assert letters(folder) == {**EXPECTED, "3": "ccc", "4": "ccc", "5": "ddd", "6": "cdc"}
    # Decided rows are not asked again.
    assert {(row.id, row.lang) for row in to_review(step, clean=0)} == {("6", "fr")}


# Languages


def test_a_language_that_a_judge_does_not_read_is_an_error(folder):
    partial = {**WORDS, "languages": ["en", "fr"]}
    with pytest.raises(ValueError, match=r"judge 'words': .*, found ja: .*only: \[en, fr\]"):
        make(folder, plan(partial))
    with pytest.raises(ValueError, match="expected a judge for every language, found none for ja"):
        make(folder, plan({**partial, "only": ["en", "fr"]}))
    step = make(folder, plan({**partial, "only": ["en", "fr"]}, COLOUR, unjudged=["ja"]))
    run_step(step)
    summary = decide_build(step)
    assert letters(folder) == EXPECTED
    assert decisions(folder)["1", "ja"]["reason"] == "text not judged"
    assert "texts not judged: ja" in format_summary(summary)
    with pytest.raises(ValueError, match="unjudged: ja: a judge reads it"):
        make(folder, plan(WORDS, unjudged=["ja"]))
    with pytest.raises(ValueError, match="unjudged: xx: the plan does not have it"):
        run_step(make(folder, plan(WORDS, unjudged=["xx"])))
    with pytest.raises(ValueError, match=r"only: expected languages of the plan .*, found xx"):
        run_step(make(folder, plan({**WORDS, "only": ["en", "fr", "ja", "xx"]})))


def test_presets_declare_their_languages():
    plan({"preset": "textdetox-v2"}).check(PAPER)
    plan({"preset": "qwen3guard"}).check(MINI)
    plan({"preset": "polyguard"}).check(["en", "zh-Hans", "pt-BR"])
    for preset, unread in {
        "toxic-bert": "zh, fr, es, ru, hi, ja, ar, bn, ur",
        "detoxify-multilingual": "zh, hi, ja, ar, bn, ur",
        "textdetox-v2": "bn, ur",
        "textdetox-v1": "fr, ja, bn, ur",
        "polyguard": "bn, ur",
    }.items():
        with pytest.raises(ValueError, match=rf"judge '{preset}': .*, found {unread}: "):
            plan({"preset": preset}).check(MINI)


def test_a_row_in_a_language_nobody_knows_of_is_an_error(folder):
    step = make(folder, plan(WORDS, COLOUR))
    run_step(step)
    write_build(folder, [source_row("1", "a dog", lang="de")], {"fr": ["un"], "ja": ["i"]})
    with pytest.raises(ValueError, match=r"lang: expected one of .*, found 'de'"):
        decide_build(step)
    with pytest.raises(ValueError, match=r"lang: expected one of .*, found 'de'"):
        run_step(step)


def test_a_source_of_several_languages(tmp_path, asked):
    """Rows of two languages side by side in the source, with one image under two ids."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "red.png").write_bytes(picture(250))
    (images / "a.png").write_bytes(picture(1))
    red, plain = (hashlib.sha256(picture(n)).hexdigest() for n in (250, 1))
    turns = [
        {"role": "user", "content": "<image>\nwhat?"},
        {"role": "assistant", "content": "scum"},
    ]
    rows = [
        source_row("1", None, "a.png", plain, turns=turns),
        source_row("1", "yi zhi mao", "a.png", plain, lang="zh"),
        source_row("2", "scum", "a.png", plain, lang="zh"),
        source_row("3", "a cat", "red.png", red),
        source_row("4", "yi zhi gou", "red.png", red, lang="zh"),
        source_row("5", "no image"),
    ]
    write_build(tmp_path, rows, {}, unit_rows=1)
    judges = plan({**WORDS, "languages": ["en", "zh"]}, COLOUR)
    options = {"source_language": "en", "languages": [], "images": images, "also": ["zh"]}
    step = ToxicityStep(judges, tmp_path, **options)
    run_step(step)
    decide_build(step)
    found = {key: (row["decision"], row["stage"]) for key, row in decisions(tmp_path).items()}
    assert found == {
        ("1", "en"): ("flagged", "source"),
        ("1", "zh"): ("flagged", "source"),
        ("2", "zh"): ("flagged", "translation"),
        ("3", "en"): ("flagged", "image"),
        ("4", "zh"): ("flagged", "image"),
        ("5", "en"): ("clean", ""),
    }
    assert len(asked.asked_images) == 2
    assert "what?\n\nscum" in asked.asked_texts
    with pytest.raises(ValueError, match="found none for zh"):
        run_step(ToxicityStep(plan({**WORDS, "only": ["en"]}), tmp_path, **options))


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        ({"preset": "textdetox"}, "preset: expected one of textdetox-v2, "),
        ({**WORDS, "name": "../x"}, "lower-case letters"),
        ({**WORDS, "name": "inputs"}, "the step's own folders"),
        ({**WORDS, "toxic": ["a"]}, "toxic: expected no such key for a function"),
        ({**WORDS, "languages": None}, "languages: expected a value"),
        ({**WORDS, "stage": "rationale"}, "stage: expected text or image for a function"),
        ({**COLOUR, "languages": ["en"]}, "expected a judge of texts"),
        ({"preset": "textdetox-v2", "stage": "image"}, "stage: expected text for a classifier"),
        (
            {"preset": "qwen3guard", "stage": "image"},
            "stage: expected text for qwen3guard, found 'image'",
        ),
        (
            {"preset": "qwen3guard", "protocol": "qwen"},
            "protocol 'qwen': expected one of llavaguard",
        ),
        ({"preset": "command-r-plus"}, "reads: expected it for the stage rationale"),
        ({"preset": "command-r-plus", "reads": "x"}, "found 'x'"),
        (
            {"name": "c", "kind": "classifier", "stage": "text", "languages": ["en"]},
            "model: expected a value",
        ),
        ({**WORDS, "activation": "relu"}, "expected 'softmax' | 'sigmoid'"),
    ],
)
def test_bad_judges(judge, message):
    with pytest.raises(ValueError) as error:
        plan({k: v for k, v in judge.items() if v is not None})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_policies_and_judges_fit(tmp_path):
    toxic_bert, guard = {"preset": "toxic-bert", "only": ["en"]}, {"preset": "llavaguard-v1.2"}
    second = {"preset": "command-r-plus", "reads": "llavaguard-v1.2"}
    plan(toxic_bert, guard, second, policy="paper").check(["en"])
    with pytest.raises(ValueError, match="expected a judge 'command-r-plus' that reads the ratio"):
        plan(toxic_bert, guard, policy="paper").check(["en"])
    with pytest.raises(ValueError, match="expected a rule with confirmed_by 'command-r-plus'"):
        plan(toxic_bert, guard, second).check(["en"])
    path = tmp_path / "p.yaml"
    path.write_text("name: p\njudges: {toxicbert: {by: label}}")
    with pytest.raises(ValueError, match=r"expected a judge of the plan .*, found 'toxicbert'"):
        plan(toxic_bert, policy=str(path)).check(["en"])
    with pytest.raises(ValueError, match="found 'toxic-bert' twice"):
        plan(toxic_bert, toxic_bert)


def test_missing_parts_of_a_build(folder):
    with pytest.raises(ValueError, match="judge 'colour': expected images in the source"):
        make(folder, plan(WORDS, COLOUR), images=None)
    (folder / "translate" / "ja" / "00001.parquet").unlink()
    with pytest.raises(ValueError, match="expected 3 units translated into ja, found 1 missing"):
        run_step(make(folder, plan(WORDS)))
    with pytest.raises(ValueError, match="expected source units"):
        run_step(make(folder / "images", plan(WORDS)))
