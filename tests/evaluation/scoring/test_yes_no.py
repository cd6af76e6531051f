import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.yes_no import parse_yes_no
from maya_vlm.training.evaluation.scoring.yes_no_public import YES_NO_PARSERS

from .answers import around, texts
from .golden import golden, needs_golden

NAMES = {
    "pope_official": "yes_no_pope",
    "mme_official": "yes_no_mme",
    "lmms_mme": "yes_no_lmms_eval_mme",
    "lmms_pope_exact": "yes_no_lmms_eval_pope",
    "vlmevalkit": "yes_no_vlmevalkit",
}


@pytest.mark.parametrize(
    "answer",
    [
        "Yes", "yes.", "YES!", "**Yes**", "Yes, there is a dog.", "Yes it is", "Answer: yes", "The answer is yes.",
        "I see a dog near a car. Yes.", "<think>no?</think>Yes", "Oui, il y a un chien", "La réponse est oui", "Sí", "si",
        "Да, на картинке собака", "Ответ: да", "是", "是的，图中有一只狗", "答案：是", "有", "没错", "はい", "はい、そうです。",
        "答えは「はい」です", "हाँ, यह कुत्ता है", "जी हां", "उत्तर: हाँ", "نعم، يوجد كلب", "نَعَم", "হ্যাঁ", "উত্তর: হ্যাঁ", "ہاں",
        "جی ہاں، یہ کتا ہے", "ＹＥＳ", "y", "Certainly, yes.", "Claro que sí", "Ouais", "对", "正确", "はいです", "हाँ है", "জি হ্যাঁ", "أجل", "ہاں ہے",
    ],
)  # fmt: skip
def test_a_yes_is_read_in_ten_languages(answer):
    assert parse_yes_no(answer) == "yes"


@pytest.mark.parametrize(
    "answer",
    [
        "No", "NO.", "no, there is no dog", "No dog is visible", "Final answer: **No**", "Nope", "Non", "Réponse : non",
        "La respuesta es no", "No hay perro en la imagen", "Нет", "Нет собаки", "不", "不是", "没有狗", "答案是否", "いいえ",
        "いいえ、いません", "違います", "नहीं", "जी नहीं", "उत्तर: नहीं", "لا", "لا يوجد كلب", "الإجابة: لا", "না, এটি কুকুর নয়", "نہیں",
        "جی نہیں", "n", "No hay", "Ответ: Нет.", "否", "无", "沒有", "いえ", "नहीं है", "নেই", "كلا", "جواب: نہیں",
    ],
)  # fmt: skip
def test_a_no_is_read_in_ten_languages(answer):
    assert parse_yes_no(answer) == "no"


@pytest.mark.parametrize(
    "answer",
    [
        # Unknown words, some of which public parsers read as no or yes.
        "", " ", "None", "Nothing", "Known", "Notebook", "yesterday", "non-vegetarian", "A dog", "Maybe", "dog", "42", "ja",
        # Both.
        "Yes and no", "no, yes", "Yes/No", "yes or no", "Да нет", "是不是", "Yes. Wait, no.", "Yes, the answer is no", "نعم ولا", "نعم أو لا", "হ্যাঁ অথবা না",
        "Sí y no", "Oui ou non", "И да, и нет", "はいかいいえ", "हाँ या नहीं", "ہاں یا نہیں", "有没有", "是否",
        # Beginnings that are not answers, and words with another meaning.
        "No doubt, it is a dog", "No idea", "No one", "No one is there", "No sé", "Данные", "November", "নাম", "لأن", "Nonante", "I don't know", "لا أعرف", "没有办法判断", "نہیں معلوم",
        "Si hay un perro", "Non visible", "はいいろの犬", "It's a dog, no doubt about it",
        # Negated sentences are not interpreted.
        "There isn't a dog.", "The image does not show a dog. Yes, it shows a cat.", "I cannot see a dog",
        # A reasoning block that was cut off.
        "<think>yes, because",
    ],
)  # fmt: skip
def test_anything_else_is_neither(answer):
    assert parse_yes_no(answer) is None


@settings(deadline=None)
@given(texts)
def test_parsers_never_fail_and_give_nothing_else(answer):
    for parser in YES_NO_PARSERS.values():
        assert parser(answer) in ("yes", "no", None)


@settings(deadline=None)
@given(texts, around, around)
def test_spaces_around_change_nothing(answer, before, after):
    assert parse_yes_no(before + answer + after) == parse_yes_no(answer)


@pytest.mark.parametrize(
    ("parser", "answer", "expected"),
    [
        ("yes_no_pope", "NO", "yes"),
        ("yes_no_pope", "はい", "yes"),
        ("yes_no_pope", "It is. No", "yes"),
        ("yes_no_pope", "It is not a dog", "no"),
        ("yes_no_mme", "Known", "no"),
        ("yes_no_mme", "y", None),
        ("yes_no_lmms_eval_mme", "y.", "yes"),
        ("yes_no_lmms_eval_pope", "Yes.", None),
        ("yes_no_vlmevalkit", "Yes, no", None),
        ("yes_no_vlmevalkit", "[yes]", "yes"),
    ],
)
def test_public_parsers_keep_their_mistakes(parser, answer, expected):
    assert YES_NO_PARSERS[parser](answer) == expected


def test_every_parser_has_a_version_and_a_source():
    own = {"yes_no": 2}
    assert {parser.id for parser in YES_NO_PARSERS.values()} == {
        f"{name}@{own.get(name, 1)}" for name in YES_NO_PARSERS
    }
    assert all(parser.source for parser in YES_NO_PARSERS.values())


@needs_golden
def test_golden_answers_are_read_as_the_public_scripts_read_them():
    for case in golden("yes_no/cases.jsonl"):
        for name, expected in case["expected"].items():
            expected = {"Yes": "yes", "No": "no", "Unknown": None, "other": None}.get(
                expected, expected
            )
            assert YES_NO_PARSERS[NAMES[name]](case["response"]) == expected, (
                name,
                case["response"],
            )
