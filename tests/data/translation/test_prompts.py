"""Test the shipped preambles: complete, in every direction, each in its language and script."""

import unicodedata

import pytest
import yaml

from maya_vlm.training.data.checks.rules import RowChecker
from maya_vlm.training.data.translation.plan import presets, read_preset
from maya_vlm.training.data.translation.prompts import (
    FOLDER,
    Prompt,
    read_prompt,
    translategemma_prompt,
    variants,
)
from tests.helpers.endpoint_server import asked
from tests.helpers.languages import MINI, PAPER

LANGUAGES = MINI[1:]
PAIR = ("〘", "〙")
SCRIPTS = {
    "zh": "CJK",
    "ja": "HIRAGANA",
    "ru": "CYRILLIC",
    "hi": "DEVANAGARI",
    "bn": "BENGALI",
    "ar": "ARABIC",
    "ur": "ARABIC",
    "fr": "LATIN",
    "es": "LATIN",
}


def part(lang: str) -> dict:
    return yaml.safe_load((FOLDER / f"{lang}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("brackets", [PAIR, None])
@pytest.mark.parametrize("preamble", list(variants()))
def test_every_preamble_in_every_language(preamble, lang, brackets):
    prompt = read_prompt(preamble, "en", lang, brackets)
    system, user = prompt.messages("a {red} cat")
    assert user == {"role": "user", "content": "a {red} cat"}
    text = system["content"]
    assert "{" not in text
    assert "None" not in text
    # The local endpoint understands the prompts.
    assert asked(prompt.messages("x")) == ("x", lang, brackets is not None)
    examples = part(lang)["examples"]
    if preamble in ("rules", "native", "brief"):
        opened, closed = brackets or ("", "")
        assert all(f"{opened}{e}{closed}" in text for e in examples)
        assert all(e in text for e in part("en")["examples"])
    else:
        assert not any(e in text for e in examples)
    if preamble in ("rules", "rules_only", "native"):
        assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == [
            f"{n}." for n in range(1, 9)
        ]


def test_at_least_three_preambles_and_all_are_different():
    assert len(variants()) >= 3
    texts = {read_prompt(v, "en", lang, PAIR).system for v in variants() for lang in LANGUAGES}
    assert len(texts) == len(variants()) * len(LANGUAGES)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_native_preamble_is_written_in_its_script(lang):
    native = part(lang)["native"]
    assert len(native["rules"]) == 8
    answer = native["answer"]
    for text in (native["role"], *native["rules"], *answer.values(), native["examples_heading"]):
        letters = [c for c in text.replace("<image>", "").replace("{open}", "") if c.isalpha()]
        inside = sum(SCRIPTS[lang] in unicodedata.name(c) for c in letters)
        if lang == "ja":
            inside += sum(
                "CJK" in unicodedata.name(c) or "KATAKANA" in unicodedata.name(c) for c in letters
            )
        assert inside >= 0.75 * len(letters), text
        assert unicodedata.is_normalized("NFC", text)
    assert "{open}" in answer["bracketed"]
    assert "{close}" in answer["bracketed"]
    assert "{" not in answer["alone"]


def test_shipped_examples_pass_our_own_checks():
    checker = RowChecker("en", LANGUAGES)
    sources = part("en")["examples"]
    assert len(sources) == 3
    for lang in LANGUAGES:
        examples = part(lang)["examples"]
        assert len(examples) == len(set(examples)) == 3
        for source, example in zip(sources, examples, strict=True):
            assert checker.check(source, example, lang, "stop") == [], (lang, example)


def test_examples_of_the_way_back_go_the_other_way():
    text = read_prompt("rules", "fr", "en", PAIR).system
    french, english = part("fr")["examples"][0], part("en")["examples"][0]
    assert f"Text: {french}\nTranslation: 〘{english}〙" in text
    assert "from French into English" in text


def test_any_direction_between_two_languages():
    text = read_prompt("brief", "ja", "ar", None).system
    assert part("ja")["examples"][2] in text
    assert part("ar")["examples"][2] in text
    assert "from Japanese into Arabic" in text


def test_a_region_takes_its_language():
    assert "Simplified Chinese" in read_prompt("bare", "en", "zh-CN", None).system


def test_a_new_language_is_one_file(tmp_path):
    file = tmp_path / "sw.yaml"
    file.write_text(
        yaml.safe_dump({"name": "Swahili", "style": "Write Swahili.", "examples": ["a", "b", "c"]})
    )
    text = read_prompt("rules", "en", "sw", PAIR, {"sw": str(file)}).system
    assert "into Swahili" in text
    assert "〘c〙" in text
    with pytest.raises(ValueError, match=r"preamble 'native'.*sw\.yaml: expected a part `native`"):
        read_prompt("native", "en", "sw", PAIR, {"sw": str(file)})
    file.write_text(yaml.safe_dump({"name": "Swahili", "style": "", "examples": ["a"]}))
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text())
    with pytest.raises(ValueError, match=r"other\.yaml: examples: expected 3.*found 1"):
        read_prompt("rules", "en", "sw", PAIR, {"sw": str(other)})


def test_a_preamble_of_ones_own(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text("Put it into {target}, please. {answer} Keep {{}}.\n")
    prompt = read_prompt(str(file), "en", "fr", PAIR)
    assert prompt.system.startswith("Put it into French, please. Write the translation between 〘")
    file.write_text("Put it into {language}")
    with pytest.raises(
        ValueError, match=r"expected placeholders of source, target.*found \{language\}"
    ):
        read_prompt(str(file), "en", "fr", PAIR)


def test_unknown_names_are_refused():
    with pytest.raises(
        ValueError, match=r"preamble: expected a text file or one of rules.*, found 'best'"
    ):
        read_prompt("best", "en", "fr", PAIR)
    with pytest.raises(
        ValueError,
        match=r"preamble: expected one of the languages ar, bn.*, found 'xx': .*preamble_parts",
    ):
        read_prompt("rules", "en", "xx", PAIR)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("〘un chat〙", "un chat"),
        ("Sure! Here it is:\n〘 un chat 〙\nI hope this helps.", "un chat"),
        ("〘deux\nlignes〙", "deux\nlignes"),
        ("〘〙", ""),
        ("un chat", None),
        ("〘un cha", None),
        ("〙un chat〘", None),
        ("〘un chat〙 ou 〘un matou〙", None),
    ],
)
def test_answers_are_taken_out_of_their_brackets(answer, text):
    assert Prompt("x", "en", "fr", "", PAIR).unwrap(answer, "a cat") == text


