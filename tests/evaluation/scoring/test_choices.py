import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maya_vlm.training.evaluation.scoring.choices import Choice, letters_for, parse_choice
from maya_vlm.training.evaluation.scoring.choices_public import (
    CHOICE_PARSERS,
    llava_scienceqa_index,
)

from .answers import around, texts
from .golden import golden, needs_golden

OPTIONS = letters_for(["a dog", "the red bus", "two people", "a dark red bus"])
CHINESE = letters_for(["狗", "红色的公共汽车", "两个人", "伞"])
FRENCH = letters_for(["un chien", "un bus rouge", "deux personnes", "un parapluie"])
ARABIC = {"أ": "كلب", "ب": "حافلة", "ج": "شخصان", "د": "مظلة"}
HINDI = {"क": "कुत्ता", "ख": "बस", "ग": "दो लोग", "घ": "छाता"}
NAMES = {
    "vlmevalkit_can_infer": "choice_vlmevalkit",
    "lmms_mmbench_can_infer": "choice_lmms_eval_mmbench",
    "mmmu_parse": "choice_mmmu",
    "kaleidoscope_strict": "choice_kaleidoscope",
    "pangea_cvqa_parse": "choice_pangea_cvqa",
    "llava_scienceqa": "choice_llava_scienceqa",
    "lmms_scienceqa": "choice_lmms_eval_scienceqa",
}


def read(answer, options=OPTIONS):
    return parse_choice(answer, options).letter


@pytest.mark.parametrize(
    "answer",
    [
        "B", "b", "B.", "(B)", "[b]", "**B**", "Ｂ", "（Ｂ）", "Ⓑ", "B. the red bus", "B) the red bus", "B: the red bus",
        "B - the red bus", "B\n\nThe bus is red.", "Option B", "option (b)", "Answer: B", "ANSWER:\nB", "the answer is b",
        "The answer is **B**.", "Final answer: B. C is wrong.", "The correct option is B) the red bus",
        "B is the correct answer because C shows a dog", "The bus is red, thus B", "A man sits there, so the answer is B",
        "I would go with B since it matches", "The answer cannot be A, so B", "the red bus", "The red bus.", "It is the red bus.",
        "The answer is the red bus", '{"choice": "B"}', "```json\n{'answer': 'b'}\n```", "<answer> B </answer>", "$\\boxed{B}$",
        "<think>A or C</think>\nB", "Réponse : B", "La bonne réponse est la B", "Respuesta: B", "La opción correcta es la B",
        "Ответ: B", "Ответ: Б", "Б", "答案是B", "答案：B", "我选择B。", "B选项正确", "正解はBです。", "Bが正しいです", "सही उत्तर B है", "उत्तर: ख",
        "सही उत्तर बी है", "উত্তর: B", "সঠিক উত্তর হলো খ", "درست جواب: B", "جواب (ب) ہے", "الإجابة هي (ب)", "الإجابة: ب", "ب",
    ],
)  # fmt: skip
def test_b_is_read_however_it_is_said(answer):
    assert read(answer) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        # Empty answers, refusals, and answers without an option.
        "", " \n", "None of the above", "I cannot determine the answer", "a cat", "2",
        "无法确定", "Je ne sais pas", "لا أعرف", "<think>B, because",
        # Several letters found in one step.
        "A or B", "A, B and C", "A/B", "A.B", "AB", "A和B", "B、C", "A y B", "أ أو ب", "The answer is A. The answer is B.",
        "A. a dog\nB. the red bus\nC. two people\nD. a dark red bus", "The answer is A or C", "<answer>A</answer><answer>B</answer>",
        "A C", "A;C", "A|C", "A - C", "A. C", "A? C?", "N/A", "n/a", "C D A",
        # Several texts.
        "a dog and two people",
        # Letters without an option, also in the position of a text.
        "E", "Answer: E", "E. the red bus", '{"choice": "E"}',
        # Negated.
        "B is not correct", "It is not the red bus", "The answer is not B", "C'est pas B",
        # Letters with two readings: the third Cyrillic letter looks like a Latin B.
        "В", "Ответ: В",
        # One-letter words.
        "A man", "I see a car", "Y así", "В центре",
    ],
)  # fmt: skip
def test_anything_else_is_none(answer):
    assert read(answer) is None


