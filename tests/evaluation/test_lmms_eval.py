"""lmms-eval runs a Maya through our adapter. Without lmms-eval, the tests simulate its interface."""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from maya_vlm.training.evaluation.protocol import Selection
from maya_vlm.training.evaluation.run import evaluate
from maya_vlm.training.evaluation.tasks.mtvqa import MtVqa
from maya_vlm.training.evaluation.tasks.textvqa import TextVqa
from maya_vlm.training.inference.generation import Question, answer
from maya_vlm.training.inference.load import load
from tests.evaluation.tasks import test_mtvqa, test_textvqa
from tests.evaluation.tasks.public_rows import write_dataset
from tests.helpers.tiny_maya import save_tiny_maya, tiny_picture

ADAPTER = "maya_vlm.training.evaluation.lmms_eval_maya"
INSTALLED = importlib.util.find_spec("lmms_eval") is not None
GREEDY = {"max_new_tokens": 6, "temperature": 0, "do_sample": False, "until": ["\n\n"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_maya(tmp_path_factory.mktemp("model") / "tiny")


def play_lmms_eval(monkeypatch) -> None:
    """Define the names of lmms-eval 0.7.3 that the adapter imports."""

    class Lmms:
        is_simple = True

        def __init__(self):
            self._rank, self.task_dict = 0, {}

        @property
        def rank(self):
            return self._rank

    counts = dataclasses.make_dataclass("TokenCounts", ["input_tokens", "output_tokens"])
    result = dataclasses.make_dataclass("GenerationResult", ["text", "token_counts"])
    manifest = dataclasses.make_dataclass(
        "ModelManifest",
        ["model_id", ("simple_class_path", Any, None), ("chat_class_path", Any, None)],
    )
    for name, held in {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.models": {},
        "lmms_eval.api.instance": {"GenerationResult": result, "TokenCounts": counts},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models.registry_v2": {"ModelManifest": manifest},
    }.items():
        module = types.ModuleType(name)
        module.__dict__.update(held)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, ADAPTER, raising=False)


@pytest.fixture
def adapter(monkeypatch):
    if not INSTALLED:
        play_lmms_eval(monkeypatch)
    yield importlib.import_module(ADAPTER)
    if not INSTALLED:
        sys.modules.pop(ADAPTER, None)


@pytest.fixture
def model(adapter, folder):
    made = adapter.Maya(pretrained=str(folder), batch_size="2", device="cpu", max_batch_size=None)
    documents = [
        {"picture": tiny_picture(1), "text": "What is this?"},
        {"picture": tiny_picture(2), "text": "What colour?"},
        {"picture": tiny_picture(1), "text": "How many are there?"},
        {"picture": None, "text": "What is two and two?"},
    ]
    made.task_dict = {"t": {"test": documents}}
    return made


def messages(doc):
    """Return the messages that lmms-eval builds for a task without its own."""
    shown = [{"type": "image", "url": doc["picture"]}] if doc["picture"] else []
    return [{"role": "user", "content": [*shown, {"type": "text", "text": doc["text"]}]}]


def request(doc, make=messages, **options):
    return SimpleNamespace(args=("unused", make, GREEDY | options, doc, "t", "test"))


def test_the_entry_point_names_a_chat_model(adapter):
    manifest = adapter.manifest()
    assert manifest.model_id == "maya"
    module, _, name = manifest.chat_class_path.rpartition(".")
    assert module == ADAPTER
    assert getattr(adapter, name).is_simple is False
    found = importlib.metadata.entry_points(group="lmms_eval.models")
    ours = {point.value for point in found if point.name == "maya"}
    assert ours in (set(), {f"{ADAPTER}:manifest"})
    assert f"maya = {ADAPTER}:manifest" in (
        Path(__file__).parents[2].joinpath("setup.py").read_text(encoding="utf-8")
    )


def test_answers_are_those_of_generation_in_the_order_of_the_requests(model, folder):
    documents = model.task_dict["t"]["test"]
    order = [2, 3, 0, 1]
    found = model.generate_until([request(doc, max_new_tokens=6 + doc) for doc in order])
    network, processor = load(str(folder))
    for doc, result in zip(order, found, strict=True):
        picture = documents[doc]["picture"]
        question = Question(((0,) if picture else ()) + (documents[doc]["text"],), 6 + doc)
        (alone,) = answer(network, processor, [picture] if picture else [], [question])
        assert result.text == alone.text
        assert result.token_counts.output_tokens == alone.tokens


def test_several_pictures_and_a_system_turn_are_asked_in_their_order(model, folder):
    one, two = tiny_picture(1), tiny_picture(2)

    def make(doc):
        parts = [
            {"type": "text", "text": "Left:"},
            {"type": "image", "url": one},
            {"type": "text", "text": "Right:"},
            {"type": "image", "url": two},
        ]
        system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
        return [system, {"role": "user", "content": parts}]

    (found,) = model.generate_until([request(0, make)])
    network, processor = load(str(folder))
    question = Question(("Left:", 0, "Right:", 1), 6, "Be brief.")
    (alone,) = answer(network, processor, [one, two], [question])
    assert found.text == alone.text


def test_equal_pictures_are_read_once(model, monkeypatch):
    encoded = []
    vision = type(model.asking.processor.image_processor)
    plain = vision.__call__

    def counting(self, images, **options):
        encoded.append(len(images) if isinstance(images, list) else 1)
        return plain(self, images, **options)

    monkeypatch.setattr(vision, "__call__", counting)
    model.generate_until([request(doc) for doc in (0, 1, 2)])
    assert sum(encoded) == 2


def test_a_tasks_stop_text_ends_an_answer_but_the_harnesss_own_does_not(model):
    (whole,) = model.generate_until([request(0, max_new_tokens=20)])
    middle = whole.text[len(whole.text) // 2 :][:2]
    (cut,) = model.generate_until([request(0, max_new_tokens=20, until=["ASSISTANT:", middle])])
    assert cut.text == whole.text[: whole.text.index(middle)]
    (one,) = model.generate_until([request(0, max_new_tokens=20, until=middle)])
    assert one.text == cut.text
    asked = model.request(0, request(0), _Named())
    assert asked.stop == ()
    assert asked.max_new_tokens == 6
    assert model.request(0, request(0, max_new_tokens=None), _Named()).max_new_tokens == 128


class _Named:
    """The pictures of one question."""

    def messages(self, number):
        return [{"role": "user", "content": [{"type": "text", "text": "?"}]}]


@pytest.mark.parametrize(
    ("content", "roles", "told"),
    [
        ([{"type": "video", "url": "a.mp4"}], ["user"], "expected texts and images, found 'video'"),
        ([{"type": "text", "text": "?"}], ["user", "assistant", "user"], "expected one user turn"),
    ],
)
def test_what_cannot_be_asked_is_named(model, content, roles, told):
    def make(doc):
        return [{"role": role, "content": content} for role in roles]

    with pytest.raises(ValueError, match=f"^lmms-eval task 't', document 1: {told}"):
        model.generate_until([request(0), request(1, make)])


def test_bad_arguments_are_told(adapter, folder):
    with pytest.raises(
        ValueError, match="batch_size: expected a number of at least 1, found 'auto'"
    ):
        adapter.Maya(pretrained=str(folder), batch_size="auto")
    with pytest.raises(FileNotFoundError):
        adapter.Maya(pretrained=str(folder / "nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="lmms-eval is not installed")
def test_lmms_evals_scores_are_ours(folder, tmp_path):
    """Two of lmms-eval's tasks on local files, run by its command, score as our tasks of the same protocol."""
    cases = {
        "textvqa": (TextVqa, "textvqa/textvqa_val.yaml", "exact_match", test_textvqa, "validation"),
        "mtvqa": (MtVqa, "mtvqa/mtvqa.yaml", "mtvqa_score", test_mtvqa, "test"),
    }
    tasks = Path(importlib.util.find_spec("lmms_eval").origin).parent / "tasks"
    config, ours = tmp_path / "tasks", {}
    config.mkdir()
    for name, (task, yaml, _, module, split) in cases.items():
        data = tmp_path / name
        # The right answers of the first rows are the model's answers, so that not all scores are 0.
        module.write(data)
        loaded = task("lmms_eval").load(Selection(data=str(data)))
        network, processor = load(str(folder))
        first = loaded.requests[0]
        (said,) = answer(
            network,
            processor,
            [loaded.pictures.load(first.pictures[0])],
            [Question((0, first.text), first.max_new_tokens)],
        )
        rows = [dict(row) for row in module.ROWS]
        if name == "textvqa":
            rows[0]["answers"] = [said.text] * 3 + ["something else"] * 7
        else:
            rows[0] = module.row(0, "DE", ("Was kostet es?", said.text), ("Was ist's?", "Brot"))
        write_dataset(data, module.FEATURES, {("default", split): rows})
        results = evaluate(
            str(folder),
            tasks=[f"{name}:lmms_eval"],
            data=str(data),
            output=tmp_path / f"ours-{name}",
            baselines=(),
            sheet=False,
        )
        ours[name] = {
            row["language"]: (row["value"], row["n"])
            for row in results["rows"]
            if (row["metric"], row["run"], row["subset"]) == ("accuracy", "model", "all")
        }
        (config / f"{name}.yaml").write_text(
            f"include: {tasks / yaml}\ntask: {name}_local\ndataset_path: parquet\n"
            f"dataset_name: null\ntest_split: {split}\n"
            f"dataset_kwargs: {{data_files: {{{split}: '{next(data.rglob('*.parquet'))}'}}}}\n"
        )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lmms_eval", "--model", "maya", "--batch_size", "2"),
            *("--model_args", f"pretrained={folder}", "--device", "cpu", "--log_samples"),
            *("--tasks", ",".join(f"{name}_local" for name in cases)),
            *("--include_path", str(config), "--output_path", str(tmp_path / "theirs")),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "theirs").rglob("*_results.json")
    theirs = json.loads(file.read_text())["results"]
    for name, (_, _, metric, _, _) in cases.items():
        value, n = ours[name]["all"] if name == "textvqa" else _over_questions(ours[name])
        assert 0 < value < 1
        scale = 100 if name == "mtvqa" else 1
        assert theirs[f"{name}_local"][f"{metric},none"] == pytest.approx(scale * value)
        (samples,) = (tmp_path / "theirs").rglob(f"*_samples_{name}_local.jsonl")
        said = [json.loads(line)["filtered_resps"] for line in samples.open()]
        assert len(said) == n
        (answers,) = (tmp_path / f"ours-{name}" / "answers").glob("*.parquet")
        assert said == pq.read_table(answers)["answer"].to_pylist()


def _over_questions(rows):
    """Return the mean over questions, which lmms-eval uses where the benchmark uses the mean over languages."""
    own = [pair for language, pair in rows.items() if language != "all"]
    n = sum(n for _, n in own)
    return sum(value * n for value, n in own) / n, n
