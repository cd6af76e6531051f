"""The page on untrusted results: escaped, well-formed, and explicit about missing data."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maya_vlm.training.common.files import write_parquet
from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.report.evaluations import (
    keep_pictures,
    pictures_file,
    read_evaluation,
)
from maya_vlm.training.evaluation.report.page import shown, write_report
from maya_vlm.training.evaluation.report.published import published, warning
from maya_vlm.training.evaluation.results import read_results, write_results
from maya_vlm.training.evaluation.tasks import TASKS, task
from tests.evaluation.answers import Letters, results_of, scored

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> \u202e"
TEXTS = ["A", "B", EVIL, "A", "", "A"]


def evaluation(folder, texts=TEXTS, name="tiny", changes=None):
    """Write a folder of the task `letters`, as `maya evaluate` would."""
    results = results_of({"model": texts, "blind": ["B"] * 6})
    results["model"]["name"] = name
    write_results(results, folder / "results.json")
    loaded = Letters().load(Selection())
    given = scored(Letters(), loaded, texts)
    rows = [
        {
            "run": "model",
            "id": one.request.id,
            "subset": one.request.subset,
            "language": one.request.language,
            "item": one.request.item,
            "pictures": list(one.request.pictures),
            "prompt": one.request.text,
            "expected": '"A"',
            "answer": one.answer.text,
            "parsed": one.score.parsed,
            "unparsable": one.score.unparsable,
            "accuracy": one.score.values["accuracy"],
            "tokens": 1,
            "ended": one.request.item != "lime",
            "answer_language": one.request.language,
            "language_found": "en" if one.answer.text == "B" else None,
        }
        | (changes or {})
        for one in given
    ]
    path = folder / "answers" / "letters.parquet"
    write_parquet(path, pa.Table.from_pylist(rows))
    keep_pictures(loaded, given, pictures_file(folder, "letters"), seed=0)
    return folder


class Elements(HTMLParser):
    """Collects names and attributes of a page's elements, and unclosed elements."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "rect", "line", "circle", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(*folders, output=None):
    return write_report(list(folders), output).read_text(encoding="utf-8")


def test_texts_of_strangers_stay_texts(tmp_path):
    text = page(evaluation(tmp_path, name=EVIL))
    elements = Elements(text)
    assert elements.open == []
    assert not [tag for tag, _ in elements.found if tag in ("script", "iframe", "object", "link")]
    assert not [name for _, own in elements.found for name in own if name.startswith("on")]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\u202e" not in text
    # The page loads nothing from elsewhere: each address is an embedded picture or an anchor.
    places = {own["id"] for _, own in elements.found if own.get("id")}
    for tag, own in elements.found:
        for name in ("src", "href"):
            if own.get(name):
                inside = own[name].startswith("#") and own[name][1:] in places
                assert inside or (tag == "img" and own[name].startswith("data:image/")), own
    assert "default-src 'none'" in text


def test_numbers_baselines_failures_and_samples_are_on_the_page(tmp_path):
    text = page(evaluation(tmp_path))
    # The model has one of two right in English, blind has none; chance is one half in both languages.
    assert re.search(
        r'aria-label="50\.0, 95 % interval [\d.]+ to [\d.]+, blind 0\.0, chance 50\.0', text
    )
    assert re.search(r"<strong>2</strong> of 6 answers could not be parsed", text)
    assert re.search(r"<strong>2</strong> of 6 answers were cut by the limit", text)
    assert "0 of 6 answers have a judgement that failed" in text
    # An answer in English is in the requested language for an English question, not for a Hindi one.
    assert "0 of 6 answers are in another language" in text
    text = page(evaluation(tmp_path, ["A", "B", "A", "A", "B", "A"]))
    assert "<strong>1</strong> of 6 answers are in another language" in text
    assert "Requested → found: hi → en 1" in text
    assert text.count("<article>") == 3
    assert "old pictures: choice" in text
    assert "Contamination" in text


def test_a_failed_judgement_is_listed(tmp_path):
    text = page(evaluation(tmp_path, changes={"accuracy": None}))
    assert "<strong>6</strong> of 6 answers have a judgement that failed" in text


def test_several_results_stand_side_by_side(tmp_path):
    first = evaluation(tmp_path / "a", name="one")
    second = evaluation(tmp_path / "b", ["A"] * 6, name="two")
    text = page(first, second, output=tmp_path / "out")
    assert "Evaluation of one and two" in text
    assert 'class="bar m1"' in text
    assert 'id="compared"' in text
    assert text.count('<bdi lang="hi"') > 6
    third = evaluation(tmp_path / "c", name="two")
    names = page(second, third, first, output=tmp_path / "out")
    assert "two (1)" not in names or "two (2)" in names
    assert 'id="compared"' not in names