def test_a_text_within_another_option_is_not_its_own():
    assert read("It is a dark red bus.", letters_for(["red bus", "dark red bus"])) == "B"
    assert read("It is a red bus.", letters_for(["red bus", "dark red bus"])) == "A"
    assert read("hotdog", letters_for(["dog", "cat"])) is None
    assert read("There are 12.", letters_for(["1", "2"])) is None
    assert read("It costs 2.5", letters_for(["2", "5"])) is None


def test_an_article_is_no_letter():
    options = letters_for(["the red bus", "a wooden bench", "a dog", "rice"])
    assert read("A wooden bench", options) == "B"
    assert read("It is A wooden bench", options) == "B"
    assert read("A", options) == "A"
    assert read("A, because it is red", options) == "A"
    assert read("a", options) == "A"


@pytest.mark.parametrize(
    "answer",
    [
        "B\n\nOption A is wrong, and so is option C.",
        "Option A shows a dog, option C people.\n\n**B**",
        "B. the red bus\n\nOption A is a dog.",
        "Option A is a dog. Option C shows people. The answer is B.",
    ],
)
def test_an_explanation_may_name_other_options(answer):
    assert read(answer) == "B"


def test_a_colon_may_stand_behind_a_for_answer():
    assert read("A: a dog") == "A"
    assert read("A: B") is None
    assert read("A: the red bus") is None
    assert read("B: the red bus") == "B"


