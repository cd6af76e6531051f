"""MMMU's open answers: numbers and texts found in the concluding sentences.

Source: MMMU (2311.16502), eval/eval_utils.py, `parse_open_response` and `eval_open`. The script's mistakes are
kept: ".5" is read as 5, and a right text anywhere in a predicted text counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TypedDict

METRIC = "mmmu_open@1"
Value = str | float

_CONCLUSIONS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NUMBERS = [
    re.compile(pattern)
    for pattern in (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
]


def parse_open(response: str) -> list[Value]:
    """Return the possible texts and numbers of an answer, without duplicates, in order of occurrence."""
    concluding = _conclusions(response)
    found = concluding + [
        number for text in concluding for pattern in _NUMBERS for number in pattern.findall(text)
    ]
    return list(dict.fromkeys(value for text in found for value in _values(text)))


def _conclusions(response: str) -> list[str]:
    """Return, for each sentence, the shortest text after a concluding word; the whole answer if there is none."""
    response = response.strip().strip(".").lower()
    # The script splits at a full stop before a capital, but only after it has lowered the case.
    sentences = response.split("\n")
    found = []
    for number, sentence in enumerate(sentences, 1):
        marks = (*_CONCLUSIONS, "=") if number == len(sentences) else _CONCLUSIONS
        rests = [sentence.split(mark)[-1].strip() for mark in marks if mark in sentence]
        # An empty text is replaced by the next one, as in the script.
        shortest = ""
        for rest in rests:
            if not shortest or len(rest) < len(shortest):
                shortest = rest
        if shortest and shortest not in tuple(":,.!?;'"):
            found.append(shortest)
    return found or [response]


def _values(text: str) -> list[Value]:
    """Return a number rounded to two digits, or a text; a single letter gets a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def open_is_right(parsed: Sequence[Value], gold: str | Sequence[str]) -> bool:
    """Return whether a parsed number equals a right one, or a parsed text contains a right text."""
    golds = [gold] if isinstance(gold, str) else gold
    right = [value for text in golds for value in _values(text)]
    for value in parsed:
        if isinstance(value, str):
            if any(isinstance(text, str) and text in value for text in right):
                return True
        elif value in right:
            return True
    return False


class OpenScore(TypedDict):
    """Accuracy of open answers, 0 to 1; `right` has one value for each question."""

    metric: str
    n: int
    accuracy: float
    right: list[bool]


def open_score(rows: Iterable[tuple[str, Sequence[str]]]) -> OpenScore:
    """Score rows of (raw answer, right answers).

    Raises:
        ValueError: there are no rows.
    """
    right = [open_is_right(parse_open(answer), golds) for answer, golds in rows]
    if not right:
        raise ValueError(f"{METRIC}: expected at least one answer, found none")
    return {"metric": METRIC, "n": len(right), "accuracy": sum(right) / len(right), "right": right}
