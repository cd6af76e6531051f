"""VQA accuracy: the official code of VQAv2, and the processor of EvalAI and TextVQA (m4c).

They differ if the annotators agree. The official code normalises nothing if all answers to a question are
equal, so "Yes" against ten "yes" scores 0; EvalAI always normalises. `official` is the default for
VQAv2, since its server uses it. Published numbers of TextVQA and VizWiz use `evalai`.

Sources: GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py (1505.00468); LLaVA,
llava/eval/m4c_evaluator.py, which follows Pythia's EvalAIAnswerProcessor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from .parsed import no_duplicates

METRIC = "vqa_accuracy@1"
Protocol = Literal["official", "evalai"]

_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset(("a", "an", "the"))
# Both scripts restore these from the same word without one of its apostrophes. The scripts' forms of
# "I" have a capital and never match, since words are in lower case by then.
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, char in enumerate(word)
    if char == "'"
} | {"somebody'd": "somebodyd"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
# The scripts pass re.UNICODE, whose value is 32, in the place of `count`.
_MOST_FULL_STOPS = 32


def without_marks(text: str) -> str:
    """Apply the punctuation rule of both scripts.

    A mark that touches a space anywhere in the text is deleted everywhere; other marks become a space. If the
    text has a comma between digits, all marks are deleted. Full stops are deleted unless a digit follows, but
    at most 32 of them.
    """
    number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if touches or number else " ")
    return _FULL_STOP.sub("", result, count=_MOST_FULL_STOPS)


def without_articles(text: str) -> str:
    """Lower the case, write number words as digits, remove articles, and restore apostrophes of contractions."""
    found = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in found if word not in _ARTICLES)


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalise_official(text: str) -> str:
    """Normalise an answer as the official code does if annotators disagree."""
    return without_articles(without_marks(_stripped(text)))


def normalise_evalai(text: str) -> str:
    """Normalise an answer as EvalAI does; it first deletes "," and "?" and separates "'s"."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return without_articles(without_marks(_stripped(text)))


def processed(prediction: str, answers: Sequence[str], protocol: Protocol = "official") -> str:
    """Return the prediction in the form that is compared with the answers."""
    return _compared(prediction, answers, protocol)[0]


def _compared(prediction: str, answers: Sequence[str], protocol: Protocol) -> tuple[str, list[str]]:
    if protocol == "evalai":
        return normalise_evalai(prediction), [normalise_evalai(answer) for answer in answers]
    own = [_stripped(answer) for answer in answers]
    normalise: Callable[[str], str] = normalise_official if len(set(own)) > 1 else _stripped
    return normalise(prediction), [normalise(answer) for answer in own]


def accuracy(prediction: str, answers: Sequence[str], protocol: Protocol = "official") -> float:
    """Return the accuracy of one prediction, 0 to 1: the mean over the answers of min(1, equal others / 3).

    Raises:
        ValueError: there are no answers.
    """
    if not answers:
        raise ValueError("answers: expected at least one, found none")
    own, others = _compared(prediction, answers, protocol)
    equal = [answer == own for answer in others]
    return sum(min(1.0, (sum(equal) - left_out) / 3) for left_out in equal) / len(equal)


@dataclass(frozen=True)
class VqaRow:
    """A prediction, the annotators' answers, and the types by which the official code groups."""

    id: str
    prediction: str
    answers: Sequence[str]
    question_type: str | None = None
    answer_type: str | None = None


class VqaScore(TypedDict):
    """Accuracies in percent. Those by type are rounded to two digits, as published; `accuracy` is not rounded."""

    metric: str
    protocol: str
    n: int
    accuracy: float
    overall: float
    per_question_type: dict[str, float]
    per_answer_type: dict[str, float]
    empty: int


def vqa_score(rows: Iterable[VqaRow], protocol: Protocol = "official") -> VqaScore:
    """Return the mean accuracy over all questions and by type. `empty` counts blank predictions.

    Raises:
        ValueError: there are no rows, an id occurs twice, or a row has no answers (named with its id).
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"{METRIC}: expected at least one row, found none")
    no_duplicates(METRIC, "row", (row.id for row in rows))
    scores: list[float] = []
    for row in rows:
        try:
            scores.append(accuracy(row.prediction, row.answers, protocol))
        except ValueError as error:
            raise ValueError(f"{METRIC}: row {row.id!r}: {error}") from None
    mean = 100 * sum(scores) / len(scores)
    return {
        "metric": METRIC,
        "protocol": protocol,
        "n": len(rows),
        "accuracy": mean,
        "overall": round(mean, 2),
        "per_question_type": _means((row.question_type for row in rows), scores),
        "per_answer_type": _means((row.answer_type for row in rows), scores),
        "empty": sum(not row.prediction.strip() for row in rows),
    }


def _means(kinds: Iterable[str | None], scores: Sequence[float]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for kind, score in zip(kinds, scores, strict=True):
        if kind is not None:
            groups.setdefault(kind, []).append(score)
    return {kind: round(100 * sum(own) / len(own), 2) for kind, own in groups.items()}
