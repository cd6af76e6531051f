"""Questions of the demo page: one cache for all languages, escaped answers, the direction of the script."""

import pytest
import torch

from maya_vlm.model_card.space.asking import Asking, direction
from maya_vlm.model_card.space.start import wording, write_examples
from maya_vlm.training.common.languages import LANGUAGES
from tests.helpers.tiny_maya import tiny_maya, tiny_picture


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    tiny_picture(3).save(path)
    return str(path)


@pytest.fixture(scope="module", params=["aya", "maya"])
def asking(request):
    return Asking(*tiny_maya(chat_template=request.param), wording())


def last(pieces):
    *_, found = pieces
    return found


def test_all_languages_from_one_cache_are_answered_as_one_by_one(asking, picture, monkeypatch):
    single = {code: last(asking.answer(picture, None, code)) for code in LANGUAGES}
    assert len(set(single.values())) > 1  # otherwise a mix-up would not be detected
    encoded = []
    tower = asking.network.model.vision_tower
    hook = tower.register_forward_hook(lambda *_: encoded.append(1))
    try:
        steps = list(asking.answers(picture, None))
    finally:
        hook.remove()
    assert steps[-1] == single
    assert list(steps[-1]) == list(LANGUAGES)
    assert len(encoded) == 1
    assert len(steps) > len(LANGUAGES)  # the answers are streamed


def test_a_question_is_asked_for_in_the_language(asking):
    assert asking.question("", "hi") == asking.languages["hi"]["question"]
    assert asking.question(" Why? ", "hi") == f"Why? {asking.languages['hi']['answer_in']}"


def test_an_error_in_generation_is_raised(asking, picture, monkeypatch):
    def fail(**_):
        raise ValueError("no memory left")

    monkeypatch.setattr(asking.network, "generate", fail)
    with pytest.raises(ValueError, match="no memory left"):
        list(asking.answer(picture, None, "en"))


def test_answers_are_escaped_and_turned(asking):
    assert asking.paragraph("<b>&", "en") == '<p lang="en" dir="ltr">&lt;b&gt;&amp;</p>'
    assert [code for code in LANGUAGES if direction(code) == "rtl"] == ["ar", "ur"]
    table = asking.table({"ar": "قطة", "fr": "<i>"})
    assert '<h3 lang="ar" dir="rtl">العربية</h3><p lang="ar" dir="rtl">قطة</p>' in table
    assert '<h3 lang="fr" dir="ltr">Français</h3><p lang="fr" dir="ltr">&lt;i&gt;</p>' in table


def test_a_picture_that_is_none_is_refused_in_words(asking, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png"):
        list(asking.answer(str(tmp_path / "a.png"), None, "en"))


def test_examples_are_pictures_of_mini(tmp_path):
    files = write_examples(tmp_path)
    assert len(files) == 4
    assert sorted(map(str, tmp_path.iterdir())) == sorted(files)


def test_half_precision(picture):
    network, processor = tiny_maya()
    asking = Asking(network.to(torch.bfloat16), processor, wording())
    assert list(last(asking.answers(picture, None))) == list(LANGUAGES)
