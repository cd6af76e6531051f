"""Every command line of the README and the pages is one that its program understands."""

import argparse
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator

import pytest

from maya_vlm.training.cli import build_parser
from tests.docs.blocks import PAGES, ROOT, blocks, inline

sys.path.insert(0, str(ROOT / "docs"))
import reference

COMMANDS = reference.commands()
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")
EXTRAS = re.findall(r'^        "(\w+)": ', SETUP.split("extras_require=")[1], re.M)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MARKERS = [line.split(":")[0] for line in PYPROJECT["tool"]["pytest"]["ini_options"]["markers"]]
# First words of a command -> why nothing here can parse it.
NOT_PARSED = {
    "vllm serve": "vLLM is not installed with the tests; tests/compatibility/vllm_on_cpu.py runs it",
    "llama-mtmd-cli": "llama.cpp is not installed with the tests; tests/compatibility/llama_cpp_on_cpu.py runs it",
    "python -m sglang.launch_server": "SGLang needs a GPU",
    "ruff": ".ci/run runs it",
    "mypy": ".ci/run runs it",
    "hf auth login": "asks for a token",
    "python -m lmms_eval": "tests/evaluation/test_lmms_eval.py runs it, in an environment of its own",
}
# Options in the text that belong to other programs.
OTHER_OPTIONS = {
    "--enable-lora", "--lora-modules", "--allowed-media-domains", "--model-impl",  # vLLM
    "--disable-radix-cache", "--chunked-prefill-size",  # SGLang
    "--size",  # tests/benchmarks/answering_speed.py
    "--tune_mm_mlp_adapter", "--mm_projector_type", "--mm_vision_select_layer", "--lora_enable",  # LLaVA
    "--image_aspect_ratio", "--group_by_modality_length", "--model_max_length",
}  # fmt: skip
# Packages that the pages install beside this one; each is named with a reason on its page.
PACKAGES = {"torchao", "gradio", "deepspeed", "lmms-eval", "filelock"}


def lines() -> Iterator[tuple[str, str]]:
    """Yield (page, command) of every command in a block of shell, and of every inline one."""
    for page, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for command in line.split(" && "):
                yield page, command.strip()
    for page, code in inline():
        if re.match(r"(\.venv/bin/)?(maya|pip|pytest|python|sphinx-build|vllm|hf) \S", code):
            yield page, code


LINES = [(page, command) for page, command in lines() if not command.startswith("#")]


def words_of(command: str) -> list[str]:
    """Return the words of a command without the environment's folder and variables."""
    words = shlex.split(command)
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def parser_of(words: list[str]) -> tuple[argparse.ArgumentParser | None, list[str]]:
    """Return the subcommand's parser, and the words after its name."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS:
            return COMMANDS[" ".join(words[:count])], words[count:]
    return None, words


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


@pytest.mark.parametrize(("page", "command"), LINES, ids=[f"{p}: {c[:60]}" for p, c in LINES])
def test_a_command_is_understood(page, command, capsys):
    program, *words = words_of(command)
    if " ".join([program, *words[:2]]).startswith(tuple(NOT_PARSED)):
        return
    if program == "maya":
        check_maya(words, capsys)
    elif program == "pip":
        check_pip(words)
    elif program == "pytest":
        check_pytest(words)
    elif program.startswith("python"):
        check_python(words)
    else:
        assert program == "sphinx-build", f"{command}: of what program is this?"
        assert (ROOT / words[-2]).is_dir()


def check_maya(words, capsys):
    parser, rest = parser_of(words)
    if parser is None:
        assert words[0] in ("--traceback", "--help", "--version"), words
        return
    named = [word.split("=")[0] for word in rest if word.startswith("--")]
    assert set(named) <= options(parser), "no such option, or a shortened one"
    if rest:
        try:
            build_parser().parse_args(words)
        except SystemExit:
            pytest.fail(capsys.readouterr().err)


def check_pip(words):
    assert words[0] == "install"
    rest = words[1:]
    while rest:
        word = rest.pop(0)
        if word == "-c":
            assert (ROOT / rest.pop(0)).is_file()
        elif word == "-e":
            continue
        elif found := re.fullmatch(r"\.(?:\[([\w,]+)\])?", word):
            assert set(found[1].split(",") if found[1] else ()) <= set(EXTRAS), word
        else:
            assert re.split("[=<>]", word)[0] in PACKAGES, word


def check_pytest(words):
    while words:
        word = words.pop(0)
        if word == "-m":
            assert words.pop(0) in MARKERS
        elif word == "-n":
            assert words.pop(0) == "auto"
        else:
            assert (ROOT / word).exists(), word


def check_python(words):
    if words[:2] == ["-m", "venv"]:
        return
    text = (ROOT / words[0]).read_text(encoding="utf-8")
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in text, f"{words[0]} has no option {word}"


def test_options_in_the_text_exist():
    """An inline `--option` is one of some command of `maya`, or listed as another program's."""
    known = {name for parser in COMMANDS.values() for name in options(parser)}
    found = {
        word.split("=")[0]
        for _, code in inline()
        if code.startswith("--")
        for word in code.split()
        if word.startswith("--")
    }
    assert len(found) > 20
    assert found <= known | OTHER_OPTIONS
    assert found - known >= OTHER_OPTIONS, "stale"


def test_what_is_wrong_is_found_out(capsys):
    for words in (["train", "mini", "--estim"], ["merg", "A", "B"], ["train", "mini", "mini"]):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check_maya(words, capsys)
    with pytest.raises(AssertionError):
        check_pip(["install", ".[trian]"])


def test_the_lists_are_not_stale():
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    commands = [" ".join(words_of(command)) for _, command in LINES]
    for start in NOT_PARSED:
        assert any(command.startswith(start) for command in commands), start
    for name in PACKAGES:
        assert re.search(rf"pip install [^\n`]*{name}", text), name


def test_what_vllm_is_told_is_json():
    (command,) = [command for _, command in LINES if "--limit-mm-per-prompt" in command]
    words = words_of(command)
    assert json.loads(words[words.index("--limit-mm-per-prompt") + 1]) == {"image": 3}
