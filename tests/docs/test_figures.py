"""Figures that a sentence or a table of the pages states are those of the results files."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"


def results(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def speed_of_training() -> list[str]:
    cases = results("training_speed")["cases"]
    titles = {
        "pretrain_15_60": "captions of 15 to 60 tokens in eight languages",
        "pretrain_8_24": "captions of 8 to 24 tokens in eight languages",
        "finetune_100": "conversations of about 100 tokens, eight an image",
        "nothing_shared": "one caption an image: nothing to share",
    }
    assert set(titles) == set(cases)
    rows = []
    for name, title in titles.items():
        case = cases[name]
        trl, supervised = (
            case["times_faster"][other]["step"]["ratio_of_medians"]
            for other in ("trl", "trl_supervised")
        )
        memory = case["memory"]["share"]["trl"]
        rows.append(f"| {title} | {trl:.1f} | {supervised:.1f} | {memory:.2f} |")
    return rows


def speed_of_asking() -> list[str]:
    cases = results("asking_speed")["cases"]
    short, sentences, ten = (
        cases[name]["times_faster_than"]["one_by_one"]
        for name in ("short", "sentences", "ten_languages")
    )
    return [
        f"answers come {short:.1f} times as fast as by `generate` one by one where they are short, "
        f"{sentences:.1f} times for sentences, and one image in ten languages {ten:.1f} times"
    ]


def whole_build() -> list[str]:
    found = results("mini_end_to_end")
    languages = {k: v for k, v in found["after_review"].items() if k != "en"}
    kinds = ("wrong_language", "untranslated", "preface", "length", "refusal")
    bad = sum(found["faults_met"][kind] for kind in kinds)
    english = sum(of.get("untranslated", 0) for of in languages.values())
    foreign = sum(of.get("foreign", 0) for of in languages.values())
    assert found["counts"]["failed"] == 1
    return [
        f"{sum(of['rows'] for of in languages.values()):,} translations of mini captions",
        f"Of {bad:,} bad answers",
        f"{english + foreign} remained in the data, {english} of them names left in English",
        f"{found['counts']['rejected']} rows were rejected, one without a human name failed",
    ]


def verification() -> list[str]:
    found = results("verification_rates")
    sentences = found["sentences"]
    share = {kind: f"{100 * of['any']['share']:.0f} %" for kind, of in sentences.items()}
    clean = sentences["clean"]
    assert clean["hard"]["share"] == 0
    return [
        f"{share['wrong_language']} of texts in a wrong language, {share['half_english']} of half English ones",
        f"{share['target_preface']} of prefaces and {share['target_refusal']} of refusals in the target language",
        f"but {share['another_image']} of captions of another image",
        f"none of {clean['hard']['n']:,} clean sentences and mark {100 * clean['any']['share']:.1f} % for a second",
        f"take {found['speed']['minutes_for_the_paper_on_2_cores']} minutes on 2 cores",
    ]


def engines() -> list[str]:
    found = results("translation_engine")
    share = {k: f"{100 * of['share']['median']:.0f} %" for k, of in found["engines"].items()}
    return [
        f"{share['maya']} of an endpoint's {found['settings']['slots']} places in use (datatrove's runner "
        f"{share['datatrove']}, {share['datatrove_checkpoints']} with checkpoints; `datasets.map` in 8 "
        f"processes {share['datasets_map']})"
    ]


def memory_and_reading() -> list[str]:
    memory, reading = results("data_memory"), results("grouped_reading")["times_faster"]
    times = memory["peak_many_over_few"]
    return [
        f"{memory['many']['units']['rows'] / 1e6} million rows take {times['sources']:.2f} (sources) and "
        f"{times['units']:.2f} times (units) the memory of {memory['few']['units']['rows']:,}",
        f"{reading['joined_by_8']['wall']:.1f} times as fast as eight streams of `datasets`",
        f"{reading['separate_8']['wall']:.1f} times as fast as eight that have the picture in every row",
    ]


def bases() -> list[str]:
    tower, decoder = (
        json.loads((ROOT / "training/bases/mini" / part / "metrics.json").read_text("utf-8"))
        for part in ("vision_tower", "language_model")
    )
    names, answers = (
        statistics.mean(
            of["exact"] for of in decoder["scores"][f"{kind} from a soft context"].values()
        )
        for kind in ("name", "yes/no")
    )
    return [
        f"names {100 * names:.0f} % of the codes",
        f"yes or no rightly of {100 * answers:.0f} %",
        f"the right one of {tower['concepts']:,} codes for {100 * tower['heads_before_storing']['code_top1']:.0f} %",
    ]


@pytest.mark.parametrize(
    ("page", "figures"),
    [
        ("train", speed_of_training),
        ("evaluate", speed_of_asking),
        ("data", whole_build),
        ("data", verification),
        ("data", engines),
        ("data", memory_and_reading),
        ("results", bases),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_page_states_what_was_measured(page, figures):
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split())
    for figure in figures():
        assert figure in text