def test_brackets_of_the_text_itself_are_kept():
    prompt = Prompt("x", "en", "fr", "", PAIR)
    assert prompt.unwrap("〘le 〘chat〙 noir〙", "the 〘cat〙 is black") == "le 〘chat〙 noir"


def test_without_brackets_the_answer_is_the_text():
    assert Prompt("x", "en", "fr", "", None).unwrap(" un chat\n") == "un chat"


def test_id_changes_with_all_that_is_sent():
    ids = {
        read_prompt(preamble, "en", lang, brackets).id
        for preamble in variants()
        for lang in LANGUAGES
        for brackets in (PAIR, None)
    }
    assert len(ids) == len(variants()) * len(LANGUAGES) * 2
    assert read_prompt("rules", "en", "fr", PAIR).id == read_prompt("rules", "en", "fr", PAIR).id
    assert translategemma_prompt("en", "fr").id != translategemma_prompt("en", "ru").id


def test_translategemma_takes_its_codes_in_the_content():
    assert translategemma_prompt("en", "fr").messages("a cat") == [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "source_lang_code": "en",
                    "target_lang_code": "fr",
                    "text": "a cat",
                }
            ],
        }
    ]


def test_presets_say_what_is_needed():
    assert {"aya-23-35b", "aya-expanse-32b", "translategemma"} <= set(presets())
    for name in presets():
        preset = read_preset(name)
        assert preset.model.count("/") == 1
        assert preset.licence
        assert preset.licence_note
        assert "max_tokens" in preset.parameters
        assert len(preset.brackets) in (0, 2)
        known = preset.languages or list(preset.codes)
        assert len(known) == len(set(known))
        assert set(PAPER) <= set(known)
    for name in ("aya-23-35b", "aya-expanse-32b"):
        assert len(read_preset(name).languages) == 23
        assert not {"bn", "ur"} & set(read_preset(name).languages)
    assert {"bn", "ur"} <= set(read_preset("translategemma").languages)
