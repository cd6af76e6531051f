"""Test plans that name code: loading a plan runs none of it, and building requires permission."""

import sys

import pytest
import yaml

from maya_vlm.training.cli import main
from maya_vlm.training.data.engine.executors import ExecutorPlan

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
def judge(texts):
    return [0.0 for _ in texts]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes a changed plan; the `named_code.py` next to it records its runs."""
    (tmp_path / "named_code.py").write_text(CODE)
    (tmp_path / "program.sh").write_text("#!/bin/sh\ntouch ran\n")
    (tmp_path / "program.sh").chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "named_code", raising=False)
    rows = '[{"id": "1", "conversations": [{"from": "human", "value": "Hello?"}, {"from": "gpt", "value": "Good day."}]}]'
    (tmp_path / "rows.json").write_text(rows)

    def write(**changes):
        plan = {
            "name": "tiny",
            "output_dir": str(tmp_path / "build"),
            "source": {"kind": "llava", "path": str(tmp_path / "rows.json"), "language": "en"},
        }
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan | changes))
        return tmp_path / "plan.yaml"

    return write


def judged(function):
    judge = {"kind": "function", "name": "words", "stage": "text", "languages": ["en"]}
    return {"toxicity": {"judges": [{**judge, "function": function}]}}


def translated(tmp_path):
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "x"}
    return {
        "languages": ["fr"],
        "translator": {"endpoint": endpoint},
        "verification": {"quality": {"model": "x", "command": [str(tmp_path / "program.sh")]}},
    }


def test_reading_a_plan_runs_nothing_and_building_asks(write, tmp_path, capsys):
    plan = write(**judged("named_code:judge"))
    assert main(["data", "validate", str(plan)]) == 0
    assert main(["data", "build", str(plan)]) == 2
    told = capsys.readouterr().err
    assert f"{plan}: toxicity.judges[0].function: expected a plan that runs no code" in told
    assert "--allow-code" in told
    assert not (tmp_path / "build").exists()
    assert not (tmp_path / "ran").exists()
    assert main(["data", "build", str(plan), "--allow-code"]) == 0
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    del sys.modules["named_code"]
    for command in ("status", "policy", "review"):
        main(["data", command, str(tmp_path / "build")])
    assert main(["data", "validate", str(plan)]) == 0
    assert not (tmp_path / "ran").exists()


def test_a_program_and_slurms_shell_are_code(write, tmp_path, capsys):
    assert main(["data", "build", str(write(**translated(tmp_path)))]) == 2
    assert "verification.quality.command: expected a plan that runs no" in capsys.readouterr().err
    slurm = {"partition": "x", "time": "1:00:00", "env_command": "touch ran"}
    plan = write(executor={"kind": "slurm", "options": slurm})
    assert main(["data", "build", str(plan)]) == 2
    assert "executor.options.env_command: expected a plan" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    ordinary = {"partition": "gpu,long", "time": "1-00:00:00", "mem_per_cpu_gb": 2}
    assert ExecutorPlan("slurm", options=ordinary).shell() == {}
    assert ExecutorPlan("slurm", options={"partition": "x\nrm y", "time": "1"}).shell()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "a/b"}, "name: expected a name without slashes"),
        ({"name": "a\x1b[2J"}, "name: expected a name without slashes"),
        ({"languages": ["fr", "\x1b[2J"]}, "languages[1]: expected a language's BCP-47 code"),
        ({"translator__languages": ["en", "\x1b[2J"]}, "translator: languages: expected a lang"),
        ({"translator__retry_parameters": {"temprature": 1}}, "did you mean 'temperature'?"),
        ({"translator__parameters": {"messages": []}}, "parameters: expected a parameter of chat"),
        ({"translator__parameters": {"temperature": float("nan")}}, "expected a finite number"),
    ],
)
def test_values_that_make_no_sense_are_refused(write, tmp_path, capsys, changes, told):
    plan = translated(tmp_path)
    del plan["verification"]
    for key, value in changes.items():
        *parents, last = key.split("__")
        (plan[parents[0]] if parents else plan)[last] = value
    assert main(["data", "build", str(write(**plan))]) == 2
    error = capsys.readouterr().err.removesuffix("\n")
    assert told in error
    assert error.isprintable()
