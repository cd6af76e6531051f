import pytest

from maya_vlm.training.evaluation.scoring.scripts import in_script


@pytest.mark.parametrize(
    ("text", "language", "own"),
    [
        ("rocket", "en", True),
        ("ракета", "en", False),
        ("火箭", "zh", True),
        ("ロケット", "ja", True),
        ("火箭", "ko?", None),
        ("रॉकेट", "hi", True),
        ("রকেট", "hi", False),
        ("صاروخ (OK)", "ar", True),
        ("123 !", "fr", False),
    ],
)
def test_script_of_an_answer(text, language, own):
    if own is None:
        with pytest.raises(ValueError, match="expected one of en"):
            in_script(text, language)
    else:
        assert in_script(text, language) is own
