import hashlib
import math

import pytest

from maya_vlm.training.evaluation.scoring.captions import (
    caption_score,
    coco_score,
    images_hash,
    sacrebleu_scores,
)
from maya_vlm.training.evaluation.scoring.tokens import TOKENIZERS, default_tokenizer, tokenize

from .golden import golden, needs_golden

REFERENCES = {
    "1": ["A cat sleeps.", "The cat is asleep."],
    "2": ["Two boats at sea."],
    "3": ["A red car."],
}
CHINESE = {"1": ["一只猫在睡觉。"], "2": ["两艘船在海上。"], "3": ["一辆红色的汽车。"]}
JAPANESE = {"1": ["猫が寝ている。"], "2": ["海に船が二隻ある。"], "3": ["赤い車。"]}


@pytest.mark.parametrize(
    ("text", "tokenizer", "language", "expected"),
    [
        ("L'herbe, est-elle verte ?", "words", "fr", "lherbe estelle verte"),
        ("कुत्ता घास पर है।", "words", "hi", "कुत्ता घास पर है"),
        ("一只狗。", "characters", "zh", "一 只 狗"),
        ("कुत्ता", "characters", "hi", "कु त् ता"),
        ("红色公共汽车停在车站。", "jieba", "zh", "红色 公共汽车 停 在 车站"),
        ("犬が走っている。", "mecab", "ja", "犬 が 走っ て いる"),
        ("A b ,  c", "as_given", "en", "A b , c"),
        ("", "mecab", "ja", ""),
        ("", "jieba", "zh", ""),
        ("a\tb\nc\x00", "words", "en", "a b c\x00"),
    ],
)
def test_tokens(text, tokenizer, language, expected):
    assert tokenize(text, tokenizer, language) == expected


@pytest.mark.parametrize("language", ["zh", "zh-Hant", "zh_TW", "ja", "th"])
def test_spaces_are_never_tokens_where_words_have_none(language):
    assert default_tokenizer(language) != "words"
    with pytest.raises(ValueError, match="expected one for text without spaces"):
        tokenize("猫", "words", language)


def test_an_unknown_tokenizer_is_told():
    with pytest.raises(ValueError, match=f"expected one of {', '.join(TOKENIZERS)}, found 'spacy'"):
        tokenize("a", "spacy", "en")


@pytest.mark.parametrize(
    ("references", "language", "tokenizer"),
    [(REFERENCES, "en", "words@1"), (CHINESE, "zh", "jieba@1"), (JAPANESE, "ja", "mecab@1")],
)
def test_right_captions_score_high_in_every_script(references, language, tokenizer):
    score = caption_score({i: texts[0] for i, texts in references.items()}, references, language)
    assert score["cider"] > 5
    assert score["bleu_1"] == pytest.approx(1)
    assert score["rouge_l"] == pytest.approx(1)
    assert score["tokenizer"].startswith(tokenizer)
    assert score["sacrebleu"]["chrF"]["score"] == pytest.approx(100)
    assert "version:" in score["sacrebleu"]["chrF"]["signature"]
    assert score["n"] == 3


def test_the_score_carries_the_hash_of_its_images_in_any_order():
    captions = {image: texts[0] for image, texts in REFERENCES.items()}
    score = caption_score(captions, REFERENCES, "en")
    backwards = caption_score(
        dict(reversed(captions.items())), dict(reversed(REFERENCES.items())), "en"
    )
    assert (
        score["images_sha256"]
        == backwards["images_sha256"]
        == hashlib.sha256(b"1\n2\n3").hexdigest()
    )
    assert images_hash(["1", "2"]) != score["images_sha256"]


def test_cider_depends_on_the_images_and_is_none_for_one():
    captions = {"1": "A cat sleeps.", "2": "Two boats.", "3": "A car."}
    few = caption_score({i: captions[i] for i in "12"}, {i: REFERENCES[i] for i in "12"}, "en")
    assert (
        few["cider_per_image"][0] != caption_score(captions, REFERENCES, "en")["cider_per_image"][0]
    )
    one = caption_score({"1": "A cat."}, {"1": ["A cat."]}, "en")
    assert (one["cider"], one["cider_per_image"]) == (None, None)
    assert one["bleu_1"] == pytest.approx(1)


def test_an_empty_caption_counts():
    score = caption_score({"1": "", "2": "Two boats at sea.", "3": "A red car."}, REFERENCES, "en")
    assert score["empty"] == 1
    assert score["cider_per_image"][0] == 0


def test_bad_rows_are_named():
    with pytest.raises(
        ValueError, match="image '3': expected in captions and references, found none in captions"
    ):
        caption_score({"1": "a", "2": "b"}, REFERENCES, "en")
    with pytest.raises(
        ValueError, match="image '2': expected in captions and references, found none in references"
    ):
        caption_score({"1": "a", "2": "b"}, {"1": ["a"]}, "en")
    for texts in ([], "a cat"):
        with pytest.raises(
            ValueError, match="image '1': expected a list of at least one reference"
        ):
            caption_score({"1": "a"}, {"1": texts}, "en")
    with pytest.raises(
        ValueError, match="image '1': expected text, found half of a surrogate pair"
    ):
        caption_score({"1": "a\ud800"}, {"1": ["a"]}, "en")
    with pytest.raises(ValueError, match="at least one image"):
        caption_score({}, {}, "en")


@needs_golden
def test_golden_scores_of_pycocoevalcap():
    for case in golden("captions/cases.json")["coco"]:
        where = case["language"], case["tokenizer"]
        score = coco_score(case["hypotheses"], case["references"])
        for name, value in case["expected"].items():
            ours = "cider_per_image" if name == "CIDEr_per_item" else name.lower()
            assert score[ours] == pytest.approx(value, abs=1e-9), (where, name)


@needs_golden
def test_golden_tokens():
    names = {
        "whitespace": "words",
        "char": "characters",
        "jieba": "jieba",
        "mecab_unidic_lite": "mecab",
    }
    cases = golden("captions/cases.json")
    for case in cases["coco"]:
        name, language = names.get(case["tokenizer"]), case["language"]
        if name is None or (name == "words" and language in ("zh", "ja")):
            continue
        for raw in cases["raw"][language]:
            cut = [tokenize(text, name, language) for text in raw["references"]]
            assert cut == case["references"][raw["id"]]
            assert tokenize(raw["hypothesis"], name, language) == case["hypotheses"][raw["id"]]


@needs_golden
def test_golden_scores_of_sacrebleu():
    def without_version(signature):
        return signature.rsplit("|version:", 1)[0]

    for case in golden("captions/cases.json")["sacrebleu"]:
        for name, expected in case["expected"].items():
            if name.startswith("sentence"):
                continue
            tokenizer = name.partition(":")[2] or None
            arguments = case["hypotheses"], case["references"], case["language"], tokenizer
            score = sacrebleu_scores(*arguments)[name]
            assert score["score"] == pytest.approx(expected["score"], abs=1e-6), name
            assert without_version(score["signature"]) == without_version(expected["signature"])
            sentences = case["expected"][f"sentence{name}"]
            assert score["per_caption"] == pytest.approx(sentences, abs=1e-6), name
            assert not any(map(math.isnan, score["per_caption"]))
