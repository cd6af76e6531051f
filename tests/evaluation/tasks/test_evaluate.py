"""`maya evaluate` on small copies of the public datasets, from rows to tables and cards."""

import contextlib
import json
from dataclasses import replace
from importlib import import_module

import pytest

from maya_vlm.model_card.cards.scores import model_index, sections, weaknesses
from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.results import read_results
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.table import text_table
from maya_vlm.training.evaluation.tasks import TASKS, task
from maya_vlm.training.evaluation.tasks.judged import Judged
from tests.evaluation.judges.judge_server import plan, server
from tests.helpers.tiny_maya import save_tiny_maya

from . import test_duels, test_mme, test_pope, test_vqav2
from .public_rows import write_dataset

# The languages of small copies that lack some of the benchmark's languages.
LANGUAGES = {"xm3600": ["en", "zh"], "mmbench": ["en"], "xmmmu": ["en"], "m3exam": ["en"]}
LANGUAGES |= {"llava_bench": ["en", "ja"], **{name: ["en", "hi"] for name in test_duels.TASKS}}
# Benchmarks with an export for a server or a script.
EXPORTED = {"pope", "mme", "gqa", "vqav2", "textvqa", "vizwiz", "mmbench", "cvqa"}
EXPORTED |= {"mm_vet", "xm3600"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


def write(name, folder):
    """Write a small copy of a benchmark's dataset."""
    if name == "pope":
        splits = {("Full", each): test_pope.rows(each) for each in test_pope.SETS}
        return str(write_dataset(folder, test_pope.FEATURES, splits))
    if name == "mme":
        rows = test_mme.rows(("count", "OCR", "code_reasoning"))
        return str(write_dataset(folder, test_mme.FEATURES, {("default", "test"): rows}))
    if name in test_duels.TASKS:
        return test_duels.write(folder, name).data
    module = import_module(f".test_{name}", __package__)
    made = module.write(folder)
    return made if isinstance(made, str) else made.data


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"mini", "safety"}))
def test_every_benchmark_runs_to_its_table_and_its_card(name, model, tmp_path):
    data, output = write(name, tmp_path / "data"), tmp_path / "out"
    languages = LANGUAGES.get(name)
    with contextlib.ExitStack() as stack:
        options = {}
        if issubclass(TASKS[name], Judged):
            options["judge"] = plan(stack.enter_context(server()))
        if name in test_duels.TASKS:
            loaded = TASKS[name]().load(Selection(data, languages=languages))
            path = test_duels.against(tmp_path, loaded)
            options["judge"] = replace(options["judge"], against=path)
        results = evaluate(
            str(model),
            [name],
            data=data,
            output=output,
            sheet=False,
            languages=languages,
            **options,
        )
    if options:
        judge = results["tasks"][name]["judge"]
        assert (judge["id"], judge["served"], judge["withheld"]) == ("judge-1", ["judge-1"], [])
    assert read_results(output / "results.json") == results
    info = results["tasks"][name]
    assert info["data"]["name"] == "data"
    assert info["asked"]["max_new_tokens"] == info["settings"]["max_new_tokens"][0]
    runs = {row["run"] for row in results["rows"] if row["metric"] == info["metric"]}
    assert {"model", "blind", "shuffled"} <= runs
    assert set(info["languages"]) <= set(TASKS[name].languages)
    # All tasks write into the same folder.
    written = [path.name for path in (output / "answers").iterdir() if path.name != "journal"]
    assert all(each.startswith(name) for each in written)
    table = text_table(results, name)
    for language in info["languages"]:
        assert any(line.startswith(f"{language} ") for line in table.splitlines())
    assert info["metrics"][info["metric"]]["title"] in table
    assert sections(results)[0]["tables"]
    assert ("The judge is" in sections(results)[0]["intro"]) == bool(options)
    assert weaknesses(results)
    assert model_index(results, "x")[0]["results"]
    written = {path.name for path in (output / "answers").iterdir()} - {"journal"}
    written -= {f"{name}.pictures.parquet"}
    assert all(path == name or path.startswith(f"{name}.") for path in written)
    assert (len(written) > 1) == (name in EXPORTED)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_protocol_says_how_it_asks(name):
    for protocol, source in TASKS[name].protocols.items():
        made = task(f"{name}:{protocol}")
        assert made.protocol == protocol
        assert source
        assert made.metric in made.metrics
        assert set(made.describe()) >= ({"prompt"} if name != "mini" else set())
    with pytest.raises(ValueError, match=f"{name}: protocol: expected one of .*, found 'x'"):
        task(f"{name}:x")


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_benchmark_says_what_was_seen_in_training(name):
    assert TASKS[name].contamination.endswith(".")


def test_a_split_without_answers_is_written_for_its_server_and_has_no_score(model, tmp_path):
    rows = [test_vqav2.row(number, None, []) | {"answers": None} for number in range(3)]
    data, output = test_vqav2.write(tmp_path / "data", rows, "testdev").data, tmp_path / "out"
    results = evaluate(str(model), ["vqav2"], data=data, output=output, split="testdev")
    assert read_results(output / "results.json") == results
    scores = [row for row in results["rows"] if row["metric"] == "accuracy"]
    assert scores == []
    assert {row["metric"] for row in results["rows"]} >= {"unparsable", "tokens"}
    assert "seconds: " in text_table(results, "vqav2")
    # A card can still be made from the results.
    assert sections(results) is not None
    assert model_index(results, "x") is not None
    assert weaknesses(results) is not None
    assert len(json.loads((output / "answers" / "vqav2.json").read_text())) == 3
