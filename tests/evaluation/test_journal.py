"""`maya evaluate` resumes: no answer is generated twice, and answers are never mixed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from maya_vlm.training.common.journal import AppendOnly, read_records
from maya_vlm.training.evaluation.asking import Asking
from maya_vlm.training.evaluation.journal import Journal, Keys, local_identity
from maya_vlm.training.evaluation.processes import Process
from maya_vlm.training.evaluation.protocol import Picture, Request, Selection
from maya_vlm.training.evaluation.results import read_results
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.inference.generation import Answer
from tests.evaluation.answers import Letters
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

pytest.importorskip("datasets")

OPTIONS = {"limit": 4, "baseline_items": 2, "languages": ["en", "hi"], "sheet": False}
# Code that ends the process in the middle of writing the 20th answer.
KILLED = """
import os, signal, sys
from maya_vlm.training.common import journal
from maya_vlm.training.evaluation.run import evaluate

written = journal.os.write
lines = 0

def write(handle, line):
    global lines
    lines += b'"key"' in line
    if lines == 20:
        written(handle, line[: len(line) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return written(handle, line)

journal.os = type("os", (), {**vars(os), "write": staticmethod(write)})
evaluate(sys.argv[1], output=__import__("pathlib").Path(sys.argv[2]), batch_size=7, **%s)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Results of an uninterrupted evaluation."""
    return evaluate(str(folder), output=tmp_path_factory.mktemp("whole"), **OPTIONS)


@pytest.fixture
def generated(monkeypatch):
    """Ids of the requests that the model answers from now on, one entry for each answer."""
    ids = []
    ask = Asking.ask

    def counted(self, requests, pictures, done):
        def count(place, given):
            ids.append(requests[place].id)
            done(place, given)

        ask(self, requests, pictures, count)

    monkeypatch.setattr(Asking, "ask", counted)
    return ids


def keys_of(output):
    return [
        record["key"]
        for path in output.glob("answers/journal/*.jsonl")
        for _, record in read_records(path)
    ]


def test_a_killed_evaluation_goes_on_and_answers_nothing_twice(folder, whole, generated, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-c", KILLED % repr(OPTIONS), str(folder), str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (output / "results.json").exists()
    assert len(keys_of(output)) == 19
    # The batch size may differ, since batching changes no answer.
    results = evaluate(str(folder), output=output, batch_size=3, **OPTIONS)
    assert results["rows"] == whole["rows"]
    keys = keys_of(output)
    assert len(keys) == len(set(keys)) == 19 + len(generated)
    # A third evaluation has nothing left to ask.
    generated.clear()
    assert evaluate(str(folder), output=output, **OPTIONS)["rows"] == whole["rows"]
    assert generated == []


def test_equal_questions_are_asked_once(folder, whole, generated, tmp_path):
    """Blind questions are the same for every picture."""
    evaluate(str(folder), output=tmp_path, **OPTIONS)
    asked = whole["tasks"]["mini"]["data"]["requests"]
    assert asked < len(generated) < 2 * asked
    assert len(set(keys_of(tmp_path))) == len(generated)


@pytest.mark.parametrize("change", ["weights", "template", "limit"])
def test_answers_of_another_model_are_not_taken(folder, generated, tmp_path, change):
    """The key covers weights, prompts and stop tokens; a larger limit only adds questions to existing ones."""
    model, output = tmp_path / "model", tmp_path / "out"
    subprocess.run(["cp", "-r", str(folder), str(model)], check=True)
    evaluate(str(model), output=output, baselines=(), **{**OPTIONS, "limit": 2})
    first = list(generated)
    generated.clear()
    options = {**OPTIONS, "limit": 2}
    if change == "weights":
        from safetensors.torch import load_file, save_file

        file = model / "model.safetensors"
        tensors = load_file(file)
        name = next(name for name in tensors if "embed_tokens" in name)
        tensors[name] = -tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})
    elif change == "template":
        file = model / "chat_template.jinja"
        file.write_text(file.read_text() + "{# #}")
    else:
        options["limit"] = 4
    evaluate(str(model), output=output, baselines=(), **options)
    if change == "limit":
        assert set(generated).isdisjoint(first)
    assert sorted(generated) == sorted(first) or change == "limit"
    # The first answers still exist.
    generated.clear()
    evaluate(str(model), output=output, baselines=(), **{**options, "limit": 2})
    assert generated == []


def test_results_that_asking_left_are_marked_partial_and_continued(
    folder, whole, tmp_path, monkeypatch, capsys
):
    ask = Asking.ask

    def fails(self, requests, pictures, done):
        ask(self, requests[:10], pictures, done)
        raise OSError("no more memory")

    monkeypatch.setattr(Asking, "ask", fails)
    with pytest.raises(OSError, match=r"^no more memory$"):
        evaluate(str(folder), output=tmp_path, **OPTIONS)
    results = read_results(tmp_path / "results.json")
    info = results["tasks"]["mini"]
    assert len(keys_of(tmp_path)) == 10
    assert info["settings"]["partial"]["answered"] == 10
    assert info["title"] == f"mini (partial: 10 of {info['settings']['partial']['of']} answers)"
    # A shuffled question may equal a question that was already asked about that picture.
    assert {row["run"] for row in results["rows"]} <= {"model", "shuffled", "chance"}
    assert max(row["n"] for row in results["rows"] if row["run"] == "model") == 10
    assert "(partial: 10 of " in capsys.readouterr().out
    monkeypatch.setattr(Asking, "ask", ask)
    again = evaluate(str(folder), output=tmp_path, **OPTIONS)
    assert again["rows"] == whole["rows"]
    assert again["tasks"]["mini"]["title"] == "mini"
    assert "10 of " in capsys.readouterr().out


def test_only_one_evaluation_writes_into_a_folder(folder, tmp_path):
    from maya_vlm.training.common.files import only_one

    kept = tmp_path / "answers" / "journal"
    kept.mkdir(parents=True)
    with only_one(kept / "lock", ""), pytest.raises(OSError, match="another evaluation is writing"):
        evaluate(str(folder), output=tmp_path, **OPTIONS)


# ------------------------------------------------------------------------------ keys


def request(**changes):
    about = {"id": "a", "language": "en", "max_new_tokens": 4, "item": "a"}
    return Request(**{**about, "content": (Picture("red"), "What?"), **changes})


def test_a_key_is_of_what_the_model_is_given_and_of_nothing_else():
    task = Letters()
    part = task.load(Selection())
    key = Keys("model", task, part)
    one = key(request())
    assert one == key(request(id="b", language="hi", expected="A", subset="x", item="b"))
    changed = [
        {"content": ("What?", Picture("red"))},
        {"content": (Picture("blue"), "What?")},
        {"content": (Picture("red"), "What? ")},
        {"content": (Picture("red"), Picture("red"), "What?")},
        {"content": ("red", "What?")},
        {"max_new_tokens": 5},
        {"system": ""},
        {"stop": ("\n",)},
    ]
    keys = [key(request(**each)) for each in changed]
    keys.append(Keys("another", task, part)(request()))
    other = replace(part, data={**part.data, "revision": "1" * 40})
    keys.append(Keys("model", task, other)(request()))
    assert len({one, *keys}) == len(keys) + 1


def test_pictures_of_data_without_a_revision_are_hashed():
    class Changing:
        seed = 0

        def load(self, key):
            return tiny_picture(self.seed)

    task = Letters()
    part = task.load(Selection())
    part = replace(part, data={**part.data, "revision": None}, pictures=Changing())
    before = Keys("model", task, part)(request())
    assert Keys("model", task, part)(request()) == before
    part.pictures.seed = 1
    assert Keys("model", task, part)(request()) != before


def test_results_beside_the_model_do_not_change_it(folder):
    from maya_vlm.training.common.models import find_model

    found = find_model(str(folder))
    before = local_identity(found, "float32")
    (folder / "results.json").write_text("{}")
    assert local_identity(found, "float32") == before != local_identity(found, "bfloat16")
    (folder / "results.json").unlink()


# ------------------------------------------------------------------------------ files


def test_a_journal_keeps_all_before_a_damaged_line(tmp_path):
    journal = Journal(tmp_path, "letters")
    for number in range(3):
        journal.add(f"k{number}", Answer(f"é\n{number}", None if number else 3, number > 0))
    journal.close()
    path = tmp_path / "letters.0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines(keepends=True)[0][:-9])
    AppendOnly(tmp_path / "letters.1.jsonl").append(
        {"key": "k9", "text": "x"}
    )  # not a record of the journal
    again = Journal(tmp_path, "letters")
    assert again.answers == journal.answers
    assert path.read_bytes() == whole
    again.add("k3", Answer("", 0, True))
    # Another process, also with another number of processes, reads all files.
    assert Journal(tmp_path, "letters", rank=2).answers.keys() == {"k0", "k1", "k2", "k3"}
    assert Journal(tmp_path, "letter").answers == {}


# ------------------------------------------------------------------------------ processes


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_request_is_one_processs_and_pictures_stay_together(count):
    requests = [
        request(id=f"{number}", content=(Picture(f"{number % 5}"), f"{number}"))
        for number in range(35)
    ] + [request(content=(f"{number}",)) for number in range(10)]
    shares = [Process(rank, count).share(requests) for rank in range(count)]
    assert sorted(place for share in shares for place in share) == list(range(45))
    for key in range(5):
        assert sum(any(requests[i].pictures == (f"{key}",) for i in s) for s in shares) == 1
    assert max(map(len, shares)) <= 45 / count + 7
    assert Process(0, count).share([]) == []


@pytest.mark.slow
def test_two_processes_answer_as_one(folder, whole, tmp_path):
    command = [str(Path(sys.executable).with_name("maya")), "evaluate", str(folder)]
    command += ["--output", str(tmp_path), "--limit", "4", "--languages", "en,hi"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = evaluate(str(folder), output=tmp_path / "one", **{**OPTIONS, "baseline_items": 300})
    done = subprocess.run(
        [*command, "--processes", "2"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "results.json")
    assert results["rows"] == json.loads(json.dumps(first["rows"]))
    assert results["tasks"]["mini"]["settings"]["processes"] == 2
    files = sorted(path.name for path in (tmp_path / "answers" / "journal").glob("*.jsonl"))
    assert files == ["mini.0.jsonl", "mini.1.jsonl"]
    assert all(list(read_records(tmp_path / "answers" / "journal" / name)) for name in files)
    keys = keys_of(tmp_path)
    assert len(keys) == len(set(keys)) == len(keys_of(tmp_path / "one"))
    assert done.stdout.count("written to") == 1
