"""Test review sheets: decisions round-trip, and damaged sheets are rejected as a whole."""

import csv
import io
import re

import pytest
from PIL import Image

from maya_vlm.training.common.files import sha256_text
from maya_vlm.training.data.review.decisions import COLUMNS, ReviewRow, read_overrides
from maya_vlm.training.data.review.filled import read_sheet
from maya_vlm.training.data.review.pages import direction
from maya_vlm.training.data.review.sheets import stratified, write_sheet
from maya_vlm.training.data.sources.pictures import Pictures

ROWS = [
    ReviewRow(
        "000042", "fr", "un chat, « noir »\net blanc", "a cat", "en", "cat.png", "length: z 4"
    ),
    ReviewRow("000043", "ur", "بلی", "a cat", "en", None, ""),
    ReviewRow("7", "fr", "=1+1", '<script>alert("x")</script>', "en", None, "markup"),
    ReviewRow("7", "ja", "猫", "a cat", "en"),
]


def fill(sheet, decisions, *, separator=",", encoding="utf-8-sig", change=None, header=COLUMNS):
    """Write the sheet's CSV as a spreadsheet saves it."""
    rows = list(csv.DictReader(io.StringIO(sheet.csv.read_text(encoding="utf-8-sig"), newline="")))
    for row, decision in zip(rows, decisions, strict=True):
        row["decision"], row["reviewer"], row["note"] = decision, "Ana", "ok; so, so"
        if change:
            change(row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, header, delimiter=separator, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path = sheet.csv.with_name("filled.csv")
    path.write_bytes(buffer.getvalue().encode(encoding))
    return path


@pytest.fixture
def sheet(tmp_path):
    return write_sheet(tmp_path, "translation", ROWS)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_there_and_back(tmp_path, sheet, separator, encoding):
    path = fill(sheet, ["accept", "Reject ", "", ""], separator=separator, encoding=encoding)
    found = read_sheet(tmp_path, path)
    assert (found.rows, found.undecided, found.decisions) == (4, 2, {"accept": 1, "reject": 1})
    overrides = read_overrides(tmp_path, "translation")
    assert set(overrides) == {("000042", "fr"), ("000043", "ur")}
    one = overrides["000042", "fr"]
    assert (one["decision"], one["reviewer"], one["note"]) == ("accept", "Ana", "ok; so, so")
    assert one["text_sha256"] == sha256_text(ROWS[0].text)
    assert read_overrides(tmp_path, "toxicity") == {}


def test_what_a_spreadsheet_does_to_ids(tmp_path, sheet):
    def change(row):
        row["row"] += ".0"
        if row["id"].isdigit():
            row["id"] = str(int(row["id"]))

    read_sheet(tmp_path, fill(sheet, ["accept"] * 4, separator=";", change=change))
    assert ("000042", "fr") in read_overrides(tmp_path, "translation")


@pytest.mark.parametrize("apostrophe", ["'", ""])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_what_a_spreadsheet_does_to_texts(tmp_path, apostrophe, line_end):
    rows = [ReviewRow("1", "fr", "- un chat\n- un chien")]
    sheet = write_sheet(tmp_path, "translation", rows)
    text = f"{apostrophe}- un chat{line_end}- un chien"
    path = fill(sheet, ["accept"], change=lambda row: row.update(text=text))
    assert read_sheet(tmp_path, path).decisions == {"accept": 1}


def test_an_id_of_digits_that_are_no_number_is_held_against_the_sheet(tmp_path):
    sheet = write_sheet(tmp_path, "translation", [ReviewRow("²", "fr", "deux")])
    with pytest.raises(ValueError, match="id: expected '²' in row 1, found '2'"):
        read_sheet(tmp_path, fill(sheet, ["accept"], change=lambda row: row.update(id="2")))


def test_excels_separator_line_and_empty_lines(tmp_path, sheet):
    path = fill(sheet, ["accept"] * 4, separator=";", encoding="utf-8")
    path.write_text("sep=;\r\n" + path.read_text() + ";;;;;;;;;\r\n")
    assert read_sheet(tmp_path, path).decisions == {"accept": 4}


def test_a_later_sheet_wins_and_is_counted(tmp_path, sheet):
    read_sheet(tmp_path, fill(sheet, ["accept", "accept", "", ""]))
    second = write_sheet(tmp_path, "translation", ROWS[:2])
    assert second.name == "translation-2"
    found = read_sheet(tmp_path, fill(second, ["reject", "accept"]))
    assert (found.changed, found.in_force) == (1, 2)
    assert read_overrides(tmp_path, "translation")["000042", "fr"]["decision"] == "reject"
    # Reading the same sheet again changes nothing.
    assert read_sheet(tmp_path, fill(second, ["reject", "accept"])).changed == 0


def test_kinds_are_apart(tmp_path, sheet):
    other = write_sheet(tmp_path, "toxicity", [ReviewRow("000042", "", image="cat.png")])
    read_sheet(tmp_path, fill(other, ["flagged"]))
    read_sheet(tmp_path, fill(sheet, ["accept", "", "", ""]))
    assert read_overrides(tmp_path, "toxicity")["000042", ""]["decision"] == "flagged"
    assert set(read_overrides(tmp_path, "translation")) == {("000042", "fr")}


def test_bad_sheets_are_refused_whole(tmp_path, sheet):
    def refused(message, decisions=("accept",) * 4, **how):
        with pytest.raises(ValueError, match=message) as error:
            read_sheet(tmp_path, fill(sheet, decisions, **how))
        assert "filled.csv" in str(error.value)
        assert "\n" not in str(error.value)
        assert read_overrides(tmp_path, "translation") == {}

    refused("decision: expected accept or reject, found 'maybe'", ("accept", "maybe", "", ""))
    refused("line 2: .*; line 5: .*; line 6: ", ("x", "", "y", "z"))
    refused("id: expected '000042' in row 1, found '43'", change=lambda r: r.update(id="43"))
    refused("lang: expected 'fr' for '000042', found 'de'", change=lambda r: r.update(lang="de"))
    refused(
        "text: expected the unchanged text of '000042'",
        change=lambda r: r.update(text="deux chats"),
    )
    refused("row: expected 1 to 4, found '9'", change=lambda r: r.update(row="9"))
    refused(
        "row 1 .'000042'.: expected one decision",
        change=lambda r: r.update(row="1", id="42", lang="fr", text=ROWS[0].text),
    )
    refused(
        "sheet: expected a sheet of this build .*, found 'other'",
        change=lambda r: r.update(sheet="other"),
    )
    refused(
        "sheet: expected a sheet of this build .*, found '../x'",
        change=lambda r: r.update(sheet="../x"),
    )
    refused("missing: note; unknown: none", header=COLUMNS[:-1])
    refused("missing: none; unknown: mine", header=(*COLUMNS, "mine"))
    refused(
        "expected UTF-8, .*CSV UTF-8",
        encoding="cp1256",
        change=lambda r: r.update(source="", note="قط", text="قط" if r["id"] == "000043" else "x"),
    )


def test_files_that_are_no_sheets(tmp_path, sheet):
    path = tmp_path / "bad.csv"
    for content, message in (
        (b"", "expected the columns"),
        (",".join(COLUMNS).encode(), "expected rows, found none"),
        (",".join(COLUMNS).encode() + b"\na,b,c\n", "line 2: expected 10 values, found 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_sheet(tmp_path, path)
    with pytest.raises(OSError):
        read_sheet(tmp_path, tmp_path / "missing.csv")


def test_formulas_do_not_run(sheet):
    rows = list(csv.DictReader(io.StringIO(sheet.csv.read_text(encoding="utf-8-sig"), newline="")))
    assert rows[2]["text"] == "'=1+1"
    assert not any(v.startswith(("=", "+", "-", "@")) for row in rows for v in row.values())


def test_the_page_is_one_safe_file(tmp_path):
    Image.new("RGBA", (300, 200), "red").save(tmp_path / "cat.png")
    pictures = Pictures(tmp_path)
    sheet = write_sheet(tmp_path, "translation", ROWS, pictures=pictures, blur=True)
    page = sheet.html.read_text()
    assert page.count('class="blurred" alt="" src="data:image/jpeg;base64,') == 1
    assert '<p class="text" lang="ur" dir="rtl">بلی</p>' in page
    assert '<p class="text" lang="ja" dir="ltr">猫</p>' in page
    assert "<script>alert" not in page
    assert len(re.findall(r"<script", page)) == 1
    assert not re.search(r'(src|href)="?https?:', page)
    # The rows in the script equal those of the CSV.
    assert "\\u003cscript\\u003e" in page
    clear = write_sheet(tmp_path, "translation", ROWS, pictures=pictures)
    assert 'class="blurred"' not in clear.html.read_text()


def test_a_picture_that_cannot_be_shown_is_said_in_the_reason(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [
        ReviewRow("1", "fr", "un", image="broken.png", reason="markup"),
        ReviewRow("2", "fr", "deux", image="gone.png", reason="markup"),
    ]
    sheet = write_sheet(tmp_path, "translation", rows, pictures=Pictures(tmp_path))
    assert "<img" not in sheet.html.read_text()
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        first, second = (row["reason"] for row in csv.DictReader(file))
    assert first.startswith("markup; no picture: Cannot read")
    assert second.startswith("markup; no picture: No such image file in ")
    assert second.endswith(": 'gone.png'")
    assert read_sheet(tmp_path, fill(sheet, ["accept"] * 2)).decisions == {"accept": 2}


def test_directions():
    assert [direction(x) for x in ("ar", "ur", "fa", "he", "fr", "zh-Hant")] == ["rtl"] * 4 + [
        "ltr"
    ] * 2


def test_what_cannot_be_written(tmp_path, sheet):
    for arguments, message in (
        (("translation", []), "expected rows to review"),
        (("translation", [ROWS[0], ROWS[0]]), "found 2 times"),
        (("other", ROWS), "found 'other'"),
    ):
        with pytest.raises(ValueError, match=message):
            write_sheet(tmp_path, *arguments)


def test_a_stratified_sample():
    rows = ["a"] * 1000 + ["b"] * 20 + ["c"] * 2
    sample = stratified(iter(rows), 30, lambda row: row)
    assert (sample.count("a"), sample.count("b"), sample.count("c")) == (14, 14, 2)
    assert stratified(rows, 30, lambda row: row) == sample
    numbers = stratified(range(100), 10, lambda n: n % 2, seed=1)
    assert numbers == sorted(numbers)
    assert sum(n % 2 for n in numbers) == 5
    assert numbers != stratified(range(100), 10, lambda n: n % 2, seed=2)
    assert stratified([1, 2], 10, lambda n: 0) == [1, 2]


HOSTILE = [
    "=1+1", "＝1+1", " \"=cmd|' /C calc'!A1", "'=1", "\t@x", "\x1b[2J\x00\x07", "\u202eabc", "</script>\u2028",
    "line\r\nline", "$$x ${title}", "‘＋1", "𝒳\U000e0041",
]  # fmt: skip


def test_texts_of_strangers_are_inert_and_come_back(tmp_path):
    rows = [ReviewRow(str(n), "fr", text, text, "en", None, text) for n, text in enumerate(HOSTILE)]
    sheet = write_sheet(tmp_path, "translation", rows, title=HOSTILE[5])
    page = sheet.html.read_bytes().decode()
    assert all(line.isprintable() for line in page.split("\n"))
    assert len(re.findall("</script", page)) == 1
    with sheet.csv.open(encoding="utf-8-sig", newline="") as file:
        cells = [value for row in csv.DictReader(file) for value in row.values()]
    dangerous = re.compile(r"[\s\"‘]*[=+\-@＝＋\t]")
    assert not [cell for cell in cells if dangerous.match(cell)]
    assert read_sheet(tmp_path, fill(sheet, ["accept"] * len(rows))).decisions == {
        "accept": len(rows)
    }


@pytest.mark.parametrize(
    "about",
    [b"", b"{", b"[]", b'{"kind": "x", "rows": []}', b'{"kind": "translation", "rows": [1]}'],
)
def test_a_damaged_list_of_a_sheet_is_one_line(tmp_path, sheet, about):
    (tmp_path / "review" / "translation-1.json").write_bytes(about)
    with pytest.raises(ValueError, match=r"translation-1\.json") as caught:
        read_sheet(tmp_path, sheet.csv)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"\xff\xfe\x00", b"sheet," * 50_000, b'"' * 200_000, b"\xff" * 50],
)
def test_a_damaged_sheet_is_one_short_line(tmp_path, sheet, content):
    (tmp_path / "filled.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"filled\.csv: ") as caught:
        read_sheet(tmp_path, tmp_path / "filled.csv")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500
