"""What answers are measured by: shares over those answers that a measure can tell of."""

from maya_vlm.training.evaluation.measures import languages_found, measures
from maya_vlm.training.evaluation.protocol import Request, Score, Scored
from maya_vlm.training.inference.generation import Answer
from tests.evaluation.answers import Letters

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
        one("कुत्ता", "hi", "hi"),  # one word says nothing
        one("", "hi", "hi"),
        one(ENGLISH, "en", "en"),
        one(ENGLISH, "br", "br"),  # no detector knows Breton
        one("B", "ja", None),  # a letter is in no language
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
    # In one script or the other: a word is enough.
    assert rows["own_script", "hi"] == (2 / 3, 3)
    assert rows["cut", "hi"] == (0.25, 4)
    assert rows["empty", "hi"] == (0.25, 4)
    assert rows["tokens", "hi"] == (7, 4)