def test_a_letter_goes_before_a_text():
    """A letter takes precedence, since prompts ask for it."""
    assert read("D. a dog") == "D"
    assert read("B", letters_for(["B", "A"])) == "B"
    assert read("no", letters_for(["yes", "no"])) == "B"


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("红色的公共汽车", CHINESE, "B"),
        ("图中是红色的公共汽车。", CHINESE, "B"),
        ("答案是狗", CHINESE, "A"),
        ("不是狗", CHINESE, None),
        ("狗或伞", CHINESE, None),
        ("C'est un bus rouge.", FRENCH, "B"),
        ("Ce n’est pas un bus rouge", FRENCH, None),
        ("B ou C", FRENCH, None),
        ("ب", ARABIC, "ب"),
        ("الإجابة الصحيحة هي: د", ARABIC, "د"),
        ("(ج) شخصان", ARABIC, "ج"),
        ("هذه حافلة", ARABIC, "ب"),
        ("B", ARABIC, "ب"),
        ("ه", ARABIC, None),
        ("सही उत्तर (ख) है", HINDI, "ख"),
        ("यह बस है", HINDI, "ख"),
        ("यह बस नहीं है", HINDI, None),
        ("ঘ", letters_for(["ক", "খ", "গ", "ছ"]), "D"),
        ("2", {"(1)": "one", "(2)": "two"}, "(2)"),
        ("٢", {"1": "one", "2": "two"}, "2"),
        ("Answer: (2)", {"(1)": "one", "(2)": "two"}, "(2)"),
        ("There are 2 dogs", {"1": "one", "2": "two"}, None),
        ("Б", {"А": "кот", "Б": "дом", "В": "лес"}, "Б"),
        ("В", {"А": "кот", "Б": "дом", "В": "лес"}, "В"),
        # B is the second letter but looks like the third.
        ("B", {"А": "кот", "Б": "дом", "В": "лес"}, None),
        ("C", letters_for(["", "", "", ""]), "C"),
        ("Это желтый зонт", letters_for(["красный автобус", "жёлтый зонт"]), "B"),
        ("正解はBの赤いバスです", letters_for(["木のベンチ", "赤いバス"]), "B"),
        ("没有黄色雨伞", letters_for(["木长椅", "黄色雨伞"]), None),
        ("এটি লাল বাস নয়", letters_for(["কাঠের বেঞ্চ", "লাল বাস"]), None),
        ("یہ سرخ بس نہیں ہے", letters_for(["لکڑی کا بنچ", "سرخ بس"]), None),
        ("No es el autobús rojo", letters_for(["un banco", "el autobús rojo"]), None),
        ("between 1990 and 1995", letters_for(["1990", "1995"]), None),
    ],
)
def test_own_letters_scripts_and_labels(answer, options, expected):
    assert read(answer, options) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # English.
        ("My answer: C", "C"), ("I'd pick C", "C"), ("It's C.", "C"), ("ANS: C", "C"), ("### C", "C"), ("`C`", "C"), ("C) rice with egg", "C"),
        ("Therefore, the answer is C.", "C"), ("**Answer: C**", "C"), ("Answer: **C. rice with egg**", "C"), ("Rice With Egg", "C"),
        ('{"choice": "C. rice with egg"}', "C"), ("<answer>(C)</answer>", "C"), ("\\boxed{\\text{C}}", "C"), ("A resposta é C", "C"),
        ("1. A is a bench. 2. B is a bus. Final answer: C", "C"), ("Not A, B or D: the answer is C", "C"),
        ("A wooden bench", "A"), ("The picture shows a yellow umbrella, not the red bus", "D"), ("D.a yellow umbrella", "D"),
        ("A and/or C", None), ("All of the above", None), ("maybe A, maybe C", None), ("between A and C", None), ("Both A and C", None),
        ("I don't think it is C", None), ("The answer is unclear", None), ("Option F", None), ("egg", None), ("a red car", None),
        # Other languages.
        ("Es la C", "C"), ("Creo que es la C.", "C"), ("A o C", None), ("Ninguna de las anteriores", None), ("No es C", None),
        ("C'est la réponse C", "C"), ("La lettre C", "C"), ("A ou C", None), ("Aucune des réponses", None), ("C'est un bus", None),
        ("Правильный ответ — вариант C.", "C"), ("Это C", "C"), ("A или C", None), ("Не знаю", None),
        ("我认为答案是C", "C"), ("所以选C", "C"), ("选项C是正确的", "C"), ("丙", "C"), ("A和C都对", None), ("答案不是C", None), ("以上都不是", None),
        ("答えはCです。", "C"), ("選択肢Cです", "C"), ("Cだと思います", "C"), ("ウ", "C"), ("AかC", None), ("Cではありません", None),
        ("सही विकल्प C है", "C"), ("उत्तर: (ग)", "C"), ("सी", "C"), ("A या C", None), ("C नहीं", None), ("पता नहीं", None),
        ("সঠিক উত্তর হল C", "C"), ("সঠিক উত্তর: গ", "C"), ("সি", "C"), ("A অথবা C", None), ("জানি না", None),
        ("صحیح جواب C ہے", "C"), ("آپشن C", "C"), ("سی", "C"), ("A یا C", None), ("معلوم نہیں", None),
        ("الإجابة الصحيحة: الخيار (ج)", "C"), ("الجواب هو C", "C"), ("A أو C", None), ("ليس C", None),
        ("정답은 C입니다", "C"), ("คำตอบ: ค", "C"), ("Đáp án đúng là C", "C"), ("Doğru cevap: C", "C"), ("Die Antwort ist C.", "C"),
    ],
)  # fmt: skip
def test_answers_of_many_styles_and_languages(answer, expected):
    options = letters_for(["a wooden bench", "the red bus", "rice with egg", "a yellow umbrella"])
    assert read(answer, options) == expected


def test_a_letter_may_be_the_text_of_an_option():
    options = letters_for(["C", "B", "x", "D"])
    assert read("A. C", options) == "A"
    assert read("B. C", options) is None


def test_bad_options_are_told():
    with pytest.raises(ValueError, match="expected at least one, found none"):
        parse_choice("A", {})
    with pytest.raises(ValueError, match="expected different labels"):
        parse_choice("A", {"A": "x", "(a)": "y"})
    with pytest.raises(ValueError, match="at most 26, found 27"):
        letters_for(["x"] * 27)


