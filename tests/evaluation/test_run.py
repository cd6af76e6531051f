"""`maya evaluate` on the real mini dataset with a tiny model, and its errors."""

import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maya_vlm.training.common.languages import LANGUAGES
from maya_vlm.training.evaluation.asking import Asking
from maya_vlm.training.evaluation.protocol import Picture, Request, Selection, shuffled
from maya_vlm.training.evaluation.records import language_groups
from maya_vlm.training.evaluation.results import Results, read_results, write_results
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.sheet import lettering
from maya_vlm.training.evaluation.table import text_table
from maya_vlm.training.evaluation.tasks import mini
from maya_vlm.training.evaluation.tasks.mini import DATA, Mini
from maya_vlm.training.inference.generation import Answer
from maya_vlm.training.inference.load import load
from tests.evaluation.answers import results_of, scored
from tests.helpers.tiny_maya import save_tiny_maya, tiny_maya

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def results(folder) -> Results:
    return evaluate(
        str(folder), limit=6, baseline_items=4, languages=["en", "hi", "ur"], batch_size=32
    )


@pytest.fixture(scope="module")
def loaded():
    return Mini().load(Selection(split="validation", languages=["en", "ja"], limit=40))


@pytest.mark.parametrize("side", [None, 15_000])
def test_pictures_that_are_none_are_told_in_one_line(monkeypatch, side):
    """PostScript is never executed, and a picture's size is checked before it is decoded."""
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    if side is not None:
        buffer = io.BytesIO()
        Image.new("1", (side, side)).save(buffer, "PNG")
        content = buffer.getvalue()
    rows = [{"image": "a.png", "picture": {"bytes": content, "path": None}}]
    monkeypatch.setattr(mini, "_table", lambda *_: pa.Table.from_pylist(rows))
    with pytest.raises(
        ValueError, match=r"x: picture 'a\.png' cannot be decoded: Cannot read"
    ) as error:
        mini.MiniPictures("x", "test", {"a.png"})
    assert "\n" not in str(error.value)


def test_a_picture_that_the_processor_does_not_take_is_named(folder):
    class Pictures:
        def load(self, key):
            return Image.new("RGB", (20_000 if key == "b.png" else 8, 1))

    about = {
        "language": "en",
        "max_new_tokens": 1,
        "item": "a",
        "answer_language": "en",
        "subset": "a",
    }
    requests = [
        Request(id=key, content=(Picture(key), "What?"), **about) for key in ("a.png", "b.png")
    ]
    asking = Asking(*load(str(folder)), batch_size=2)
    with pytest.raises(ValueError, match=r"^picture 'b\.png': Cannot pad a picture of 20000x1"):
        asking.ask(requests, Pictures(), lambda place, given: None)


