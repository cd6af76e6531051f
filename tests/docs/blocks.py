"""The code blocks and the inline code of the README, of the pages of docs/, and of CONTRIBUTING and SECURITY."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Yield (page, text) of every code block in a language."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.M):
            yield page.name, found


def inline() -> Iterator[tuple[str, str]]:
    """Yield (page, code) of every piece of inline code, on one line."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
        for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
            yield page.name, " ".join(found.split())
