"""Letters of every script appear in the picture: measured, ordered, and never as a missing-glyph box."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.sheet import draw as sheet
from maya_vlm.training.evaluation.sheet import lettering
from tests.evaluation.answers import Letters, scored

LINES = {
    "en": "hatching chick (OK)!",
    "zh": "孵化的小鸡，直",
    "fr": "poussin qui éclôt",
    "ru": "цыплёнок вылупился",
    "hi": "अंडे से निकलता चूज़ा।",
    "ja": "ひよこの直",
    "ar": "كتكوت يفقس (نعم)!",
    "bn": "ডিম ফুটে বেরোনো মুরগি (হ্যাঁ)",
    "ur": "انڈے سے نکلتا چوزہ؟",
}


def rendered(svg: str, width: int, height: int) -> np.ndarray:
    import resvg_py

    content = resvg_py.svg_to_bytes(
        svg_string=f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{svg}</svg>',
        skip_system_fonts=True,
    )
    return np.asarray(Image.open(io.BytesIO(bytes(content))).convert("L"))


@pytest.mark.parametrize("language", sorted(LINES))
def test_every_character_has_a_font_and_its_place(language):
    text = LINES[language]
    runs = lettering.runs(text, language)
    assert "".join(run.text for run in runs) == text
    assert lettering.REPLACEMENT not in "".join(run.text for run in runs)
    wide = lettering.width(text, language, 40)
    ink = rendered(lettering.line(20, 60, text, language, 40, "#000"), int(wide) + 60, 90) < 128
    columns = np.flatnonzero(ink.any(0))
    # The drawn pixels begin at the line's start and end at the measured width.
    assert abs(columns[0] - 20) < 8
    assert abs(columns[-1] - (20 + wide)) < 14  # the last letter may extend beyond its advance


@pytest.mark.parametrize(
    ("text", "language", "seen"),
    [
        ("صاروخ ABC", "ar", ["ABC", " ", "صاروخ"]),
        ("صاروخ 12 نعم", "ar", ["نعم", "12", "صاروخ"]),
        ("abc نعم def", "en", ["abc ", "نعم", " def"]),
        ("ABC 中文 صاروخ", "ur", ["صاروخ", "ABC ", "中文"]),
    ],
)
def test_mixed_lines_stand_in_reading_order(text, language, seen):
    order = lettering.visual(lettering.runs(text, language), language)
    found = [run.text.strip() for run in order if run.text.strip()]
    assert found == [piece.strip() for piece in seen if piece.strip()]


def test_stops_and_brackets_stand_on_the_side_of_the_direction():
    def columns(text: str, language: str) -> np.ndarray:
        svg = lettering.line(300, 50, text, language, 40, "#000", at_end=True)
        return (rendered(svg, 320, 90) < 128).any(0)

    with_stop, without = columns("نعم!", "ar"), columns("نعم", "ar")
    # The full stop is added on the left; the right end does not move.
    assert np.flatnonzero(with_stop)[0] < np.flatnonzero(without)[0]
    assert np.array_equal(with_stop[270:], without[270:])
    # Brackets are mirrored: an opening bracket on the right looks like a Latin closing one.
    arabic = rendered(lettering.line(10, 60, "(ا)", "ar", 40, "#000"), 120, 90)
    latin = rendered(lettering.line(10, 60, "(", "en", 40, "#000"), 120, 90)
    left = int(np.flatnonzero((arabic < 128).any(0))[0])
    start = int(np.flatnonzero((latin < 128).any(0))[0])
    assert abs(arabic[:, left : left + 8].astype(int) - latin[:, start : start + 8]).mean() < 25


def test_conjuncts_are_joined():
    # ka + virama + ra is one sign in Bengali, narrower than its two letters.
    pair = lettering.width("ক্র", "bn", 40)
    assert pair < lettering.width("ক", "bn", 40) + 0.5 * lettering.width("র", "bn", 40)


def test_joined_letters_are_narrower_than_letters_apart():
    joined = lettering.width("بببب", "ar", 40)
    assert joined < 4 * lettering.width("ب", "ar", 40)


def test_unprintable_characters_become_a_visible_sign():
    text = "".join(run.text for run in lettering.runs("a\x07b\ue000c\U0001f680", "en"))
    assert text == "a\ufffdb\ufffdc\U0001f680"


@pytest.mark.parametrize("language", sorted(LINES))
def test_long_lines_are_cut_to_their_room(language):
    text = LINES[language] * 6
    cut = lettering.fit(text, language, 17, 200)
    assert cut.endswith("…")
    assert lettering.width(cut, language, 17) <= 200
    assert lettering.fit(LINES[language], language, 17, 2000) == LINES[language]


def test_sheet_shows_pictures_and_marks(tmp_path):
    task = Letters()
    loaded = task.load(Selection())
    # The picture of the other subset is left out; one of the two is answered correctly in both languages.
    given = scored(task, loaded, ["A", "B", "A", "A", "B", "A"])
    sheet.draw_sheet(task, loaded, given, tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)

    def area(colour: str) -> int:
        return (abs(pixels - ImageColor.getrgb(colour)[:3]).sum(-1) < 30).sum()

    assert area("red") == pytest.approx(sheet.PICTURE**2, rel=0.02)
    assert area("lime") == pytest.approx(sheet.PICTURE**2, rel=0.02)
    assert area("blue") < 30
    right = (abs(pixels - (0x13, 0x70, 0x3A)).sum(-1) < 30).any(0)
    wrong = (abs(pixels - (0xB3, 0x26, 0x1E)).sum(-1) < 30).any(0)
    middle = sheet.MARGIN + sheet.CARD + sheet.GAP // 2
    assert right[:middle].any() != right[middle:].any()
    assert wrong[:middle].any() != wrong[middle:].any()
    with pytest.raises(ValueError, match="expected answers of old/choice"):
        sheet.draw_sheet(task, loaded, given[2:3], tmp_path / "none.png")


def test_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(lettering, "PACKAGES", ("resvg_py", "no_such_fonts"))
    told = lettering.missing_packages()
    assert "no-such-fonts" in told
    assert "maya-vlm[eval]" in told
    task = Letters()
    with pytest.raises(ValueError, match="no-such-fonts"):
        sheet.draw_sheet(task, task.load(Selection()), [], tmp_path / "sheet.png")