def test_writes_results_answers_and_sheet_beside_the_model(folder, results):
    import pyarrow.parquet

    assert read_results(folder / "results.json") == json.loads(json.dumps(results))
    info = results["tasks"]["mini"]
    assert info["data"]["images"] == 6
    assert info["data"]["requests"] == 6 * 3 * 4
    assert info["data"]["styles"] == ["twemoji"]
    answers = pyarrow.parquet.read_table(folder / "answers" / "mini.parquet").to_pylist()
    assert len(answers) == 6 * 3 * 4 + 2 * 4 * 3 * 4
    checked = set()
    for row in results["rows"]:
        if row["metric"] == "accuracy" and row["language"] in info["languages"]:
            own = [
                answer
                for answer in answers
                if (answer["run"], answer["subset"], answer["language"])
                == (row["run"], row["subset"], row["language"])
            ]
            if row["run"] != "chance":
                assert row["n"] == len(own)
                assert row["value"] == sum(answer["accuracy"] for answer in own) / len(own)
                assert row["failures"] == sum(answer["unparsable"] for answer in own)
            checked.add((row["run"], row["subset"]))
    assert {run for run, _ in checked} == {"model", "blind", "shuffled", "chance"}
    assert {"seen/name", "seen/yesno", "seen/category"} <= {subset for _, subset in checked}
    assert {answer["language_found"] for answer in answers} <= {*LANGUAGES, "other", None}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 6
    assert "<script" not in page
    with Image.open(folder / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_results_name_no_path_and_no_host(folder, results):
    import socket

    text = (folder / "results.json").read_text(encoding="utf-8")
    assert str(folder) not in text
    assert str(DATA) not in text
    assert socket.gethostname() not in text
    assert results["model"]["name"] == "tiny"
    assert re.fullmatch(r"[0-9a-f]{64}", results["model"]["weights_sha256"])
    assert re.fullmatch(r"[0-9a-f]{64}", results["tasks"]["mini"]["data"]["files_sha256"])


def test_table_has_every_language_and_baseline(results):
    lines = text_table(results, "mini").splitlines()
    for start in ("en ", "hi ", "ur ", "all "):
        assert any(line.startswith(start) for line in lines), start
    assert any("blind" in line and "shuffled" in line for line in lines)


def test_same_seed_same_numbers_and_other_tasks_stay(folder, results, tmp_path):
    other = results_of({"model": "AAAAAA"})
    other["model"] = results["model"]
    write_results(other, tmp_path / "results.json")
    again = evaluate(
        str(folder),
        output=tmp_path,
        limit=6,
        baseline_items=4,
        languages=["en", "hi", "ur"],
        batch_size=5,
        sheet=False,
    )
    assert [row for row in again["rows"] if row["task"] == "mini"] == results["rows"]
    assert [row for row in again["rows"] if row["task"] != "mini"] == other["rows"]
    assert list(again["tasks"]) == ["letters", "mini"]
    assert not (tmp_path / "sheet.png").exists()


def test_runs_without_the_font_packages_and_says_so(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lettering, "PACKAGES", ("no_such_fonts",))
    evaluate(str(folder), output=tmp_path, limit=1, languages=["en"], baselines=())
    assert "no sheet.png: the answer sheet needs no-such-fonts" in capsys.readouterr().out
    assert (tmp_path / "results.json").is_file()
    assert not (tmp_path / "sheet.png").exists()


def test_a_picture_that_the_processor_refuses_is_named(loaded):
    def refuse(*_, **__):
        raise ValueError("too thin")

    model, processor = tiny_maya()
    processor.image_processor = refuse
    with pytest.raises(ValueError, match=r"^picture '[^']+': too thin$"):
        Asking(model, processor, 8).ask(
            loaded.requests[:4], loaded.pictures, lambda place, given: None
        )


def test_right_answers_score_one_and_shifted_ones_do_not(loaded):
    task = Mini()
    perfect = scored(task, loaded, [request.expected for request in loaded.requests])
    for row in task.aggregate(perfect, "model", {"all": ["en", "ja"]}, 0):
        assert row["failures"] == 0
        if row["metric"] == "accuracy":
            assert row["value"] == 1.0
    # A constant yes is right half the time, in every language.
    asked = [request for request in loaded.requests if request.subset.endswith("yesno")]
    yes = [
        one
        for one in scored(task, loaded, [r.about["yes"] or "" for r in loaded.requests])
        if one.request in asked
    ]
    found = {
        (row["metric"], row["language"]): row["value"]
        for row in task.aggregate(yes, "model", {}, 0)
        if row["subset"] == "seen/yesno" and row["metric"] in ("accuracy", "yes_rate", "false_yes")
    }
    assert found == {
        ("accuracy", "en"): 0.5,
        ("accuracy", "ja"): 0.5,
        ("yes_rate", "en"): 1.0,
        ("yes_rate", "ja"): 1.0,
        # The share of yes among the questions whose answer is no, which are half of all.
        ("false_yes", "en"): 1.0,
        ("false_yes", "ja"): 1.0,
    }


def test_concepts_that_a_policy_flags_and_those_of_cultures_are_scored_by_themselves():
    task = Mini()
    all_of_it = task.load(Selection(languages=["en"]))
    flagged = {
        row["concept"]
        for row in pq.read_table(DATA / "instruct" / "en" / "test-flagged.parquet").to_pylist()
    }
    # Right about flagged concepts only.
    answers = [r.expected if r.item in flagged else "?" for r in all_of_it.requests]
    rows = task.aggregate(scored(task, all_of_it, answers), "model", {"all": ["en"]}, 0)
    found = {
        row["metric"]: (row["value"], row["n"])
        for row in rows
        if (row["subset"], row["language"]) == ("seen/name", "all")
    }
    names = [r for r in all_of_it.requests if r.subset == "seen/name"]
    count = sum(r.item in flagged for r in names)
    assert found["flagged"] == (1.0, count)
    assert count > 30
    value, cultural = found["cultural"]
    assert value == 0.0
    assert cultural == sum("cultural" in r.about["kinds"] for r in names) > 10
    assert found["accuracy"][0] == pytest.approx(count / len(names))


@pytest.mark.parametrize(
    ("kind", "text", "accuracy", "unparsable"),
    [
        ("yesno", "", 0, True),
        ("yesno", "maybe", 0, True),
        ("yesno", "да", 0, True),
        ("yesno", "Yes.", 1, False),
        ("yesno", "no", 0, False),
        ("category", "a thing", 0, True),
        ("name", "a thing", 0, False),
        ("name", " ", 0, True),
    ],
)
def test_what_is_no_answer_is_wrong_and_told_apart(loaded, kind, text, accuracy, unparsable):
    request = next(
        request
        for request in loaded.requests
        if request.language == "en"
        and request.subset.endswith(kind)
        and request.expected in (request.about["yes"], request.expected)
        and (kind != "yesno" or request.expected == "yes")
    )
    score = Mini().score(request, Answer(text.strip(), 1, True))
    assert (score.values["accuracy"], score.unparsable) == (accuracy, unparsable)
    assert (score.parsed is None) == (not text.strip())


def test_shuffled_pictures_never_keep_the_concept_or_show_the_one_asked_about(loaded):
    other = shuffled(loaded.requests, seed=3)
    shown = {request.pictures[0]: request.item for request in loaded.requests}
    given: dict[str, set[str]] = {}
    for before, after in zip(loaded.requests, other, strict=True):
        assert (before.id, before.text) == (after.id, after.text)
        assert shown[after.pictures[0]] not in before.avoid
        given.setdefault(before.pictures[0], set()).add(after.pictures[0])
    # All questions about a picture get the same other picture, and every picture is used once.
    assert {len(pictures) for pictures in given.values()} == {1}
    assert set.union(*given.values()) == set(given)
    with pytest.raises(
        ValueError, match=r"pictures: expected enough for the shuffled run.*, found 1: use more"
    ):
        shuffled(loaded.requests[:1], seed=0)


def test_limit_takes_the_same_pictures_for_the_same_seed(loaded):
    def pictures(seed: int, language: str = "ja") -> set[str]:
        chosen = Selection(split="validation", languages=[language], limit=40, seed=seed)
        return {request.pictures[0] for request in Mini().load(chosen).requests}

    own = {request.pictures[0] for request in loaded.requests}
    assert pictures(0) == own != pictures(1)
    assert {request.subset.partition("/")[0] for request in loaded.requests} == {"seen", "held_out"}


def test_languages_of_the_recipe_are_averaged_apart(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "stages:\n- name: pretrain\n  data:\n  - languages: [en, zh]\n- name: finetune\n  data: []\n"
    )
    assert language_groups(str(tmp_path), ["en", "zh", "bn"]) == {
        "all": ["en", "zh", "bn"],
        "pretrained": ["en", "zh"],
        "transfer": ["bn"],
    }
    assert language_groups("some/repo", ["en"]) == {"all": ["en"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"limit": 0}, "limit: expected at least 1"),
        ({"split": "dev"}, "split: expected one of train, validation, test, found 'dev'"),
        ({"languages": ["en", "xx"]}, "languages: expected some of en, zh.* in 'test', found 'xx'"),
        ({"languages": []}, "languages: expected some of en, zh.*, found none"),
        ({"baselines": ["deaf"]}, "baselines: expected some of blind, shuffled, found 'deaf'"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"baseline_items": 0}, "baseline_items: expected at least 1"),
        ({"tasks": ["mimi"]}, "task: expected one of .*, found 'mimi'"),
    ],
)
def test_refuses_bad_arguments(folder, tmp_path, arguments, words):
    with pytest.raises(ValueError, match=words) as error:
        evaluate(str(folder), output=tmp_path / "out", **arguments)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_refuses_what_is_no_model(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, words in [
        (str(empty), "has no config.json"),
        (str(tmp_path / "nowhere"), "no model at"),
    ]:
        with pytest.raises(FileNotFoundError, match=words):
            evaluate(model, limit=1)
    (empty / "config.json").write_text('{"model_type": "maya"}')
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors weights"):
        evaluate(str(empty), limit=1)


def test_refuses_what_is_no_dataset(folder, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=r"nowhere|no dataset"):
        evaluate(str(folder), data=str(tmp_path / "nowhere"))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"config: expected one of .*, found 'instruct'"):
        evaluate(str(folder), data=str(tmp_path))


