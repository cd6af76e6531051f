"""What a card may not hold, whoever named what it tells of."""

from __future__ import annotations

import re

import yaml

from .case import Fault
from .oracle import _controls

# Names that a card must show as text, and nothing else.
HOSTILE = (
    "a\n---\nlicense: stolen\n---",
    "x: y # z",
    "'\"`",
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "`<svg onload=alert(1)>`",
    "a|b|c",
    "{{ 7 * 7 }}",
    "# A title",
    "../../escaped",
    "..\\..\\escaped",
    "/etc/escaped",
    ".",
    "\x1b[2J\x07",
    "\u202egnp.exe",
    "a\0b",
    "x" * 3000,
    "",
    "!!python/name:os.system",
    "~/x",
    "$(true)",
)
_MARKUP = re.compile(r"<(script|img|svg|iframe)\b[^>]*>|\]\(javascript:", re.IGNORECASE)


def card_faults(text: str) -> list[Fault]:
    """Faults of a README.md: its head is no YAML or has foreign keys, its body has foreign markup."""
    parts = text.split("---\n", 2)
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    except yaml.YAMLError as error:
        return [Fault("a card's head is no YAML", " ".join(str(error).split())[:200])]
    if not isinstance(head, dict):
        return [Fault("a card's head is no YAML", text[:100])]
    faults = []
    if head.get("license") == "stolen":
        faults.append(Fault("a card's head is not its own", parts[1][:200]))
    body = re.sub(r"^```.*?^```$", "", parts[2], flags=re.DOTALL | re.MULTILINE)
    body = re.sub(r"(`+)(?!`)[^\n]*?(?<!`)\1(?!`)", "", body)
    body = re.sub(r"\\[!-/:-@\[-`{-~]", "", body)  # what a backslash makes text
    if found := _MARKUP.search(body):
        faults.append(Fault("a name becomes markup of a card", body[found.start() - 40 :][:120]))
    if bad := [letter for letter in text if letter != "\n" and _controls(letter)]:
        faults.append(Fault("control characters", f"in a card: {bad[0]!r}"))
    return faults