options_of = st.lists(
    st.sampled_from(["a dog", "the red bus", "bus", "no", "B", "狗", ""]) | texts,
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(texts, options_of)
def test_parsers_never_fail(answer, given_options):
    options = letters_for(given_options)
    for parser in CHOICE_PARSERS.values():
        choice = parser(answer, options)
        assert isinstance(choice, Choice)
        assert choice.letter is None or not choice.guesses
    assert parse_choice(answer, options).letter in (None, *options)
    assert not parse_choice(answer, options).guesses
    assert -1 <= llava_scienceqa_index(answer, len(options)) < len(options)


@settings(deadline=None)
@given(texts, around, around, st.sampled_from([OPTIONS, CHINESE, ARABIC, HINDI]))
def test_spaces_around_change_nothing(answer, before, after, options):
    assert parse_choice(before + answer + after, options) == parse_choice(answer, options)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(OPTIONS)),
    st.sampled_from(["{}", "({})", "{}.", "Answer: {}", "答案是{}", "उत्तर: {}"]),
)
def test_a_plain_letter_is_always_read(letter, form):
    assert read(form.format(letter)) == letter


@pytest.mark.parametrize(
    ("parser", "answer", "expected"),
    [
        ("choice_vlmevalkit", "b", None),
        ("choice_vlmevalkit", "B or so is what I would say here", None),
        ("choice_vlmevalkit", "the answer is correct", "C"),
        ("choice_vlmevalkit", "Cannot determine the answer", "Z"),
        ("choice_lmms_eval_mmbench", "E", "E"),
        ("choice_lmms_eval_mmbench", "A (B) is it", "B"),
        ("choice_mmmu", "(A) or (B)", "B"),
        ("choice_mmmu", "SCUBA diving", "A"),
        ("choice_kaleidoscope", "(B)", None),
        ("choice_kaleidoscope", '{"choice": "B. bus"}', "B"),
        ("choice_kaleidoscope", "<ANSWER> 2 </ANSWER>", "B"),
        ("choice_kaleidoscope", "²", None),
        ("choice_kaleidoscope", "{" * 500 + '"choice": "B"}', "B"),
        ("choice_pangea_cvqa", "La respuesta", "A"),
        ("choice_llava_scienceqa", "The answer is B", None),
        ("choice_llava_scienceqa", "The answer is B.", "B"),
        ("choice_lmms_eval_scienceqa", "c", "C"),
        ("choice_lmms_eval_scienceqa", "c.", None),
    ],
)
def test_public_parsers_keep_their_mistakes(parser, answer, expected):
    assert CHOICE_PARSERS[parser](answer, OPTIONS) == Choice(expected)


@pytest.mark.parametrize("parser", ["choice_mmmu", "choice_pangea_cvqa"])
def test_where_a_script_guesses_ours_gives_none_and_says_so(parser):
    assert CHOICE_PARSERS[parser]("???", OPTIONS) == Choice(None, guesses=True)


def test_every_parser_has_a_version_and_a_source():
    own = {"choice": 2}
    assert {parser.id for parser in CHOICE_PARSERS.values()} == {
        f"{name}@{own.get(name, 1)}" for name in CHOICE_PARSERS
    }
    assert all(parser.source for parser in CHOICE_PARSERS.values())
    assert next(iter(CHOICE_PARSERS)) == "choice"


@needs_golden
def test_golden_answers_are_read_as_the_public_scripts_read_them():
    cases = golden("multiple_choice/cases.json")
    for case in cases["multiple_choice"]:
        for name, expected in case["expected"].items():
            found = CHOICE_PARSERS[NAMES[name]](case["response"], cases["options"])
            assert ("RANDOM" if found.guesses else found.letter) == expected, (
                name,
                case["response"],
            )


@needs_golden
def test_golden_answers_are_never_read_as_an_option_that_is_not_offered():
    cases = golden("multiple_choice/cases.json")
    for case in cases["multiple_choice"]:
        assert read(case["response"], cases["options"]) in (None, *cases["options"])


@needs_golden
def test_golden_outputs_of_scienceqa():
    for case in golden("scienceqa/llava_outputs.jsonl"):
        # The set does not give the choices; no answer names more than five.
        assert llava_scienceqa_index(case["output"], 5) == case["parsed_index"], case["question_id"]