def test_results_are_never_half_written(tmp_path):
    path = tmp_path / "results.json"
    results = results_of({"model": "AABBxx"})
    write_results(results, path)
    assert read_results(path) == results
    # Each row has its own line, so that a diff of two files is readable.
    assert len(path.read_text().splitlines()) > len(results["rows"])
    with pytest.raises((TypeError, ValueError)):
        write_results({**results, "bad": object()}, path)
    assert read_results(path) == results
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not JSON"),
        ("[]", "found None: run `maya evaluate` again"),
        (
            '{"format": "maya-results-1"}',
            "expected the format 'maya-results-2', found 'maya-results-1': run `maya evaluate` again",
        ),
        ('{"format": "maya-results-2"}', "model: missing"),
    ],
)
def test_refuses_results_of_another_format(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        read_results(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="maya evaluate"):
        read_results(tmp_path / "none.json")


def test_refuses_rows_of_no_task(tmp_path):
    results = results_of({"model": "AABBxx"})
    results["rows"][3]["subset"] = "elsewhere"
    write_results(results, tmp_path / "results.json")
    with pytest.raises(
        ValueError,
        match=r"rows\[3\]: expected a task and subset of this file, found 'letters' and 'elsewhere'",
    ):
        read_results(tmp_path / "results.json")


def test_refuses_results_whose_metric_is_not_among_the_metrics(tmp_path):
    path = tmp_path / "results.json"
    results = results_of({"model": "AABBxx"})
    results["tasks"]["letters"]["metric"] = "."
    write_results(results, path)
    with pytest.raises(ValueError, match=r"tasks\.letters\.metric: expected one of .*, found '\.'"):
        read_results(path)


def test_a_question_has_an_id_of_its_own_in_each_language():
    requests = mini.Mini().load(Selection(limit=3)).requests
    assert len({request.id for request in requests}) == len(requests)
