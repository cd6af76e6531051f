"""What models write beside an answer: thoughts before it, and tokens of their chat template in it."""

import re
import unicodedata

# A thought's begin and end, as reasoning models and their templates write them.
_THOUGHTS = (
    (r"<(?:think|thinking|thought|reasoning)>", r"</(?:think|thinking|thought|reasoning)>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|channel\|>\s*analysis", r"<\|channel\|>\s*final\s*<\|message\|>"),
)
_PAIRS = [(re.compile(rf"\s*(?:{a})", re.I), re.compile(b, re.I)) for a, b in _THOUGHTS]
# Tokens of chat templates: <|im_end|>, </im_end/>, <end_of_turn>, <s>, [/INST], <<SYS>>, <｜end▁of▁sentence｜>.
_TOKEN = re.compile(
    r"<[|｜][^<>\n]{1,60}>|<[^<>\n]{1,60}[|｜]>|</?[A-Za-z]+(?:_[A-Za-z]+)+\s*/?>|"
    r"</?(?:s|bos|eos|eot|pad|unk|think|thinking|thought|reasoning)\s*/?>|"
    r"\[/?(?:INST|SYS|THINK|TOOL_CALLS|AVAILABLE_TOOLS)\]|<</?SYS>>|◁/?think▷",
    re.I,
)


def without_thought(answer: str, source: str = "") -> str | None:
    """The answer behind a leading thought; None for a thought that has no end.

    Templates often write the beginning themselves, so the end alone tells of a thought too.

    Args:
        source: what was asked about; marks that stand in it are its own.
    """
    for begin, end in _PAIRS:
        begun = begin.match(answer)
        if (begun or end.search(answer)) and not end.search(source):
            # A thought may speak of its own end.
            *_, behind = end.split(answer)
            return None if behind == answer else behind
    return answer


def foreign_marks(text: str, source: str) -> str | None:
    """A chat template's token or a control character that the source does not have; None for none."""
    for match in _TOKEN.finditer(text):
        if match.group() not in source:
            return match.group()
    for letter in set(text) - set(source):
        if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r":
            return f"U+{ord(letter):04X}"
    return None
