"""A judge behind an HTTP server, whose replies depend only on the prompt, so that tests can predict them."""

import hashlib
import json

from maya_vlm.training.evaluation.judges.plan import JudgePlan
from maya_vlm.training.evaluation.protocol import Scored
from maya_vlm.training.inference.generation import Answer
from tests.helpers.endpoint_server import EndpointServer, Faults


def number(text: str, of: int) -> int:
    """Return a number below `of` that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % of


def between(text: str, begin: str, end: str) -> str:
    return text.split(begin, 1)[1].split(end, 1)[0]


def pair_of(text: str) -> tuple[int, int]:
    """Return the judge's scores of the two answers in a review's prompt."""
    first = between(text, "[Assistant 1]\n", "\n\n[End of Assistant 1]")
    second = between(text, "[Assistant 2]\n", "\n\n[End of Assistant 2]")
    return 1 + number(first, 10), 1 + number(second, 10)


def reply(text: str, lang: str = "") -> str:
    """Return the judge's reply to a user's turn of any rubric."""
    if "[Assistant 1]" in text:
        first, second = pair_of(text)
        if "JSON object" in text:
            return json.dumps({"explanation": "so", "assistant_1": first, "assistant_2": second})
        return f"{first} {second}\nBecause."
    if "[Answer of assistant A]" in text:
        first = between(text, "[Answer of assistant A]\n", "\n[End of answer A]")
        second = between(text, "[Answer of assistant B]\n", "\n[End of answer B]")
        strength = number(first, 5) - number(second, 5)
        verdict = {2: "A>>B", 1: "A>B", 0: "A=B", -1: "B>A", -2: "B>>A"}[max(-2, min(2, strength))]
        if "JSON object" in text:
            return json.dumps({"explanation": "so", "verdict": verdict})
        return f"Explanation: so\nFinal Decision: [[{verdict}]]"
    if "Model prediction: " in text:
        score = number(between(text, "Model prediction: ", "\n\n"), 11)
        return json.dumps({"explanation": "so", "score": score}) if "JSON" in text else f"{score}"
    if "[Prediction]" in text:
        grade = number(between(text, "[Prediction]\n", "\n\n[End"), 11) / 10
        return json.dumps({"explanation": "so", "grade": grade})
    return f"{number(text.split(' | ')[-2], 11) / 10}"


def server(faults: Faults | None = None, fallback=reply, **options) -> EndpointServer:
    return EndpointServer(fallback=fallback, faults=faults, **options)


def plan(server: EndpointServer, **changes) -> JudgePlan:
    return JudgePlan(**{"judge": server.url, "model": "judge-1", **changes})


def judged(task, loaded, texts) -> list[Scored]:
    """Return the requests with these answers, judged together."""
    answers = [Answer(text, 1, True) for text in texts]
    scores = task.scores(loaded.requests, answers)
    return [Scored(*one) for one in zip(loaded.requests, answers, scores, strict=True)]
