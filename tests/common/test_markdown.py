"""Untrusted names in Markdown."""

import json

import pytest

from maya_vlm.training.common.markdown import Markdown, code, escaped, literal, prose

HOSTILE = [
    "[x](javascript:alert(1))", "![x](http://a.b/c.png)", "<script>alert(1)</script>", "a | b | c",
    "**bold** _it_ ~~no~~", "`tick`", "a\n---\nlicense: mit\n---\n", "\x1b[2J\u202eabc", "$$x$$",
    "\\[x\\]", "&lt;b&gt;", "`` ` ``", "</code><img src=x onerror=y>",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("write", [escaped, code])
def test_text_is_one_line_without_markup(text, write):
    made = write(text)
    assert made.isprintable()
    assert "[x](" not in made
    assert "<script" not in made
    assert "<img" not in made
    assert "**bold" not in made or made.startswith("`")
    # A bar would end a table cell.
    assert "|" not in made.replace("\\|", "")
    assert "\n" not in made
    # Only backticks end inline code.
    assert made.replace("\\`", "").count("`") in (0, 2)


def test_ordinary_names_stay_as_they_are():
    assert code("CohereLabs/aya-23-8B") == "`CohereLabs/aya-23-8B`"
    assert code('{"max_tokens": 2048}') == '`{"max_tokens": 2048}`'
    assert escaped("Maya 1.5 (mini), हिन्दी") == "Maya 1.5 (mini), हिन्दी"
    assert escaped(Markdown("**ours**")) == "**ours**"


def test_strings_in_code():
    text = 'a"); import os #\n```'
    assert json.loads(literal(text)) == 'a"); import os # ```'
    assert "\n" not in literal(text)


def test_prose_keeps_paragraphs_and_links():
    made = prose("See [the paper](https://arxiv.org).\n\n---\n<b>x</b>\x1b")
    assert made == "See [the paper](https://arxiv.org).\n\n\\---\n&lt;b&gt;x&lt;/b&gt;\\x1b"
