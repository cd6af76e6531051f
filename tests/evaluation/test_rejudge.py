"""Existing answers: which files are accepted, and which errors are one line."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from maya_vlm.model_card.cards.scores import model_index, sections, weaknesses
from maya_vlm.training import cli
from maya_vlm.training.evaluation.answers import read_answers
from maya_vlm.training.evaluation.rejudge import rejudge
from maya_vlm.training.evaluation.results import read_results
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.table import text_table
from tests.evaluation.judges.judge_server import pair_of, plan, server
from tests.evaluation.tasks import test_llava_bench, test_pope
from tests.evaluation.tasks.public_rows import write_dataset
from tests.helpers.tiny_maya import save_tiny_maya

LINES = [
    {"question_id": place, "language": language, "answer": f"Answer {language} {place}"}
    for language in ("en", "ja")
    for place in range(3)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return test_llava_bench.write(tmp_path_factory.mktemp("data") / "palo").data


def write(path, lines):
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


def rejudged(tmp_path, lines, data, **options):
    """Rejudge without a judge, since all these errors come before the judge is asked."""
    path = write(tmp_path / "answers.jsonl", lines)
    return rejudge(path, "palo", tmp_path / "out", data=data, languages=["en", "ja"], **options)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[:-2], r"found none to 2 questions, the first 'ja/1': add them"),
        (lambda rows: [*rows, rows[1]], r"line 7: id 'en/1': expected once, found also in line 2"),
        (
            lambda rows: [*rows, {**rows[0], "question_id": 60}],
            r"line 7: id 'en/60': expected the id of a question, such as 'en/0'",
        ),
        (
            lambda rows: [{**rows[0], "question": "Who?"}, *rows[1:]],
            r"line 1: id 'en/0': expected an answer to 'What is the name .*found one to 'Who\?'",
        ),
        (
            lambda rows: [{**rows[0], "model": "a"}, *({**row, "model": "b"} for row in rows[1:])],
            r"line 2: expected answers of one model, found 'b' beside 'a'",
        ),
        (lambda rows: [{"question_id": 0}], r"line 1: expected question_id and answer, found"),
        (
            lambda rows: [{**rows[0], "language": ["en"]}],
            r"line 1: language: expected text or null",
        ),
        (lambda rows: [{**rows[0], "model": {}}], r"line 1: model: expected text or null, found"),
        (
            lambda rows: [{**rows[0], "question_id": [1]}],
            r"line 1: expected question_id and answer",
        ),
        (lambda rows: [[1]], r"line 1: expected a mapping, found a list of 1"),
        (lambda rows: [], r"answers\.jsonl: expected answers, found none"),
    ],
)
def test_answers_that_do_not_fit_are_one_line(change, told, data, tmp_path):
    with pytest.raises(ValueError, match=told) as error:
        rejudged(tmp_path, change(LINES), data)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_answers_of_another_model_are_refused(data, tmp_path):
    lines = [{**line, "model_id": "maya"} for line in LINES]
    with pytest.raises(ValueError, match=r"expected answers of other, found answers of maya"):
        rejudged(tmp_path, lines, data, model="other")
    with server() as judge:
        rejudged(tmp_path, lines, data, model="maya", judge=plan(judge))
        with pytest.raises(ValueError, match=r"out: expected results of b, found results of maya"):
            rejudged(tmp_path, [{**line, "model_id": "b"} for line in LINES], data)


def test_a_judged_task_wants_a_judge_and_others_want_none(data, tmp_path):
    with pytest.raises(ValueError, match="llava_bench: expected a judge, since a model grades"):
        rejudged(tmp_path, LINES, data)
    splits = {("Full", each): test_pope.rows(each) for each in test_pope.SETS}
    folder = write_dataset(tmp_path / "pope", test_pope.FEATURES, splits)
    with server() as judge:
        with pytest.raises(ValueError, match="--judge: expected a task with a judge, found pope"):
            evaluate(
                str(save_tiny_maya(tmp_path / "model")),
                ["pope"],
                data=str(folder),
                judge=plan(judge),
                sheet=False,
            )


def test_the_answers_of_an_evaluation_are_scored_alike_without_the_model(data, tmp_path):
    folder = save_tiny_maya(tmp_path / "tiny")
    with server() as judge:
        results = evaluate(
            str(folder), ["palo"], data=data, languages=["en", "ja"], judge=plan(judge), sheet=False
        )
        asked = judge.requests
        again = rejudge(
            folder / "answers" / "llava_bench.parquet",
            "palo",
            tmp_path / "again",
            data=data,
            languages=["en", "ja"],
            judge=plan(judge, journal=folder / "judgements.jsonl"),
        )
        assert judge.requests == asked
        # Under another protocol the same answers are judged again.
        both = rejudge(
            folder / "answers" / "llava_bench.parquet",
            "palo:both",
            tmp_path / "again",
            data=data,
            languages=["en", "ja"],
            judge=plan(judge, journal=folder / "judgements.jsonl"),
        )
        assert judge.requests > asked
    assert again["rows"] == results["rows"]
    assert {row["run"] for row in again["rows"]} == {"model", "blind", "shuffled"}
    assert set(both["tasks"]) == {"llava_bench", "llava_bench:both"}
    assert again["model"] == results["model"]
    assert read_answers(folder / "answers" / "llava_bench.parquet").model == results["model"]


def test_a_parquet_file_of_others_is_one_line(data, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(
        ValueError, match=r"a\.parquet: expected a parquet file, found one that cannot be read"
    ):
        read_answers(tmp_path / "a.parquet")
    folder = tmp_path / "made"
    shutil.copytree(data, folder)
    table = next(folder.rglob("*.parquet"))
    with pytest.raises(
        ValueError, match="expected an answers file of `maya evaluate`, found no run"
    ):
        read_answers(table)
    assert pq.read_table(table).num_rows == 3
    with pytest.raises(FileNotFoundError, match="expected a file of answers, found none"):
        read_answers(tmp_path / "none.jsonl")


def test_the_command_scores_answers_and_says_what_failed(data, tmp_path, capsys):
    path = write(tmp_path / "maya.jsonl", LINES)

    def one_fails(text, lang):
        if "Answer ja 1" in text:
            return "I cannot."
        first, second = pair_of(text)
        return f"{first} {second}"

    with server(fallback=one_fails) as judge:
        command = ["evaluate", "--rejudge", str(path), "--tasks", "palo", "--data", data]
        command += ["--languages", "en", "ja", "--output", str(tmp_path / "out")]
        command += ["--judge", judge.url, "--judge-model", "judge-1"]
        assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "judge: judge-1, rubric llava_review@1; failed judgements: 1 of the model run" in printed
    assert "no score of ja (all, model run): 1 of 3 judgements failed, more than 1 %" in printed
    results = read_results(tmp_path / "out" / "results.json")
    shown = {
        row["language"]
        for row in results["rows"]
        if (row["metric"], row["subset"]) == ("relative", "all")
    }
    assert shown == {"en"}
    judge_info = results["tasks"]["llava_bench"]["judge"]
    assert judge_info["failed"] == {"model": ["ja/1"]}


def test_results_without_any_score_are_still_results(data, tmp_path):
    """Each language has a failed judgement."""

    def fails(text, lang):
        return "I cannot." if re.search(r"Answer (en|ja) 1", text) else "7 8"

    with server(fallback=fails) as judge:
        results = rejudged(tmp_path, LINES, data, judge=plan(judge))
    assert read_results(tmp_path / "out" / "results.json") == results
    assert len(results["tasks"]["llava_bench"]["judge"]["withheld"]) == 4
    text = text_table(results, "llava_bench")
    assert "no score of en (all, model run): 1 of 3 judgements failed, more than 1 %" in text
    assert "2 of the model run" in text
    assert "The judge is `judge-1`" in sections(results)[0]["intro"]
    assert isinstance(weaknesses(results), list)
    entries = model_index(results, "x")[0]["results"]
    assert {entry["task"]["name"] for entry in entries} == {"Complex reasoning", "Conversation"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--rejudge", "a.jsonl"], "--rejudge: expected one task in --tasks, --output, and no"),
        (["x", "--judge-model", "a"], "--judge-model: expected --judge, found none"),
        (["x", "--against", "a"], "--against: expected --judge, found none"),
    ],
)
def test_options_that_want_others_say_so(options, told, capsys):
    assert cli.main(["evaluate", *options]) == 2
    assert told in capsys.readouterr().err
