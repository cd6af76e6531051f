"""The published rubrics, each with a stricter version.

A stricter version asks for reasons before the grade, in one JSON object, at temperature 0. If the rubric compares
two answers, both orders are judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ..scoring.mmvet import parse_grade
from ..scoring.pairwise import STRENGTH, parse_verdict
from ..scoring.reviews import Pair, parse_pair
from .rubric import Rubric, object_schema, read_object

# ------------------------------------------------------------------- readers


def _in_object(read: Callable[[dict[str, Any]], Any]) -> Callable[[str], Any]:
    """Return a parser of replies that are one JSON object."""

    def reader(reply: str) -> Any:
        found = read_object(reply)
        return None if found is None else read(found)

    return reader


def _number(found: dict[str, Any], name: str, low: float, high: float) -> float | None:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if low <= value <= high else None


def _scores(found: dict[str, Any]) -> Pair | None:
    first, second = (_number(found, name, 1, 10) for name in ("assistant_1", "assistant_2"))
    return None if first is None or second is None else (first, second)


def _verdict(found: dict[str, Any]) -> str | None:
    verdict = found.get("verdict")
    return verdict if isinstance(verdict, str) and verdict in STRENGTH else None


def parse_tenths(reply: str) -> float | None:
    """Parse for ALM-bench: a single number from 0 to 10, with or without "/10"; None for any other reply."""
    match = re.fullmatch(r"[^\w.+-]*(\d{1,2}(?:\.\d+)?)(?:\s*/\s*10)?\W*", reply)
    score = float(match[1]) if match else math.nan
    return score if 0 <= score <= 10 else None


EXPLANATION = {"type": "string"}
_OBJECT = (
    '\n\nReply with one JSON object and nothing else. Its first property is "explanation", your reasons in '
    "at most five sentences; "
)

# ------------------------------------------------------------------- LLaVA-Bench, PALO

_CONTEXT = (
    "[Context]\n{context}\n\n[Question]\n{question}\n\n"
    "[Assistant 1]\n{first}\n\n[End of Assistant 1]\n\n"
    "[Assistant 2]\n{second}\n\n[End of Assistant 2]\n\n[System]\n"
)
_CHECKER = "You are a helpful and precise assistant for checking the quality of the answer."
_RULE = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user "
    "question displayed above. The user asks the question on observing an image. For your reference, the visual "
    "content in the image is represented with a few sentences describing the image. \n"
    "Please rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant "
    "receives an overall score on a scale of 1 to 10, where a higher score indicates better overall "
    "performance.\n"
)
REVIEW = Rubric(
    name="llava_review",
    version=1,
    source="LLaVA (2304.08485), llava/eval: eval_gpt_review_bench.py and table/rule.json (Apache-2.0)",
    # The rules of LLaVA-Bench's three categories have the same text.
    template=_CONTEXT
    + _RULE
    + "Please first output a single line containing only two values indicating the scores for Assistant 1 and 2, "
    "respectively. The two scores are separated by a space.\nIn the subsequent line, please provide a "
    "comprehensive explanation of your evaluation, avoiding any potential bias and ensuring that the order in "
    "which the responses were presented does not affect your judgment.\n\n",
    read=parse_pair,
    expects="two scores of 1 to 10 in the first line",
    system=_CHECKER,
    temperature=0.2,
)
REVIEW_STRICT = Rubric(
    name="review_strict",
    version=1,
    source="this package: criteria of LLaVA's rule, each answer in the question's language",
    template=_CONTEXT
    + _RULE
    + "An answer that is not in the language of the question is worth less, unless the question asks for "
    "another language. The order and the length of the answers say nothing about their quality."
    + _OBJECT
    + 'the others are "assistant_1" and "assistant_2", the two scores.',
    read=_in_object(_scores),
    expects="a JSON object with assistant_1 and assistant_2 of 1 to 10",
    system=_CHECKER,
    schema=object_schema(
        explanation=EXPLANATION,
        assistant_1={"type": "integer", "minimum": 1, "maximum": 10},
        assistant_2={"type": "integer", "minimum": 1, "maximum": 10},
    ),
)

# ------------------------------------------------------------------- MM-Vet

_RULE_OF_PARTS = (
    "<AND> in the ground truth means it is totally right only when all elements in the ground truth are present "
    "in the prediction, and <OR> means it is totally right when any one element in the ground truth is present "
    "in the prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, "
    "0.9, or 1.0 (totally right)."
)
_COMPARE = "Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. "
_EQUATION = "What is x in the equation? | -1 <AND> -5"
_MEME = (
    "Can you explain this meme? | This meme is poking fun at the fact that the names of the countries Iceland "
    "and Greenland are misleading. Despite its name, Iceland is known for its beautiful green landscapes, while "
    "Greenland is mostly covered in ice and snow. The meme is saying that the person has trust issues because "
    "the names of these countries do not accurately represent their landscapes."
)
_EXAMPLES = (
    f"{_EQUATION} | x = 3 | 0.0",
    f"{_EQUATION} | x = -1 | 0.5",
    f"{_EQUATION} | x = -5 | 0.5",
    f"{_EQUATION} | x = -5 or 5 | 0.5",
    f"{_EQUATION} | x = -1 or x = -5 | 1.0",
    f"{_MEME} | The meme talks about Iceland and Greenland. It's pointing out that despite their names, Iceland "
    "is not very icy and Greenland isn't very green. | 0.4",
    f"{_MEME} | The meme is using humor to point out the misleading nature of Iceland's and Greenland's names. "
    "Iceland, despite its name, has lush green landscapes while Greenland is mostly covered in ice and snow. The "
    "text 'This is why I have trust issues' is a playful way to suggest that these contradictions can lead to "
    "distrust or confusion. The humor in this meme is derived from the unexpected contrast between the names of "
    "the countries and their actual physical characteristics. | 1.0",
)
MMVET = Rubric(
    name="mmvet",
    version=1,
    source="MM-Vet (2308.02490), its evaluator (Apache-2.0)",
    template=f"{_COMPARE}{_RULE_OF_PARTS} Just complete the last space of the correctness score.\n\n"
    "Question | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\n"
    + "\n".join(_EXAMPLES)
    + "\n{question} | {reference} | {answer} | ",
    read=parse_grade,
    expects="a number from 0 to 1",
    max_tokens=3,
    tries=5,
    warmer=0.5,
)
MMVET_STRICT = Rubric(
    name="mmvet_strict",
    version=1,
    source="this package: the rule of MM-Vet (2308.02490), with each text in a place of its own",
    template="[Question]\n{question}\n\n[Ground truth]\n{reference}\n\n[Prediction]\n{answer}\n\n"
    f"[End of prediction]\n\n{_COMPARE}{_RULE_OF_PARTS}"
    + _OBJECT
    + 'the other is "grade", the correctness score.',
    read=_in_object(lambda found: _number(found, "grade", 0, 1)),
    expects="a JSON object with a grade of 0 to 1",
    schema=object_schema(
        explanation=EXPLANATION, grade={"type": "number", "minimum": 0, "maximum": 1}
    ),
)

# ------------------------------------------------------------------- AyaVisionBench, m-WildVision

_DUEL = (
    "Two assistants answered an instruction about the image above. Decide which of them answered better.\n\n"
    "[Instruction]\n{question}\n[End of instruction]\n\n"
    "[Answer of assistant A]\n{first}\n[End of answer A]\n\n"
    "[Answer of assistant B]\n{second}\n[End of answer B]\n\n"
    "First of all, the better answer is the more accurate one, given the image and the instruction. It must be "
    "mainly in {language}; an answer in another language is the worse one, unless the instruction asks for that "
    "language. Where both answers are wrong, they tie. Do not let the order of the answers or their length "
    "influence you."
)
_IMPARTIAL = "You are an impartial judge of the answers of AI assistants."
DUEL = Rubric(
    name="aya_duel",
    version=1,
    source="Aya Vision (2505.08751), appendix E: its criteria and its form of reply, in this package's words",
    template=_DUEL
    + "\n\nReply in this form:\nExplanation: your reasons\nFinal Decision: one of [[A>>B]] (A is much better), "
    "[[A>B]] (A is better), [[A=B]] (a tie), [[B>A]] (B is better), [[B>>A]] (B is much better)",
    read=parse_verdict,
    expects="one verdict such as [[A>B]]",
    system=_IMPARTIAL,
)
DUEL_STRICT = Rubric(
    name="duel_strict",
    version=1,
    source="this package: the criteria of Aya Vision (2505.08751), appendix E",
    template=_DUEL
    + _OBJECT
    + 'the other is "verdict", one of "A>>B" (A is much better), "A>B" (A is better), "A=B" (a tie), '
    '"B>A" (B is better), "B>>A" (B is much better).',
    read=_in_object(_verdict),
    expects="a JSON object with a verdict such as A>B",
    system=_IMPARTIAL,
    schema=object_schema(
        explanation=EXPLANATION, verdict={"type": "string", "enum": list(STRENGTH)}
    ),
)

# ------------------------------------------------------------------- ALM-bench

_TRIPLE = "Question: {question}\nGround truth: {reference}\nModel prediction: {answer}\n\n"
_MATCHES = (
    "Does the prediction mean the same as the ground truth? If so, the score is 10, otherwise 0."
)
_OF_TEN = (
    "A prediction that matches the ground truth closely has a high score; one that lacks the knowledge, or is not "
    "related to the ground truth, has a low score. Give one overall score from 0 to 10."
)
# Type of question -> the judged criteria. The script announces three criteria for short answers and lists two.
ALM_CRITERIA = {
    "choice": f"Judge the accuracy of the prediction. {_MATCHES}",
    "true_false": f"Judge the accuracy of the prediction. {_MATCHES}",
    "long": f"Judge consistency, fluency and relevance of the prediction. {_OF_TEN}",
    "short": f"Judge accuracy and correctness of the prediction. {_OF_TEN}",
}
ALM = Rubric(
    name="alm",
    version=1,
    source="ALM-bench (2411.16508), GPTScoring.py: its criteria and its form of reply, in this package's words",
    template=_TRIPLE + "{criteria}\nReply with the score alone, a number and nothing else.",
    read=parse_tenths,
    expects="a number from 0 to 10",
    # The script leaves the temperature to the server, whose default is 1.
    temperature=1.0,
    max_tokens=16,
)
ALM_STRICT = Rubric(
    name="alm_strict",
    version=1,
    source="this package: the criteria of ALM-bench (2411.16508)",
    template=_TRIPLE + "{criteria}" + _OBJECT + 'the other is "score".',
    read=_in_object(lambda found: _number(found, "score", 0, 10)),
    expects="a JSON object with a score of 0 to 10",
    schema=object_schema(
        explanation=EXPLANATION, score={"type": "number", "minimum": 0, "maximum": 10}
    ),
)
