import pytest
from hypothesis import given, settings

from maya_vlm.training.evaluation.scoring.fidelity import Answer, Detector, fidelity, prose

from .answers import texts
from .golden import golden, needs_golden

LANGUAGES = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar", "bn", "ur")
SENTENCES = {
    "en": "The picture shows a small dog that is sleeping on a wooden floor.",
    "zh": "图片中有一只小狗睡在木地板上。",
    "fr": "L'image montre un petit chien qui dort sur un plancher en bois.",
    "es": "La imagen muestra un perro pequeño que duerme en un piso de madera.",
    "ru": "На картинке маленькая собака спит на деревянном полу.",
    "hi": "तस्वीर में एक छोटा कुत्ता लकड़ी के फर्श पर सो रहा है।",
    "ja": "写真には木の床で眠っている小さな犬が写っています。",
    "ar": "تظهر الصورة كلبا صغيرا ينام على أرضية خشبية.",
    "bn": "ছবিতে একটি ছোট কুকুর কাঠের মেঝেতে ঘুমাচ্ছে।",
    "ur": "تصویر میں ایک چھوٹا کتا لکڑی کے فرش پر سو رہا ہے۔",
}


@pytest.fixture(scope="module")
def detector():
    return Detector(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_is_told_in_each_language(detector, language):
    assert detector.language(SENTENCES[language]) == language


@pytest.mark.parametrize(
    "wrapped",
    [
        "{}\n```html\n<p>Here are two real jokes that are short and good.</p>\n```",
        "{} https://example.org/this/is/a/long/english/address",
        "{} <html><body><p>Here are two real jokes that are short.</p></body></html>",
        '{} <img src="a.png" alt="a picture of the dog"/><br>',
        '{} "Just Monday again and again, that is all"',
        "(B) {}",
        "B. {}",
        "<think>What does the picture show? It shows a dog.</think>{}",
    ],
)
def test_code_addresses_quotations_and_letters_do_not_count(detector, wrapped):
    for language in ("ja", "ru", "es"):
        assert detector.language(wrapped.format(SENTENCES[language])) == language


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "B",
        "42",
        "Yes.",
        "Subway",
        "两个人",
        "```python\nprint(1)\n```",
        "https://example.org/a/b",
        "👍👍👍",
    ],
)
def test_too_short_is_told_apart(detector, answer):
    assert detector.language(answer) is None
    score = fidelity([Answer("1", "ja", answer), Answer("2", "ja", SENTENCES["ja"])], detector)
    assert score["languages"]["ja"]["too_short"] == 1
    assert score["languages"]["ja"]["share"] == 1
    assert score["too_short_ids"] == ["ja/1"]
    assert score["wrong_ids"] == []


def test_little_text_that_fits_two_languages_is_too_short(detector):
    assert detector.language("animal social total") is None
    assert detector.language("The small dog sleeps") == "en"


def test_an_answer_in_angle_brackets_is_no_tag(detector):
    assert detector.language(f"<{SENTENCES['fr']}>") == "fr"


def test_a_script_of_no_candidate_is_other(detector):
    assert detector.language("이것은 나무 바닥에서 자고 있는 작은 개입니다.") == "other"


def test_most_of_an_answer_decides_and_mixed_ones_are_counted(detector):
    english = f"{SENTENCES['en']}\n" * 2
    score = fidelity(
        [Answer("1", "ja", english + SENTENCES["ja"]), Answer("2", "ja", SENTENCES["ja"])], detector
    )
    assert score["languages"]["ja"]["found"] == {"en": 1, "ja": 1}
    assert score["languages"]["ja"]["mixed"] == 1
    assert score["wrong_ids"] == ["ja/1"]


def test_the_questions_language_and_the_confusion_are_reported(detector):
    answers = [
        Answer("1", "ja", SENTENCES["en"], "What does this picture show in detail?"),
        Answer("2", "ja", SENTENCES["ja"], "この写真には何が写っていますか。"),
        Answer("1", "fr", SENTENCES["en"], "Que montre cette image en détail ?"),
    ]
    score = fidelity(answers, detector)
    japanese = score["languages"]["ja"]
    assert (japanese["share"], japanese["question_share"]) == (0.5, 1)
    assert score["languages"]["fr"]["found"] == {"en": 1}
    assert score["languages"]["fr"]["question_share"] == 0
    assert score["macro"] == 0.25
    assert "lingua" in score["detector"]
    assert score["detector"].endswith("ar bn en es fr hi ja ru ur zh")


def test_codes_of_regions_and_old_codes_are_understood():
    score = fidelity(
        [
            Answer("1", "zh-Hant-TW", SENTENCES["zh"]),
            Answer("1", "iw", "זה כלב קטן שישן על רצפת עץ"),
        ]
    )
    assert score["macro"] == 1


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"language 'quz': expected one of af .*leave it out"):
        fidelity([Answer("1", "quz", "x")])
    with pytest.raises(ValueError, match="at least one answer"):
        fidelity([])


@settings(deadline=None)
@given(texts)
def test_any_text_is_some_language_or_too_short(detector, text):
    assert detector.language(text) in (None, "other", *LANGUAGES)
    assert isinstance(prose(text), str)


@needs_golden
@pytest.mark.parametrize("checkpoint", ["maya", "maya_toxicity_free"])
def test_golden_answers_are_within_two_points_of_the_labels_by_hand(detector, checkpoint):
    labels = golden("palo_answers/labels.json")
    code = labels["code_questions_in_every_language"]
    questions = {
        (row["language"], row["question_id"]): row["question"]
        for row in golden("palo_answers/maya.jsonl")
    }
    answers = [
        Answer(
            str(row["question_id"]),
            row["language"],
            row["answer"],
            questions[row["language"], row["question_id"]],
        )
        for row in golden(f"palo_answers/{checkpoint}.jsonl")
        if row["question_id"] not in code
    ]
    score = fidelity(answers, detector)
    for language, label in labels["right_language_without_code_questions"][checkpoint].items():
        found = score["languages"][language]
        assert found["n"] == label["n"]
        assert found["share"] == pytest.approx(
            label["in_requested_language"] / label["n"], abs=0.02
        )
        asked = label["in_language_of_the_question"] / label["n"]
        assert found["question_share"] == pytest.approx(asked, abs=0.02)
        # Few answers are too short, so that class hides no errors.
        assert found["too_short"] <= 0.02 * label["n"]
