"""The progress of an evaluation, and the languages in which each of several tasks is asked."""

import pytest

from maya_vlm.training import cli
from maya_vlm.training.evaluation import asking, run
from maya_vlm.training.evaluation.asking import Progress
from maya_vlm.training.evaluation.tasks import TASKS, task
from maya_vlm.training.evaluation.tasks.judged import Judged


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(asking.time, "perf_counter", lambda: now[0])
    progress = Progress(400, every=10)
    progress.start("pope, model")
    for _ in range(300):
        now[0] += 0.1
        progress.add()
    progress.close()
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "pope, model: 101 of 400 answers, 10.0 a second, 00:29 left",
        "pope, model: 201 of 400 answers, 10.0 a second, 00:19 left",
    ]
    hidden = Progress(400, every=0, shown=False)
    now[0] += 1
    hidden.add()
    assert capsys.readouterr().out == ""


def test_each_of_several_tasks_is_asked_in_its_own_languages(capsys):
    chosen = [task("cvqa"), task("xgqa"), task("xgqa:pangea")]
    found = run._languages_of(chosen, ["zh", "de", "ur"])
    assert [own for _, own in found] == [["zh", "ur"], ["zh", "de"], ["zh", "de"]]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "cvqa: asked only in zh ur, since it has none of the other languages"
    assert [own for _, own in run._languages_of(chosen, None)] == [None] * 3
    # For a single task, its dataset checks the languages.
    assert run._languages_of(chosen[:1], ["xx"]) == [(chosen[0], ["xx"])]
    with pytest.raises(ValueError, match=r"^languages: expected some of en zh .*, found xx$"):
        run._languages_of(chosen, ["zh", "xx"])
    with pytest.raises(ValueError, match="found none"):
        run._languages_of(chosen, [])
    with pytest.raises(ValueError, match=r"^pope: expected one of its languages, en, found zh: "):
        run._languages_of([task("pope"), *chosen], ["zh"])


def test_the_list_names_protocols_metrics_and_languages(capsys):
    assert cli.main(["evaluate", "--list"]) == 0
    shown = capsys.readouterr().out
    for name, kind in TASKS.items():
        graded = " (a judge grades)" if issubclass(kind, Judged) else ""
        assert f"\n{name}: {kind.title}{graded}\n" in f"\n{shown}"
        assert f"  languages: {' '.join(kind.languages)}\n" in shown
        for protocol, source in kind.protocols.items():
            made = kind(protocol)
            title = made.metrics[made.metric]["title"]
            assert f"  {made.key}: {title}; {source}\n" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tasks pope,mimi", "found 'mimi'"),
        ("--languages en,xx", "in 'test', found 'xx'"),
        ("--languages ,", "in 'test', found none"),
        ("--batch-size 0", "batch_size: expected at least 1"),
        ("--processes 0", "--processes: expected 1 to "),
        (
            "--processes 2 --endpoint http://127.0.0.1:9",
            "--processes: expected no --endpoint, found one",
        ),
        ("--processes 999", "of this machine, found 999"),
        ("--endpoint nowhere", "base_url: expected http(s)://host, found 'nowhere'"),
        (
            "--endpoint http://127.0.0.1:9 --api-key-env NO_SUCH_KEY",
            "NO_SUCH_KEY to be set, found nothing",
        ),
    ],
)
def test_what_is_wrong_with_a_command_is_one_line(words, said, tmp_path, capsys):
    from tests.helpers.tiny_maya import save_tiny_maya

    model = save_tiny_maya(tmp_path / "tiny")
    capsys.readouterr()
    line = ["evaluate", str(model), "--output", str(tmp_path / "out"), "--limit", "2"]
    assert cli.main([*line, *words.split()]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out" / "results.json").exists()
