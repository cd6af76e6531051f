"""Command line: fast help, one line for each error, exit code 2."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from maya_vlm.training import cli


def output_of_light(code: str) -> str:
    """Return what `code` prints in a separate process; fail if the process imported a heavy package."""
    code += (
        "\nimport sys\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_help_imports_nothing_heavy():
    output = output_of_light(
        "import maya_vlm.training.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass"
    )
    for command in ("train", "data", "evaluate", "chat", "convert", "publish"):
        assert command in output


COMMANDS = [*cli.COMMANDS.items(), *((f"data {k}", v) for k, v in cli.data.COMMANDS.items())]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_help_ends_with_examples_that_parse(name, command, capsys):
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    examples = capsys.readouterr().out.split("examples:\n")[1].rstrip().split("\n")
    assert len(examples) == 3
    for line in examples:
        words = shlex.split(line)
        words = words[words.index("maya") + 1 :]
        end = min(words.index(w) if w in words else len(words) for w in ("|", ">"))
        assert cli.build_parser().parse_args(words[:end]).call == command.run


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"kind": "horse"},
            "kind: expected 'maya', 'vision_tower', 'contrastive', 'language_model' or 'dpo', found",
        ),
        ({"kind": "vision_tower", "stepz": 3}, "stepz"),
    ],
)
def test_recipes_of_bases_are_dispatched(values, message, tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(values))
    assert cli.main(["train", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_what_starts_a_training_imports_nothing_heavy():
    output_of_light("import maya_vlm.training.run.train")


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "no-such-recipe.yaml"],
        ["evaluate", "no-such-folder"],
        ["chat", "no-such-image.png", "what?", "--model", "no-such-folder"],
        ["convert", "no-such-folder", "out"],
        ["publish", "no-such-folder", "user/name"],
    ],
)
def test_bad_input_is_one_line(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"maya {argv[0]}: error: ")
    assert argv[1] in error or argv[-1] in error
    assert not list(tmp_path.iterdir()), "bad input must leave nothing behind"


def test_a_file_whose_name_is_not_text_is_named_in_escapes(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.json"
    row = {"id": "1", "image": "1.jpg", "conversations": []}
    with open(path, "w") as file:
        json.dump([row], file)
    command = [sys.executable, "-m", "maya_vlm.training.cli", "data", "validate", path]
    run = subprocess.run(command, capture_output=True, check=False)
    said = (run.stdout + run.stderr).decode("ascii")
    assert run.returncode == 1
    assert r"\udcff.json[0] (id '1')" in said
    assert "Traceback" not in said


def test_missing_package_names_the_extra(capsys, monkeypatch):
    def call(args):
        raise ModuleNotFoundError("No module named 'trl'", name="trl")

    monkeypatch.setattr(cli.train, "run", call)
    assert cli.main(["train", "mini"]) == 2
    assert "[train]" in capsys.readouterr().err


def test_traceback_is_shown_when_asked():
    with pytest.raises((ValueError, OSError)):
        cli.main(["--traceback", "train", "no-such-recipe.yaml"])
