"""The errors that docs/troubleshooting.md quotes are those that this package and its libraries raise."""

import ast
import functools
import json
import re
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SEEN = re.findall(r"^\| (.+?) \| .+ \|$", PAGE, re.M)[2:]
QUOTES = [quote for cell in SEEN for quote in re.findall(r"`([^`]+)`", cell) if " " in quote]
# What the page shows for a field of a message: a number, a text, or a value that a user meets.
FIELD = re.compile(r"\bN\b|\.\.\.|\bnan\b|\bmissing keys\b|\bunexpected keys\b|\bconfig\.json\b")
RESULTS = ROOT / "tests" / "benchmarks" / "results"
# Quote -> a file that has it in its words.
OF_LIBRARIES = {
    "The repository ... contains custom code": Path(transformers.__file__).parent
    / "dynamic_module_utils.py",
    "shape '[160, 2]' is invalid": RESULTS / "quantised.json",
}
# Quote -> why it is in no file here.
NOT_HERE = {
    "Unsupported CPU attention configuration: head_dim=40": "vLLM is not installed with the tests",
}


def messages(text: str) -> set[str]:
    """Return the strings of a Python file, with a NUL character for each field of an f-string."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            found.add("".join(parts))
    return found


@functools.cache
def own_messages() -> str:
    folders = ("modeling_maya", "processing_maya", "training", "model_card")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(text for path in files for text in messages(path.read_text("utf-8")))


def occurs(quote: str, text: str) -> bool:
    """Return whether a text with NULs for fields has the quote; a quote's field may also be its value."""
    pattern, end = "", 0
    for field in FIELD.finditer(quote):
        pattern += re.escape(quote[end : field.start()]) + rf"(?:\0|{re.escape(field[0])})"
        end = field.end()
    return re.search(pattern + re.escape(quote[end:]), text) is not None


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_error_is_raised_somewhere(quote):
    if quote in NOT_HERE:
        return
    file = OF_LIBRARIES.get(quote)
    if file is None:
        assert occurs(quote, own_messages())
    elif file.suffix == ".json":
        assert occurs(quote, json.dumps(json.loads(file.read_text("utf-8"))))
    else:
        assert occurs(quote, "\n".join(messages(file.read_text("utf-8"))))


def test_the_lists_are_not_stale():
    assert {*OF_LIBRARIES, *NOT_HERE} <= set(QUOTES)
    assert len(QUOTES) > 12


def test_an_error_that_nothing_raises_is_found_out():
    source = 'raise ValueError(f"{name}: expected at most {n} tokens, " f"found {len(ids)}")'
    text = "\n".join(messages(source))
    assert occurs("expected at most N tokens, found ...", text)
    assert not occurs("expected at most N words", text)
    assert not occurs("expected at least N tokens", text)
