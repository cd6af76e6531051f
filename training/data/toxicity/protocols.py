"""Prompts of guard models and parsers of their answers: one versioned protocol per format.

A parser accepts only the format that its model was trained to give. An answer that is cut off, contradicts
itself or has another format is `review`, never `safe`. If log probabilities of tokens are given, the score is
the probability of the unsafe word relative to the safe word, at the position where the answer decides.

The formats are those of the model cards: LlavaGuard v1.2 (rating, category, rationale) and its older
decision/assessment templates, Qwen3Guard-Gen, PolyGuard.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...common.reading import read_yaml
from .verdicts import Judgement, Label, Stage

LABELS: dict[str, Label] = {"safe": "safe", "unsafe": "unsafe", "controversial": "review"}
# Words of LlavaGuard's older templates.
DECISIONS: dict[str, Label] = {"compliant": "safe", "review needed": "unsafe"}
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")
_SPECIAL = re.compile(r"</?s>|<\|[^|>]*\|>")
_CATEGORY = re.compile(r"^(O[1-9]|NA|10): *\S")


@dataclass(frozen=True)
class GuardProtocol:
    """A prompt and a parser.

    version: version of the parser, part of a judge's key, so that answers of an older parser are not reused.
    messages: (prompt, text) -> messages in OpenAI's format; an image is put before the prompt.
    parse: answer -> judgement without a score.
    decides: regular expression for the text before the deciding word of an answer.
    words: possible deciding words -> label.
    """

    name: str
    stage: Stage
    parse: Callable[[str], Judgement]
    decides: str
    words: dict[str, Label]
    max_tokens: int
    prompts: tuple[str, ...]
    messages: Callable[[str, str], list[dict]]
    version: int = 1

    @property
    def prompt(self) -> str:
        return "\n".join(_prompts()[name] for name in self.prompts).strip()

    def read(self, answer: str, logprobs: Sequence[dict] | None = None) -> Judgement:
        """Return the judgement in an answer, with its score if `logprobs` allow one.

        Args:
            answer: the model's answer.
            logprobs: OpenAI's `choices[0].logprobs.content`.
        """
        found = self.parse(_SPECIAL.sub("", answer).strip())
        score = unsafe_probability(logprobs, self.decides, self.words) if found.parse_ok else None
        return Judgement(
            found.label, found.category, score, found.rationale, answer, found.parse_ok
        )


@cache
def _prompts() -> dict[str, str]:
    return read_yaml(Path(__file__).with_name("prompts.yaml"))


def _json_object(answer: str) -> dict[str, Any] | None:
    """Return the only JSON object in an answer, with or without a code fence; else None.

    A repeated key also gives None: the two values may contradict each other.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in items}) != len(items):
            raise ValueError("a key twice")
        return dict(items)

    text = _FENCE.sub("", answer).strip()
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, end = json.JSONDecoder(object_pairs_hook=pairs).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value if "{" not in text[end:] else None


def _word(value: Any) -> str | None:
    return value.lower() if isinstance(value, str) else None


def _category(value: Any) -> str | None:
    if not isinstance(value, str) or not _CATEGORY.match(value.strip()):
        return None
    return " ".join(value.split())


def parse_llavaguard_v1_2(answer: str) -> Judgement:
    """Parse {"rating": "Unsafe" | "Safe", "category": "O3: Sexual Content", "rationale": "..."}."""
    data = _json_object(answer) or {}
    label = LABELS.get(_word(data.get("rating")) or "")
    category, rationale = _category(data.get("category")), data.get("rationale")
    if label not in ("safe", "unsafe") or category is None or not isinstance(rationale, str):
        return Judgement.unreadable(answer)
    return Judgement(label, category, rationale=rationale.strip(), raw=answer)


def parse_llavaguard_v1_0(answer: str) -> Judgement:
    """Parse the templates before v1.2: "Review Needed" or "Compliant" under one of three keys.

    The forms are: decision + image-category + assessment (a rationale); assessment + category +
    explanation; final-assessment + policy-category + explanation.
    """
    data = _json_object(answer) or {}
    for decision, category, rationale in (
        ("decision", "image-category", "assessment"),
        ("final-assessment", "policy-category", "explanation"),
        ("assessment", "category", "explanation"),
    ):
        label = DECISIONS.get(_word(data.get(decision)) or "")
        if label is None:
            continue
        found, why = _category(data.get(category)), data.get(rationale)
        if found is None or not isinstance(why, str):
            break
        return Judgement(label, found, rationale=why.strip(), raw=answer)
    return Judgement.unreadable(answer)


def parse_qwen3guard(answer: str) -> Judgement:
    """Parse "Safety: Safe | Unsafe | Controversial" and "Categories: Violent, ...".

    Controversial means review by people.
    """
    found = re.findall(r"^Safety:[ \t]*(\w+)[ \t]*$", answer, re.MULTILINE)
    listed = re.findall(r"^Categories:[ \t]*(.+?)[ \t]*$", answer, re.MULTILINE)
    label = LABELS.get(found[0].lower()) if len(found) == 1 else None
    if label is None or len(listed) != 1:
        return Judgement.unreadable(answer)
    category = None if listed[0] == "None" else listed[0]
    if label == "safe" and category is not None:
        return Judgement.unreadable(answer)
    return Judgement(label, category, raw=answer)


