"""Escape untrusted text in Markdown: names of models, datasets and languages are never markup."""

from __future__ import annotations

import json
import re

from .telling import printable

# Characters to escape anywhere in a line, in tables too; "$" begins math on the Hub.
_SPECIAL = re.compile(r"[\\`*_\[\]|~$]")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# Text that needs no escaping between backticks, in tables too.
_PLAIN = re.compile(r"[^`|<>\[\]\\&]+")


class Markdown(str):
    """Text that is already Markdown and must not be escaped again."""


def escaped(text: str) -> Markdown:
    """Return `text` as one line that renders literally: no markup, HTML, table cell or control character."""
    if isinstance(text, Markdown):
        return text
    return Markdown(_SPECIAL.sub(r"\\\g<0>", _line(text)).translate(_ENTITIES))


def code(text: str) -> Markdown:
    """Return `text` as inline code."""
    line = _line(text)
    if _PLAIN.fullmatch(line):
        return Markdown(f"`{line}`")
    return Markdown(f"<code>{escaped(line)}</code>")


def literal(text: str) -> Markdown:
    """Return `text` as a string literal for a code block."""
    return Markdown(json.dumps(_line(text), ensure_ascii=False))


def prose(text: str) -> Markdown:
    """Return Markdown paragraphs without HTML, control characters or a line that starts front matter."""
    lines = (printable(line.expandtabs()).translate(_ENTITIES) for line in text.splitlines())
    return Markdown("\n".join(f"\\{line}" if line.startswith("---") else line for line in lines))


def _line(text: str) -> str:
    return printable(" ".join(text.split()))
