"""Measures of answers: shares over the answers to which a measure applies."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from maya_vlm.training.cli import main
from maya_vlm.training.evaluation.measures import languages_found, measures, toxicities
from maya_vlm.training.evaluation.protocol import Request, Score, Scored
from maya_vlm.training.evaluation.scoring.toxicity import Toxicity
from maya_vlm.training.inference.generation import Answer
from tests.evaluation.answers import Letters
from tests.evaluation.scoring.golden import golden, needs_golden

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "scum"]
HINDI = "तस्वीर में एक छोटा कुत्ता लकड़ी के फर्श पर सो रहा है।"
ENGLISH = "The picture shows a small dog that is sleeping on a wooden floor."


def one(text: str, language: str, asked: str | None, ended: bool = True) -> Scored:
    request = Request(
        id=text,
        language=language,
        content=("?",),
        max_new_tokens=9,
        item=text,
        answer_language=asked,
    )
    return Scored(request, Answer(text, 7, ended), Score({"accuracy": 1.0}))


def test_language_fidelity_is_of_the_answers_that_can_be_told():
    scored = [
        one(HINDI, "hi", "hi"),
        one(ENGLISH, "hi", "hi", ended=False),
        one("कुत्ता", "hi", "hi"),  # one word is too short to detect
        one("", "hi", "hi"),
        one(ENGLISH, "en", "en"),
        one(ENGLISH, "br", "br"),  # the detector does not know Breton
        one("B", "ja", None),  # a letter has no language
    ]
    assert languages_found(scored) == ["hi", "en", None, None, "en", None, None]
    rows = {
        (row["metric"], row["language"]): (row["value"], row["n"])
        for row in measures(Letters(), scored, "model", {"all": ["en", "hi"]}, 0)
    }
    assert rows["own_language", "hi"] == (0.5, 2)
    assert rows["own_language", "en"] == (1, 1)
    assert rows["own_language", "all"] == (0.75, 3)
    assert not {("own_language", "br"), ("own_language", "ja")} & rows.keys()
    # One word is enough to detect a script.
    assert rows["own_script", "hi"] == (2 / 3, 3)
    assert rows["cut", "hi"] == (0.25, 4)
    assert rows["empty", "hi"] == (0.25, 4)
    assert rows["tokens", "hi"] == (7, 4)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Write a tiny classifier whose two labels exclude each other; return its folder."""
    folder = tmp_path_factory.mktemp("classifier") / "tiny-toxic"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=12).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "neutral", 1: "toxic"},
    )
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data *= 20
    model.save_pretrained(folder)
    return folder


def test_toxic_answers_are_a_row_of_each_language(classifier):
    toxicity = Toxicity(str(classifier), ["toxic"], "softmax")
    other = Toxicity(str(classifier), ["neutral"], "softmax")
    scored = [
        one("a dog", "en", "en"),
        one("scum", "en", "en"),
        one("scum " * 30, "hi", "hi"),  # longer than the model's input
        one("", "hi", "hi"),
    ]
    first, back = toxicities(scored, toxicity), toxicities(scored, other)
    assert first[3] is back[3] is None
    for probability, opposite in list(zip(first, back, strict=True))[:2]:
        assert probability + opposite == pytest.approx(1, abs=1e-5)
    rows = {
        row["language"]: (row["value"], row["n"])
        for row in measures(Letters(), scored, "model", {}, 0, toxicity)
        if row["metric"] == "toxic"
    }
    assert rows["en"] == (sum(p >= 0.5 for p in first[:2]) / 2, 2)
    assert rows["hi"] == (float(first[2] >= 0.5), 1)
    assert toxicity.describe() == {
        "model": "tiny-toxic",
        "revision": None,
        "labels": ["toxic"],
        "activation": "softmax",
        "toxic_at": 0.5,
    }
    # Without a classifier there are no such rows.
    assert not [
        row for row in measures(Letters(), scored, "model", {}, 0) if row["metric"] == "toxic"
    ]


def test_a_classifier_that_would_mislead_is_refused(classifier, capsys):
    with pytest.raises(ValueError, match="toxic: expected a label of the model, found 'insult'"):
        Toxicity(str(classifier), ["insult"], "softmax")
    assert main(["evaluate", "m", "--toxicity", str(classifier)]) == 2
    assert "expected all three or none" in capsys.readouterr().err


@needs_golden
@pytest.mark.parametrize("checkpoint", ["maya", "maya_toxicity_free"])
def test_rows_of_real_answers_are_within_two_points_of_the_labels_by_hand(checkpoint):
    labels = golden("palo_answers/labels.json")
    scored = [
        one(row["answer"], row["language"], row["language"])
        for row in golden(f"palo_answers/{checkpoint}.jsonl")
        if row["question_id"] not in labels["code_questions_in_every_language"]
    ]
    rows = {
        row["language"]: row
        for row in measures(Letters(), scored, "model", {}, 0)
        if row["metric"] == "own_language"
    }
    for language, label in labels["right_language_without_code_questions"][checkpoint].items():
        share = label["in_requested_language"] / label["n"]
        assert rows[language]["value"] == pytest.approx(share, abs=0.02)
        assert rows[language]["n"] >= 0.98 * label["n"]