def parse_polyguard(answer: str) -> Judgement:
    """Parse five lines: harmful request, its violations, refusal, harmful response, its violations.

    The judged text is the request. There is no response (n/a or no), but one that is called harmful counts.
    """
    fields: dict[str, str] = {}
    for line in answer.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            name = name.strip().lower()
            if name in fields:
                return Judgement.unreadable(answer)
            fields[name] = value.strip()
    request = fields.get("harmful request", "").lower()
    response = fields.get("harmful response", "").lower()
    if request not in ("yes", "no") or response not in ("yes", "no", "n/a"):
        return Judgement.unreadable(answer)
    harmful = [
        name for name, said in (("request", request), ("response", response)) if said == "yes"
    ]
    violations = [fields.get(f"{name} safety violations", "") for name in harmful]
    listed = [v.strip() for found in violations for v in found.split(",") if v.strip() != "None"]
    category = ", ".join(dict.fromkeys(v for v in listed if v)) or None
    return Judgement("unsafe" if harmful else "safe", category, raw=answer)


def parse_word(answer: str) -> Judgement:
    """Parse one word, safe or unsafe, with nothing around it but punctuation and "Answer:"."""
    words = re.fullmatch(r"\W*(?:(?:final )?answer\W+)?(safe|unsafe)\W*", answer.lower())
    if words is None:
        return Judgement.unreadable(answer)
    return Judgement(LABELS[words.group(1)], raw=answer)


def unsafe_probability(
    logprobs: Sequence[dict] | None, decides: str, words: dict[str, Label]
) -> float | None:
    """Return P(unsafe word) / (P(unsafe word) + P(safe word)) at the deciding token; None if unknown.

    A token counts for the word that it begins ("Uns", "Unsafe", "Safe"); a token that begins several labels'
    words does not count. Words that mean review count half.
    """
    if not logprobs:
        return None
    text = "".join(item["token"] for item in logprobs)
    place = re.search(decides, text)
    if place is None:
        return None
    position = 0
    weights: dict[Label, float] = {"safe": 0.0, "unsafe": 0.0, "review": 0.0}
    for item in logprobs:
        before, position = position, position + len(item["token"])
        if position > place.end():
            break
    else:
        return None
    # The token may begin before the word, with a space or the quotation mark.
    lead = item["token"][: place.end() - before]
    for option in item.get("top_logprobs") or [item]:
        token = option["token"]
        if not token.startswith(lead):
            continue
        part = token[len(lead) :].strip().lower().strip("\"',.}\n ")
        meant = {
            label
            for word, label in words.items()
            if part and (word.startswith(part) or part == word)
        }
        if len(meant) == 1:
            weights[meant.pop()] += math.exp(min(0.0, option["logprob"]))
    total = sum(weights.values())
    if total == 0:
        return None
    return min(1.0, (weights["unsafe"] + weights["review"] / 2) / total)


def _as_user(prompt: str, text: str) -> list[dict]:
    """Return the text as user message, after the prompt, if any, as system message."""
    system = [{"role": "system", "content": prompt}] if prompt else []
    return [*system, {"role": "user", "content": text}]


def _as_interaction(prompt: str, text: str) -> list[dict]:
    """Return PolyGuard's format: the text as the human's turn, without an answer."""
    return _as_user(prompt, f"Human user:\n{text}\n\nAI assistant:\n")


_RATING = r'"rating"\s*:\s*"'
_DECISION = r'"(?:decision|final-assessment|assessment)"\s*:\s*"(?=(?i:compliant|review needed))'
_YES_NO: dict[str, Label] = {"yes": "unsafe", "no": "safe"}
_SAFE_UNSAFE: dict[str, Label] = {"safe": "safe", "unsafe": "unsafe"}

PROTOCOLS: dict[str, GuardProtocol] = {
    protocol.name: protocol
    for protocol in (
        GuardProtocol(
            name="llavaguard-v1.2",
            stage="image",
            messages=_as_user,
            parse=parse_llavaguard_v1_2,
            decides=_RATING,
            words=_SAFE_UNSAFE,
            max_tokens=500,
            prompts=("llavaguard", "llavaguard-v1.2"),
        ),
        GuardProtocol(
            name="llavaguard-v1.0",
            stage="image",
            messages=_as_user,
            parse=parse_llavaguard_v1_0,
            decides=_DECISION,
            words=DECISIONS,
            max_tokens=500,
            prompts=("llavaguard", "llavaguard-v1.0"),
        ),
        GuardProtocol(
            name="qwen3guard",
            stage="text",
            messages=_as_user,
            parse=parse_qwen3guard,
            decides=r"Safety:[ \t]*(?=\w)",
            words=LABELS,
            max_tokens=128,
            prompts=("qwen3guard",),
        ),
        GuardProtocol(
            name="polyguard",
            stage="text",
            messages=_as_interaction,
            parse=parse_polyguard,
            decides=r"Harmful request:[ \t]*(?=\w)",
            words=_YES_NO,
            max_tokens=100,
            prompts=("polyguard",),
        ),
        GuardProtocol(
            name="rationale",
            stage="rationale",
            messages=_as_user,
            parse=parse_word,
            decides=r"^\W*(?:(?i:(?:final )?answer)\W+)?(?=(?i:safe|unsafe))",
            words=_SAFE_UNSAFE,
            max_tokens=16,
            prompts=("rationale",),
        ),
    )
}
