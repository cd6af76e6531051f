"""Language codes."""

import pytest

from maya_vlm.training.common.languages import check_language, is_language


@pytest.mark.parametrize("value", ["en", "pt-BR", "zh-Hant-TW", "yue"])
def test_languages(value):
    assert is_language(value)
    check_language(value, "x")


@pytest.mark.parametrize(
    "value", ["", "e", "english", "..", "en/..", "en\x1b", "en-", "ñü", None, 3, ["en"]]
)
def test_what_is_no_language(value):
    assert not is_language(value)
    with pytest.raises(
        ValueError, match="plan: languages: expected a language's BCP-47 code"
    ) as caught:
        check_language(value, "plan: languages")
    assert str(caught.value).isprintable()
