"""`maya evaluate` on small copies of the public datasets: from rows to tables and cards."""

import contextlib
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

from . import test_duels, test_mme, test_pope
from .public_rows import write_dataset

# Of benchmarks whose small copy has not all languages.
LANGUAGES = {"xm3600": ["en", "zh"], "mmbench": ["en"], "xmmmu": ["en"], "m3exam": ["en"]}
LANGUAGES |= {"llava_bench": ["en", "ja"], **{name: ["en", "hi"] for name in test_duels.TASKS}}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


def write(name, folder):
    """A small copy of a benchmark's dataset."""
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


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"mini"}))
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
    # All tasks write into one folder.
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


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_protocol_says_how_it_asks(name):
    for protocol, source in TASKS[name].protocols.items():
        made = task(f"{name}:{protocol}")
        assert made.protocol == protocol
        assert source
        assert made.metric in made.metrics
        assert set(made.describe()) >= ({"prompt"} if name != "mini" else set())
    with pytest.raises(ValueError, match=f"{name}: unknown protocol 'x'; known: "):
        task(f"{name}:x")
