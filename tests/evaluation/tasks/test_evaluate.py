"""`maya evaluate` on small copies of the public datasets: from rows to tables and cards."""

from importlib import import_module

import pytest

from maya_vlm.model_card.cards.scores import model_index, sections, weaknesses
from maya_vlm.training.evaluation.results import read_results
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.table import text_table
from maya_vlm.training.evaluation.tasks import TASKS, task
from tests.helpers.tiny_maya import save_tiny_maya

from . import test_mme, test_pope
from .public_rows import write_dataset

# Of benchmarks whose small copy has not all languages.
LANGUAGES = {"xm3600": ["en", "zh"], "mmbench": ["en"], "xmmmu": ["en"], "m3exam": ["en"]}


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
    module = import_module(f".test_{name}", __package__)
    made = module.write(folder)
    return made if isinstance(made, str) else made.data


@pytest.mark.parametrize("name", sorted(set(TASKS) - {"mini", "safety"}))
def test_every_benchmark_runs_to_its_table_and_its_card(name, model, tmp_path):
    data, output = write(name, tmp_path / "data"), tmp_path / "out"
    languages = LANGUAGES.get(name)
    results = evaluate(
        str(model), [name], data=data, output=output, sheet=False, languages=languages
    )
    assert read_results(output / "results.json") == results
    info = results["tasks"][name]
    assert info["data"]["name"] == "data"
    assert info["asked"]["max_new_tokens"] == info["settings"]["max_new_tokens"][0]
    runs = {row["run"] for row in results["rows"] if row["metric"] == info["metric"]}
    assert {"model", "blind", "shuffled"} <= runs
    table = text_table(results, name)
    for language in info["languages"]:
        assert any(line.startswith(f"{language} ") for line in table.splitlines())
    assert info["metrics"][info["metric"]]["title"] in table
    assert sections(results)[0]["tables"]
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