def test_results_without_answers_say_so(tmp_path):
    evaluation(tmp_path)
    (tmp_path / "answers" / "letters.parquet").unlink()
    text = page(tmp_path)
    assert "tiny: no answers beside the results" in text
    assert "Elements" not in text
    assert "<article>" not in text


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("answer", "expected one column 'answer', found run"),
        ("ended", "expected one column 'ended'"),
    ],
)
def test_damaged_answers_are_told_in_one_line(tmp_path, column, words):
    evaluation(tmp_path)
    path = tmp_path / "answers" / "letters.parquet"
    table = pq.read_table(path)
    write_parquet(path, table.drop_columns([column]))
    with pytest.raises(ValueError, match=words) as caught:
        page(tmp_path)
    assert "\n" not in str(caught.value)
    place = table.column_names.index(column)
    write_parquet(path, table.set_column(place, column, pa.array([[1]] * 6)))
    with pytest.raises(ValueError, match=f"column '{column}': expected .*, found list<"):
        page(tmp_path)
    write_parquet(path, table.append_column("own", pa.array(["x"] * 6)))
    page(tmp_path)  # unknown columns are ignored
    texts = pa.array(["x"] * 6)
    write_parquet(path, table.set_column(table.column_names.index("accuracy"), "accuracy", texts))
    with pytest.raises(ValueError, match="column 'accuracy': expected number, found string"):
        page(tmp_path)
    holes = pa.array([None, *table["prompt"].to_pylist()[1:]])
    write_parquet(path, table.set_column(table.column_names.index("prompt"), "prompt", holes))
    with pytest.raises(ValueError, match="column 'prompt': expected a value in every row, found 1"):
        page(tmp_path)
    write_parquet(path, pa.concat_tables([table, table.slice(0, 1)]))
    with pytest.raises(ValueError, match="question 'en/en-red' of the run 'model': expected one"):
        page(tmp_path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        page(tmp_path)


def test_a_task_whose_name_leads_elsewhere_has_no_answers(tmp_path):
    folder = evaluation(tmp_path / "a")
    results = read_results(folder / "results.json")
    results["tasks"]["../answers/letters"] = results["tasks"].pop("letters")
    for row in results["rows"]:
        row["task"] = "../answers/letters"
    write_results(results, folder / "results.json")
    assert "no answers beside the results" in page(folder)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results at"):
        page(tmp_path)


@pytest.mark.parametrize(
    ("text", "language", "direction"),
    [
        ("أرز مطبوخ", "ar", "rtl"),
        ("iPhone هو هاتف من الهواتف", "ar", "rtl"),
        ("A dog on the floor", "ur", "ltr"),
        ("42", "ur", "rtl"),
        ("42", "ja", "ltr"),
        ("ہاں", "en", "rtl"),
        ("", "ar", "rtl"),
    ],
)
def test_an_answer_is_set_in_the_direction_of_its_letters(text, language, direction):
    assert shown(text, language).dir == direction


def test_a_long_text_is_cut_and_says_so():
    assert shown("a" * 5000, "en").text.endswith("… (5,000 letters)")


def test_pictures_are_kept_small(tmp_path):
    class Large:
        def load(self, key):
            return Image.new("RGB", (2000, 1000), key)

    loaded = Letters().load(Selection())
    evaluation(tmp_path)
    keep_pictures(
        replace(loaded, pictures=Large()),
        scored(Letters(), loaded, TEXTS),
        pictures_file(tmp_path, "letters"),
        0,
    )
    kept = read_evaluation(tmp_path).pictures("letters")
    assert set(kept) == {"red", "lime", "blue"}
    for content in kept.values():
        assert content.startswith(b"\xff\xd8")
        assert len(content) < 20_000


def test_published_numbers_name_tasks_and_protocols_of_this_package():
    _, tables = published()
    later = {"llava_bench", "llava_wild", "mmvet", "xchat", "aya_vision_bench", "m_wildvision"}
    for table in tables:
        assert table["task"] in TASKS or table["task"] in later, table["task"]
        for key in table["alike"]:
            assert task(key).key == key
            assert key.partition(":")[0] == table["task"]


def test_what_is_not_comparable_is_warned_of():
    _, tables = published()
    info = results_of({"model": TEXTS})["tasks"]["letters"]
    info["settings"]["limit"] = None
    pope = next(table for table in tables if table["task"] == "pope")
    assert warning(pope, "pope", info) == ""
    assert "prompts or scoring differ from pope:strict" in warning(pope, "pope:strict", info)
    info["settings"]["limit"] = 50
    assert "only 3 pictures" in warning(pope, "pope", info)
    info["data"]["revision"] = None
    assert "on local files" in warning(pope, "pope", info)
    judged = next(table for table in tables if table.get("judge") == "gpt-4-0314")
    assert "the judge is gpt-4-0314" in warning(judged, "llava_bench", info)
