"""`maya evaluate` on the real mini dataset with a tiny model, and what it refuses."""

import io
import json
import re

import pyarrow as pa
import pytest
from PIL import Image

from maya_vlm.training.evaluation import mini
from maya_vlm.training.evaluation.generation import Answer
from maya_vlm.training.evaluation.results import FORMAT, Results, read_results, write_json
from maya_vlm.training.evaluation.run import MINI, evaluate, language_groups, table
from tests.tiny_maya import save_tiny_maya

pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def results(folder) -> Results:
    return evaluate(
        str(folder), limit=6, baseline_images=4, languages=["en", "hi", "ur"], batch_size=32
    )


@pytest.fixture(scope="module")
def benchmark():
    return mini.load(str(MINI), "validation", languages=["en", "ja"], limit=40)


@pytest.mark.parametrize("side", [None, 15_000])
def test_pictures_that_are_none_are_told_in_one_line(monkeypatch, side):
    """PostScript is never run, and a picture is measured before it is decoded."""
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
        mini._pictures("x", "test", ["a.png"])
    assert "\n" not in str(error.value)


def test_writes_results_answers_and_sheet_beside_the_model(folder, results):
    import pyarrow.parquet

    assert read_results(folder / "results.json") == json.loads(json.dumps(results))
    assert results["data"]["images"] == 6
    assert results["data"]["questions"] == 6 * 3 * 4
    assert results["data"]["styles"] == ["twemoji"]
    assert set(results["runs"]) == {"model", "blind", "shuffled"}
    answers = pyarrow.parquet.read_table(folder / "answers.parquet").to_pylist()
    assert len(answers) == 6 * 3 * 4 + 2 * 4 * 3 * 4
    for task in mini.TASKS:
        for subset, scores in results["runs"]["model"][task].items():
            for lang, score in scores["languages"].items():
                rows = [
                    row
                    for row in answers
                    if (row["run"], row["task"], row["lang"]) == ("model", task, lang)
                    and row["seen"] == (subset == "seen")
                ]
                assert score["n"] == len(rows)
                assert score["correct"] == sum(row["right"] for row in rows)
    with Image.open(folder / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_results_name_no_path_and_no_host(folder, results):
    import socket

    text = (folder / "results.json").read_text(encoding="utf-8")
    assert str(folder) not in text
    assert str(MINI) not in text
    assert socket.gethostname() not in text
    assert results["model"]["name"] == "tiny"
    assert re.fullmatch(r"[0-9a-f]{64}", results["model"]["weights_sha256"])
    assert re.fullmatch(r"[0-9a-f]{64}", results["data"]["files_sha256"])


def test_table_has_every_language_and_baseline(results):
    lines = table(results).splitlines()
    for start in ("en ", "hi ", "ur ", "mean all"):
        assert any(line.startswith(start) for line in lines), start
    assert any("blind" in line and "shuffled" in line for line in lines)


def test_same_seed_same_numbers(folder, results, tmp_path):
    again = evaluate(
        str(folder),
        output=tmp_path,
        limit=6,
        baseline_images=4,
        languages=["en", "hi", "ur"],
        batch_size=5,
        sheet=False,
    )
    assert again["runs"] == results["runs"]
    assert not (tmp_path / "sheet.png").exists()


def test_right_answers_score_one_and_shifted_ones_do_not(benchmark):
    rows = benchmark.rows
    perfect = [Answer(row.expected, 1, True) for row in rows]
    scores = mini.scores(rows, perfect, {"all": ["en", "ja"]})
    for task in mini.TASKS:
        for subset in scores[task].values():
            assert {score["value"] for score in subset["languages"].values()} == {1.0}
    # Saying yes to everything is right half the time, whatever the language.
    yes = [Answer(benchmark.affirmative[row.lang], 1, True) for row in rows]
    counted = mini.scores(rows, yes, {})["yesno"]
    right = sum(s["correct"] for part in counted.values() for s in part["languages"].values())
    asked = sum(s["n"] for part in counted.values() for s in part["languages"].values())
    assert right * 2 == asked
    assert mini.yes_rate(benchmark, rows, yes) == {"en": 1.0, "ja": 1.0}


def test_failures_are_counted(benchmark):
    rows = [row for row in benchmark.rows if row.lang == "en" and row.task == "yesno"][:4]
    given = [
        Answer("", 0, True),
        Answer("maybe", 8, False),
        Answer("да", 1, True),
        Answer("Yes.", 1, True),
    ]
    assert mini.failures(benchmark, rows, given) == {
        "yesno": {"en": {"empty": 1, "unfinished": 1, "off_format": 3, "other_script": 1}}
    }


def test_shuffled_pictures_never_keep_the_concept_or_show_the_one_asked_about(benchmark):
    pairs = mini.derangement(benchmark, benchmark.images, seed=3)
    assert sorted(pairs) == sorted(pairs.values()) == benchmark.images
    concept = {row.image: row.concept for row in benchmark.rows}
    for row in benchmark.rows:
        assert concept[pairs[row.image]] not in (row.concept, row.about)
    with pytest.raises(ValueError, match="1 pictures cannot be shuffled"):
        mini.derangement(benchmark, benchmark.images[:1], seed=0)


def test_limit_takes_the_same_pictures_for_the_same_seed(benchmark):
    again = mini.load(str(MINI), "validation", languages=["ja"], limit=40)
    other = mini.load(str(MINI), "validation", languages=["ja"], limit=40, seed=1)
    assert again.images == benchmark.images != other.images
    assert {row.seen for row in again.rows} == {True, False}


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
        ({"limit": 0}, "limit must be at least 1"),
        ({"split": "dev"}, "no split 'dev'; it has train, validation, test"),
        ({"languages": ["en", "xx"]}, "unknown language 'xx'; 'test' has en, zh"),
        ({"languages": []}, "no language asked for"),
        ({"baselines": ["deaf"]}, "unknown baseline 'deaf'; known: blind, shuffled"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"baseline_images": 0}, "baseline_images must be at least 1"),
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
    with pytest.raises(ValueError, match="no config 'instruct'"):
        evaluate(str(folder), data=str(tmp_path))


def test_results_are_never_half_written(tmp_path):
    path = tmp_path / "results.json"
    write_json({"format": FORMAT}, path)
    with pytest.raises((TypeError, ValueError)):
        write_json({"format": FORMAT, "bad": object()}, path)
    assert json.loads(path.read_text()) == {"format": FORMAT}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[]", "has format None"), ('{"format": "x"}', "'x'")],
)
def test_refuses_results_of_another_format(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_results(path)
    with pytest.raises(FileNotFoundError, match="maya evaluate"):
        read_results(tmp_path / "none.json")
