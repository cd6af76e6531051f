"""Test the row checks: each fires on its failure and not on a good translation, in every language."""

import dataclasses
import json

import pytest

from maya_vlm.training.data.checks.boilerplate import read_phrases
from maya_vlm.training.data.checks.identify import Identifier, code_of, language_name
from maya_vlm.training.data.checks.plan import CHECKS, HARD, CheckPlan, LengthBin
from maya_vlm.training.data.checks.repetition import find_repetition
from maya_vlm.training.data.checks.rules import RowChecker

SOURCE = "A woman in a blue dress standing in front of a wooden house near the river"
GOOD = {
    "zh": "一位穿蓝色连衣裙的女士站在河边的木屋前",
    "fr": "Une femme portant une robe bleue se tient devant une maison en bois près de la rivière",
    "es": "Una mujer con un vestido azul está de pie frente a una casa de madera cerca del río",
    "ru": "Женщина в синем платье стоит перед деревянным домом у реки",
    "hi": "नीली पोशाक पहने एक महिला नदी के पास लकड़ी के घर के सामने खड़ी है",
    "ja": "青いドレスを着た女性が川のそばの木造の家の前に立っている",
    "ar": "امرأة ترتدي فستانًا أزرق تقف أمام منزل خشبي بالقرب من النهر",
    "bn": "নীল পোশাক পরা একজন মহিলা নদীর কাছে একটি কাঠের বাড়ির সামনে দাঁড়িয়ে আছেন",
    "ur": "نیلے لباس میں ملبوس ایک عورت دریا کے قریب لکڑی کے گھر کے سامنے کھڑی ہے",
}
LANGUAGES = list(GOOD)


@pytest.fixture(scope="module")
def checker():
    return RowChecker("en", LANGUAGES)


def names(flags, hard=None):
    return {flag.name for flag in flags if hard is None or flag.hard == hard}


