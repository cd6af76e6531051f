"""Text of strangers in Markdown: names of models, datasets and languages are text, never markup."""

from __future__ import annotations

import json
import re

from .telling import printable

# To be escaped anywhere in a line, tables included; "$" begins mathematics on the Hub.
_SPECIAL = re.compile(r"[\\`*_\[\]|~$]")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# What may stand between backticks as it is, in a table too.
_PLAIN = re.compile(r"[^`|<>\[\]\\&]+")


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""


def escaped(text: str) -> Markdown:
    """`text` in one line that shows as it is: no markup, HTML, table cell or control character."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_SPECIAL.sub(r"\\\g<0>", _line(text)).translate(_ENTITIES))


def code(text: str) -> Markdown:
    """`text` as code in a line."""
    line = _line(text)
    if _PLAIN.fullmatch(line):
        return Markdown(f"`{line}`")
    return Markdown(f"<code>{escaped(line)}</code>")


def literal(text: str) -> Markdown:
    """`text` as a string in a code block."""
    return Markdown(json.dumps(_line(text), ensure_ascii=False))


def prose(text: str) -> Markdown:
    """Paragraphs that somebody wrote as Markdown, without HTML, control characters or a card's header."""
    lines = (printable(line.expandtabs()).translate(_ENTITIES) for line in text.splitlines())
    return Markdown("\n".join(f"\\{line}" if line.startswith("---") else line for line in lines))


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
