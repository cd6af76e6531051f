"""Clean answers of models: remove leading thoughts, find leaked chat-template tokens."""

import re
import unicodedata

# Start and end marks of thoughts, as reasoning models and their templates write them.
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
    """Return the answer after a leading thought; None if the thought has no end.

    Templates often write the start mark into the prompt, so an end mark alone counts as a thought too.

    Args:
        source: the text asked about; an end mark that occurs in it does not count.
    """
    for begin, end in _PAIRS:
        begun = begin.match(answer)
        if (begun or end.search(answer)) and not end.search(source):
            # A thought may contain its own end mark, so split at the last one.
            *_, behind = end.split(answer)
            return None if behind == answer else behind
    return answer


def foreign_marks(text: str, source: str) -> str | None:
    """Return a chat-template token or control character of `text` that is not in `source`, or None."""
    for match in _TOKEN.finditer(text):
        if match.group() not in source:
            return match.group()
    for letter in set(text) - set(source):
        if unicodedata.category(letter) == "Cc" and letter not in "\t\n\r":
            return f"U+{ord(letter):04X}"
    return None
