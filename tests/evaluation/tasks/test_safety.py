import pytest

from maya_vlm.training.common.languages import LANGUAGES
from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.scoring.fidelity import Detector
from maya_vlm.training.evaluation.scoring.refusals import parse_refusal
from maya_vlm.training.evaluation.table import text_table
from maya_vlm.training.evaluation.tasks.safety import Safety
from maya_vlm.training.inference.generation import Answer
from tests.helpers.tiny_maya import save_tiny_maya

from .public_rows import answered

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def loaded():
    return Safety().load(Selection())


def test_each_request_has_a_look_alike_in_every_language(loaded):
    assert loaded.languages == list(LANGUAGES)
    assert loaded.data["requests"] == len(loaded.requests) == 10 * 2 * 10
    assert loaded.data["images"] == 10
    assert len({(r.id, r.language) for r in loaded.requests}) == 200
    assert len({r.text for r in loaded.requests}) == 200
    picture = loaded.pictures.load(loaded.requests[0].pictures[0])
    assert picture.mode == "RGB"


def test_each_request_is_in_its_language(loaded):
    detector = Detector(LANGUAGES)
    for request in loaded.requests:
        found = detector.language(request.text)
        assert found in (request.language, None), request.text


def test_no_request_reads_as_a_refusal(loaded):
    """A model that repeats the question must not count as one that refuses."""
    for request in loaded.requests:
        assert parse_refusal(request.text) != "refused", request.text


def test_both_refusal_rates_are_rows_of_each_language(loaded):
    task = Safety()
    texts = {
        ("en", "harmful"): "I can't help with that.",
        ("hi", "harmful"): "मैं इसमें मदद नहीं कर सकता।",
        ("hi", "harmless"): "मैं इसमें मदद नहीं कर सकता।",
        ("ar", "harmful"): "",
    }
    scored = answered(
        task,
        loaded,
        [texts.get((r.language, r.subset), "Just do it like that.") for r in loaded.requests],
    )
    rows = {
        (row["metric"], row["subset"], row["language"]): row
        for row in task.aggregate(scored, "model", {"all": list(LANGUAGES)}, 0)
    }
    for language, subset, refused, accuracy in [
        ("en", "harmful", 1, 1),
        ("en", "harmless", 0, 1),
        ("hi", "harmful", 1, 1),
        ("hi", "harmless", 1, 0),
        ("fr", "harmful", 0, 0),
    ]:
        assert rows["refused", subset, language]["value"] == refused
        assert rows["accuracy", subset, language]["value"] == accuracy
    # An unparsable answer counts as wrong, and is left out of the share of refusals.
    assert rows["accuracy", "harmful", "ar"]["value"] == 0
    assert rows["accuracy", "harmful", "ar"]["failures"] == 10
    assert ("refused", "harmful", "ar") not in rows
    assert rows["accuracy", "harmful", "all"]["value"] == pytest.approx(0.2)


def test_what_does_not_apply_is_refused():
    for selection, words in [
        (Selection(data="x"), "data: expected none, since the requests of safety are part"),
        (Selection(split="train"), "split: expected none"),
        (
            Selection(languages=["xx"]),
            "languages: expected some of en, zh.* in 'safety', found 'xx'",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            Safety().load(selection)
    few = Safety().load(Selection(languages=["ur"], limit=2))
    assert len(few.requests) == 4
    assert Safety().score(few.requests[0], Answer("", 1, True)).unparsable


def test_it_runs_to_its_table_and_its_page(tmp_path):
    model = save_tiny_maya(tmp_path / "tiny")
    results = evaluate(str(model), ["safety"], limit=3, languages=["en", "ur"], sheet=False)
    rows = [row for row in results["rows"] if row["metric"] == "accuracy"]
    assert {row["run"] for row in rows} == {"model", "blind", "shuffled"}
    assert {row["subset"] for row in rows} == {"harmful", "harmless"}
    assert "harmless look-alikes" in text_table(results, "safety")
    assert "Safety" in (model / "report.html").read_text(encoding="utf-8")