def half(text, lang):
    parts = list(text) if lang in ("zh", "ja") else text.split()
    return ("" if lang in ("zh", "ja") else " ").join(parts[: len(parts) // 2])


@pytest.mark.parametrize("lang", LANGUAGES)
class TestEveryLanguage:
    def test_a_good_translation_has_no_flag(self, checker, lang):
        found = checker.examine(SOURCE, GOOD[lang], lang, "stop")
        assert found.flags == []
        assert not found.hard
        assert found.identified.language == lang
        assert abs(found.length_z) < 3

    def test_untranslated(self, checker, lang):
        assert "copy" in names(checker.check(SOURCE, SOURCE, lang), hard=True)

    def test_every_other_language(self, checker, lang):
        for other in LANGUAGES:
            if other != lang:
                found = names(checker.check(SOURCE, GOOD[other], lang), hard=True)
                assert found & {"language", "script"}, other

    def test_half_english(self, checker, lang):
        text = half(GOOD[lang], lang) + " " + " ".join(SOURCE.split()[7:])
        assert names(checker.check(SOURCE, text, lang), hard=True) & {"mixed_language", "script"}

    def test_a_looped_tail(self, checker, lang):
        parts = GOOD[lang].split()
        tail = GOOD[lang][-3:] if len(parts) == 1 else " " + " ".join(parts[-2:])
        for copies in (4, 9):
            flags = checker.check(SOURCE, GOOD[lang] + tail * copies, lang)
            assert "loop" in names(flags, hard=True)
        # A loop that is cut off anywhere is still a loop.
        assert "loop" in names(checker.check(SOURCE, (GOOD[lang] + tail * 9)[:-2], lang))

    def test_comments_in_english(self, checker, lang):
        for text in (
            f"Here is the translation: {GOOD[lang]}",
            f"{GOOD[lang]}\n\nNote: I kept the word order.",
            "I'm sorry, but I can't translate this.",
        ):
            assert names(checker.check(SOURCE, text, lang), hard=True)

    def test_comments_in_the_language(self, checker, lang):
        preface, refusal = COMMENTS[lang]
        found = names(checker.check(SOURCE, preface + GOOD[lang], lang), hard=True)
        assert found & {"preface", "about_translation"}
        assert names(checker.check(SOURCE, refusal, lang), hard=True) & {
            "refusal",
            "about_translation",
        }

    def test_what_the_source_says_is_no_comment(self, checker, lang):
        _, refusal = COMMENTS[lang]
        source = "I'm sorry, but as a language model I cannot translate this text."
        found = names(checker.check(source, refusal, lang))
        assert not found & {"preface", "refusal", "about_translation"}

    def test_a_missing_end_mark_is_soft(self, checker, lang):
        mark = {"zh": "。", "ja": "。", "hi": "।", "bn": "।", "ur": "۔"}.get(lang, ".")
        assert checker.check(SOURCE + ".", GOOD[lang] + mark, lang) == []
        assert names(checker.check(SOURCE + ".", GOOD[lang], lang)) == {"end_mark"}
        assert not checker.examine(SOURCE + ".", GOOD[lang], lang).hard


COMMENTS = {
    "zh": ("以下是中文翻译：", "抱歉，我无法翻译这段文字。"),
    "fr": ("Voici la traduction : ", "Je suis désolé, mais je ne peux pas traduire ce texte."),
    "es": ("Aquí tienes la traducción: ", "Lo siento, pero no puedo traducir este texto."),
    "ru": ("Вот перевод: ", "Извините, я не могу перевести этот текст."),
    "hi": ("यहाँ अनुवाद है: ", "मुझे खेद है, मैं इसका अनुवाद नहीं कर सकता।"),
    "ja": ("以下が翻訳です：", "申し訳ありませんが、翻訳できません。"),
    "ar": ("إليك الترجمة: ", "عذرًا، لا أستطيع ترجمة هذا النص."),
    "bn": ("এখানে অনুবাদটি: ", "দুঃখিত, আমি এটি অনুবাদ করতে পারছি না।"),
    "ur": ("یہ ترجمہ ہے: ", "معذرت، میں اس کا ترجمہ نہیں کر سکتا۔"),
}


def test_names_of_things_may_stay(checker):
    assert not checker.examine("iPhone 6s Plus", "iPhone 6s Plus", "fr").hard
    assert not checker.examine("TV", "TV", "zh").hard
    assert not checker.examine("OK", "OK", "ja").hard
    kept = checker.examine("a case for the iPhone 6s Plus", "iPhone 6s Plus 手机壳", "zh")
    assert not kept.hard
    file = checker.examine("example: flatpages/contact.html", "例: flatpages/contact.html", "ja")
    assert not file.hard


def test_a_short_latin_text_is_not_identified(checker):
    assert checker.examine("chien", "perro", "fr").identified.language == ""
    assert checker.examine("dog", "собака", "hi").identified.language == "ru"


def test_japanese_and_chinese(checker):
    # Ideographs alone may be Japanese. Simplified ideographs are not Japanese, kana are not Chinese.
    assert checker.check("Tokyo International Airport", "東京国際空港", "ja") == []
    found = checker.check("this is a red car in the street", "这是街上的一辆红色汽车", "ja")
    assert "language" in names(found, hard=True)
    found = checker.check("a red car in the street", "通りの赤い車です", "zh")
    assert "language" in names(found, hard=True)
    # A single kana is Chinese advertising or a typing error.
    assert names(checker.check("a shop in the street", "街上の小店", "zh"), hard=True) == set()


def test_finish_reason_and_placeholders(checker):
    text = GOOD["fr"]
    assert names(checker.check(SOURCE, text, "fr", "length"), hard=True) == {"finish_reason"}
    assert names(checker.check("<image>\n" + SOURCE, text, "fr"), hard=True) == {"placeholder"}
    assert checker.check("<image>\n" + SOURCE, "<image>\n" + text, "fr") == []
    assert names(checker.check("<image>", "<image>", "fr")) == set()
    assert "placeholder" in names(checker.check(SOURCE, text + " <image>", "fr"), hard=True)


def test_brackets_markup_lines_numbers(checker):
    text = GOOD["es"]
    assert names(checker.check(SOURCE, "〘" + text, "es"), hard=True) == {"brackets"}
    assert "markup" in names(checker.check(SOURCE, f"<caption>{text}</caption>", "es"))
    assert "markup" in names(checker.check(SOURCE, f"{text}<|im_end|>", "es"))
    assert "extra_lines" in names(checker.check(SOURCE, f"{text}\n{text} dos", "es"), hard=True)
    source = "a house with 3 windows, 1,000 years old"
    good = "una casa con 3 ventanas, de 1.000 años de edad"
    assert checker.check(source, good, "es") == []
    assert names(checker.check(source, good.replace("3", "4"), "es")) == {"numbers"}
    arabic = "منزل بـ ٣ نوافذ عمره ١٠٠٠ عام"
    assert "numbers" not in names(checker.check(source, arabic, "ar"))


def test_code_is_left_alone(checker):
    source = "The function `the_name_of_it` prints:\n```\nfor x in the of and with: print(x)\n```"
    text = "La fonction `the_name_of_it` affiche :\n```\nfor x in the of and with: print(x)\n```"
    assert not checker.examine(source, text, "fr").hard


def test_repetition_of_the_source_is_kept(checker):
    assert find_repetition("ha ha ha ha ha", "ha ha ha ha ha") is None
    assert find_repetition("a dog", "собака " * 5)[0] == "loop"
    assert find_repetition("it costs 1000000", "стоит 1000000") is None
    assert find_repetition(
        "one two three four five", "un deux trois quatre un deux trois quatre"
    ) == (
        "loop",
        "the text twice",
    )


def test_empty(checker):
    assert names(checker.check(SOURCE, "  ", "fr"), hard=True) == {"empty"}


def test_length_by_calibrated_bins():
    plan = CheckPlan(lengths={"fr": [LengthBin(0, 0.1, 0.1), LengthBin(40, 0.2, 0.05)]})
    strict = RowChecker("en", ["fr"], plan)
    cut = GOOD["fr"][:45]
    assert "length_extreme" in names(strict.check(SOURCE, cut, "fr"), hard=True)
    assert not RowChecker("en", ["fr"]).examine(SOURCE, cut, "fr").hard
    # A short text may differ by one character.
    assert abs(strict.examine("a dog", "chien", "fr").length_z) < 1


@pytest.mark.parametrize(
    ("lang", "source", "text"),
    [
        ("fr", "teacup without handle", "tasse"),
        ("fr", "face savoring food", "miam"),
        ("fr", "water closet", "WC"),
        ("hi", "articulated lorry", "लॉरी"),
        ("ar", "part alternation mark", "بديل"),
        ("zh", "face with tears of joy", "笑"),
    ],
)
def test_a_terse_name_is_not_extreme(checker, lang, source, text):
    assert not checker.examine(source, text, lang).hard
    ratio_alone = RowChecker("en", [lang], CheckPlan(length_extreme_characters=0))
    flags = names(ratio_alone.check(source, text, lang))
    assert ("length_extreme" in flags) == (lang != "zh")
    # Chinese lengths vary widely, but a caption that lacks nearly everything is still rejected.
    short = names(checker.check(SOURCE + " " + SOURCE, GOOD[lang][:2], lang), hard=True)
    assert "length_extreme" in short


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_short_source_with_a_long_text_is_extreme(checker, lang):
    assert "length_extreme" in names(checker.check("a red boat", GOOD[lang] * 3, lang), hard=True)


def test_turns(checker):
    source = [
        {"role": "user", "content": "<image>\nWhat is this?"},
        {"role": "assistant", "content": SOURCE},
    ]
    good = [
        {"role": "user", "content": "<image>\nQu’est-ce que c’est ?"},
        {"role": "assistant", "content": GOOD["fr"]},
    ]
    assert checker.examine_turns(source, good, "fr").flags == []
    bad = [good[0], {"role": "assistant", "content": SOURCE}]
    flags = checker.examine_turns(source, bad, "fr").flags
    assert "copy" in names(flags, hard=True)
    assert next(f for f in flags if f.name == "copy").detail.startswith("turn 2:")
    assert names(checker.examine_turns(source, good[:1], "fr").flags, hard=True) == {"empty"}
    row = {"lang": "fr", "text": None, "turns": bad, "source_text": json.dumps(source)}
    assert checker.examine_row(row).hard


def test_what_is_hard_soft_or_off_is_data():
    soft = RowChecker("en", ["fr"], CheckPlan(hard=(), off=("copy",)))
    flags = soft.check(SOURCE, "I'm sorry, but I can't.", "fr")
    assert flags
    assert not any(flag.hard for flag in flags)
    assert "copy" not in names(soft.check(SOURCE, SOURCE, "fr"))
    with pytest.raises(ValueError, match=r"checks.hard: expected one of .*, found 'lenght'"):
        CheckPlan(hard=("lenght",))
    with pytest.raises(ValueError, match=r"lengths.fr: expected bins that begin at 0"):
        CheckPlan(lengths={"fr": [LengthBin(5, 0, 1)]})
    for name in ("script_share", "mixed_share"):
        with pytest.raises(
            ValueError, match=rf"checks: {name}: expected more than 0 and at most 1"
        ):
            CheckPlan(**{name: 0.0})
    assert set(HARD) <= set(CHECKS)


def test_the_key_changes_with_whatever_decides():
    keys = {
        RowChecker("en", ["fr"]).key,
        RowChecker("en", ["fr", "es"]).key,
        RowChecker("de", ["fr"]).key,
        RowChecker("en", ["fr"], CheckPlan(length_z=2.5)).key,
        RowChecker("en", ["fr"], CheckPlan(off=("copy",))).key,
        RowChecker("en", ["fr"], CheckPlan(distractors=())).key,
    }
    assert len(keys) == 6
    assert RowChecker("en", ["fr"]).key in keys


def test_an_unsupported_language_is_an_error(checker):
    with pytest.raises(ValueError, match=r"language 'am' cannot be identified: lingua knows"):
        RowChecker("en", ["am"])
    with pytest.raises(ValueError, match=r"language 'de': expected one of "):
        checker.check(SOURCE, "Eine Frau", "de")
    amharic = RowChecker("en", ["am"], CheckPlan(scripts={"am": ["ethiopic"]}))
    assert not amharic.examine(SOURCE, "ሰማያዊ ቀሚስ የለበሰች ሴት በወንዙ አጠገብ ቆማለች", "am").hard
    assert amharic.examine(SOURCE, GOOD["fr"], "am").hard
    with pytest.raises(ValueError, match=r"'lb' cannot be distinguished from"):
        RowChecker("en", ["lb"], CheckPlan(scripts={"lb": ["latin"]}))


def test_phrases_of_a_plan(tmp_path):
    content = {
        "about": "['tafsir']",
        "prefaces": "['hii hapa tafsiri']",
        "refusals": "['samahani']",
        "notes": "['kumbuka:']",
        "words": "[na, ya]",
        "dangling": "[na]",
        "excuses": "{about: [], prefaces: [], refusals: ['pole'], notes: []}",
    }
    file = tmp_path / "sw.yaml"
    file.write_text("\n".join(f"{k}: {v}" for k, v in content.items()))
    swahili = RowChecker("en", ["sw"], CheckPlan(phrases={"sw": str(file)}))
    assert "refusal" in names(swahili.check(SOURCE, "Samahani, siwezi kufanya hivyo", "sw"))
    assert swahili.key != RowChecker("en", ["sw"]).key
    for bad, message in (
        ({"prefaces": "['(']"}, "prefaces: expected a regular expression, found '\\('"),
        ({"words": "[no]"}, r"words\[0\]: expected text, found a truth value false"),
        ({"prefaces": "hii hapa"}, 'prefaces: expected a list of text, found text "hii hapa"'),
        ({"dangling": ""}, "dangling: expected a list of text, found nothing"),
        ({"excuses": "{about: x, prefaces: [], refusals: [], notes: []}"}, "excuses.about: expec"),
        ({"excuses": "{}"}, "excuses.about: expected a list of text, found nothing"),
    ):
        other = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"  # files are cached by path
        other.write_text("\n".join(f"{k}: {v}" for k, v in {**content, **bad}.items()))
        with pytest.raises(ValueError, match=message):
            read_phrases("sw", str(other))
    (tmp_path / "few.yaml").write_text("about: []")
    with pytest.raises(ValueError, match="prefaces: expected a list of text, found nothing"):
        read_phrases("sw", str(tmp_path / "few.yaml"))


def test_identification_is_restricted_to_the_project():
    found = Identifier(["en", "hi"]).identify("नीली पोशाक पहने एक महिला", "hi")
    assert (found.language, found.expected) == ("hi", found.confidence)
    # With Marathi in the project, the script alone no longer decides.
    both = Identifier(["en", "hi", "mr"]).identify("ही एक निळी साडी नेसलेली स्त्री आहे", "hi")
    assert both.language == "mr"


@pytest.mark.parametrize("lang", ["no", "no-NO", "nb"])
def test_norwegian_has_two_codes(lang):
    text = "En hund løper i gaten ved siden av et gammelt hus av tre"
    found = Identifier(["en", lang]).identify(text, lang)
    assert (found.language, found.expected) == ("nb", found.confidence)
    assert code_of(lang) == "nb"
    assert language_name(lang) == "Bokmal"


def test_plan_is_plain_data():
    from maya_vlm.training.common.schema import build, to_dict

    plan = CheckPlan(lengths={"fr": [LengthBin(0, 0.1, 0.1, 5)]})
    assert build(CheckPlan, to_dict(plan), "plan.yaml") == plan
    assert dataclasses.replace(plan, off=("copy",)) != plan


@pytest.mark.parametrize(("text", "hard"), [("台风", True), ("кот", True), ("OK", False)])
def test_a_few_letters_of_a_third_script_are_no_words_kept_from_the_source(text, hard):
    checker = RowChecker("en", ["fr", "ar"])
    lang = "ar" if text == "OK" else "fr"
    flags = checker.check("OK" if text == "OK" else "typhoon", text, lang)
    assert any(flag.hard for flag in flags) == hard


def test_long_rows_of_marks_are_checked_too():
    """A check in quadratic time would take minutes here."""
    checker = RowChecker("en", ["fr", "ar"])
    for unit in ("(", "*", "-", "[[", ". ", "a'", "(\n"):
        for lang in ("fr", "ar"):
            assert checker.check("a black cat sits on a chair", unit * 30_000, lang)
