"""The paired comparison of two evaluations: its numbers, and one-line errors."""

import pyarrow.parquet as pq
import pytest

from maya_vlm.training.cli import main
from maya_vlm.training.evaluation.report.compare import compare, comparison_text
from maya_vlm.training.evaluation.report.evaluations import read_evaluation
from maya_vlm.training.evaluation.results import read_results, write_results

from .test_page import evaluation

JUDGE = {
    "id": "gpt-x",
    "version": None,
    "served": [],
    "rubric": "r",
    "rubric_source": "a paper",
    "failed_share": 0.01,
    "failed": {},
    "withheld": [],
}


@pytest.fixture
def pair(tmp_path):
    """Write six answers of two models: English red, lime, blue, then Hindi."""
    return (
        evaluation(tmp_path / "a", ["A", "A", "A", "A", "B", "B"], "one"),
        evaluation(tmp_path / "b", ["A", "B", "A", "B", "A", "B"], "two"),
    )


def compared(pair):
    return compare(*map(read_evaluation, pair))


def change(folder, *place, value):
    """Set one value of a results file."""
    results = read_results(folder / "results.json")
    *path, last = place
    inner = results["tasks"]["letters"]
    for name in path:
        inner = inner[name]
    inner[last] = value
    write_results(results, folder / "results.json")


def test_differences_are_of_the_same_questions(pair):
    (found,) = compared(pair)
    rows = {(row["subset"], row["language"]): row for row in found.rows}
    assert (found.task, found.metric, found.failed) == ("letters", "accuracy", 0)
    english = rows["all", "en"]
    assert (english["n"], english["first"], english["second"]) == (3, 1, pytest.approx(2 / 3))
    assert english["difference"] == pytest.approx(1 / 3)
    assert (english["first_alone"], english["second_alone"]) == (1, 0)
    hindi = rows["all", "hi"]
    assert (hindi["difference"], hindi["first_alone"], hindi["second_alone"]) == (0, 1, 1)
    mean = rows["all", "all"]
    assert mean["n"] == 6
    assert mean["difference"] == pytest.approx((1 / 3 + 0) / 2)
    assert mean["low"] <= mean["difference"] <= mean["high"]
    assert rows["new/choice", "en"]["difference"] == 0
    assert rows["new/choice", "en"]["low"] is None  # one item gives no interval
    assert all(0 < row["p"] <= 1 for row in found.rows)
    # In the reverse order, all signs change.
    (back,) = compared(pair[::-1])
    assert [row["difference"] for row in back.rows] == pytest.approx(
        [-row["difference"] for row in found.rows]
    )


def test_a_failed_judgement_is_left_out_and_counted(tmp_path, pair):
    evaluation(tmp_path / "a", ["A"] * 6, "one", {"accuracy": None})
    with pytest.raises(ValueError, match="expected a score of each question, found none"):
        compared(pair)
    path = tmp_path / "b" / "answers" / "letters.parquet"
    rows = pq.read_table(path)
    values = [None, *rows["accuracy"].to_pylist()[1:]]
    place = rows.schema.get_field_index("accuracy")
    pq.write_table(rows.set_column(place, "accuracy", [values]), path)
    (found,) = compared((tmp_path / "b", tmp_path / "b"))
    assert found.failed == 1
    assert {row["n"] for row in found.rows if row["subset"] == "all"} == {2, 3, 5}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("version",), "2", "letters: version: expected the same in both, found '1' in"),
        (("protocol",), "other", "letters: protocol: expected the same"),
        (
            ("asked",),
            {"prompt": "?"},
            r"letters: asked\.prompt: expected the same in both, found None",
        ),
        (("data", "revision"), "1" * 40, r"letters: data\.revision"),
        (("data", "files_sha256"), "e" * 64, r"letters: data\.files_sha256"),
        (("settings", "decoding"), "sampled", r"letters: settings\.decoding"),
        (("judge",), JUDGE, r"letters: judge\.id"),
    ],
)
def test_another_way_of_asking_is_refused(pair, place, value, words):
    change(pair[1], *place, value=value)
    with pytest.raises(ValueError, match=words) as caught:
        compared(pair)
    assert "\n" not in str(caught.value)


def test_what_changes_no_answer_may_differ(pair):
    change(pair[1], "settings", "batch_size", value=7)
    assert compared(pair)


def test_other_questions_are_refused(tmp_path, pair):
    evaluation(tmp_path / "b", ["A"] * 6, "two", {"prompt": "C or D?"})
    with pytest.raises(
        ValueError, match=r"question 'en/en-red': prompt: expected the same in both"
    ):
        compared(pair)
    evaluation(tmp_path / "b", ["A"] * 6, "two")
    path = tmp_path / "a" / "answers" / "letters.parquet"
    pq.write_table(pq.read_table(path).slice(0, 5), path)
    with pytest.raises(ValueError, match=r"question 'hi/hi-blue': expected in both, found none in"):
        compared(pair)


def test_no_task_in_common_is_refused(pair):
    results = read_results(pair[1] / "results.json")
    results["tasks"], results["rows"] = {}, []
    write_results(results, pair[1] / "results.json")
    with pytest.raises(ValueError, match=r"a common task, found letters in .* and none in"):
        compared(pair)


def test_the_command_prints_it(pair, capsys):
    main(["evaluate", "--compare", *map(str, pair)])
    told = capsys.readouterr().out
    assert "A: one" in told
    assert "A alone" in told
    assert "+16.7 [" in told
    (one, other) = map(read_evaluation, pair)
    assert comparison_text(one, other, compare(one, other)) in told


def test_the_command_writes_a_page(pair, tmp_path, capsys):
    main(["evaluate", "--report", *map(str, pair), "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.html").is_file()
    assert "report.html" in capsys.readouterr().out
