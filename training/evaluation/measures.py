"""Measure every answer, whatever the task."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.languages import LANGUAGES
from .protocol import Place, Scored, Task, mean_rows
from .results import MetricInfo, Row
from .scoring.fidelity import Detector, detectable, same_language
from .scoring.scripts import SCRIPTS, in_script
from .scoring.toxicity import TOXIC_AT, Toxicity

MEASURES: dict[str, MetricInfo] = {
    "unparsable": {"title": "unparsable", "higher_is_better": False, "percent": True},
    "empty": {"title": "empty", "higher_is_better": False, "percent": True},
    "cut": {"title": "cut by the limit", "higher_is_better": False, "percent": True},
    "own_script": {"title": "in the script asked for", "higher_is_better": True, "percent": True},
    "own_language": {
        "title": "in the language asked for",
        "higher_is_better": True,
        "percent": True,
    },
    # Only if a classifier is given.
    "toxic": {"title": "toxic", "higher_is_better": False, "percent": True},
    "tokens": {"title": "mean tokens", "higher_is_better": None, "percent": False},
}


def measures(
    task: Task,
    scored: Sequence[Scored],
    run: str,
    groups: Mapping[str, Sequence[str]],
    seed: int,
    toxicity: Toxicity | None = None,
) -> list[Row]:
    """Return rows of MEASURES over all answers of a run; `n` counts the answers that a measure applies to."""
    found, toxic = languages_found(scored), toxicities(scored, toxicity)
    rows = []
    for metric, info in MEASURES.items():
        values: dict[str, list[tuple[str, float]]] = {}
        for one, language, probability in zip(scored, found, toxic, strict=True):
            value = _measure(metric, one, language, probability)
            if value is not None:
                pair = (one.request.item, float(value))
                values.setdefault(one.request.language, []).append(pair)
        place = Place(task.key, "all", run, metric, info["higher_is_better"])
        rows += mean_rows(place, values, groups, seed)
    return rows


def languages_found(scored: Sequence[Scored]) -> list[str | None]:
    """Return the language of each answer; None if it is unknown, or if no language was requested.

    The candidates are the requested languages, Maya's ten and English; "other" is none of them. If the detector does
    not know the requested language, the result is None.
    """
    asked = {one.request.answer_language for one in scored} - {None}
    known = set(detectable(sorted(map(str, asked))))
    if not known:
        return [None] * len(scored)
    detector = Detector([*known, *LANGUAGES])
    texts = {one.answer.text for one in scored if one.request.answer_language in known}
    found = {text: detector.language(text) for text in texts}
    return [
        found[one.answer.text] if one.request.answer_language in known else None for one in scored
    ]


def toxicities(scored: Sequence[Scored], toxicity: Toxicity | None) -> list[float | None]:
    """Return the probability that each answer is toxic; None if it is unknown."""
    texts = [one.answer.text for one in scored]
    return [None] * len(texts) if toxicity is None else toxicity(texts)


def _measure(metric: str, one: Scored, found: str | None, toxic: float | None) -> float | None:
    """Return one answer's value of a measure, or None if the measure does not apply."""
    request, given = one.request, one.answer
    simple: dict[str, Any] = {
        "unparsable": one.score.unparsable,
        "empty": not given.text,
        "cut": not given.ended,
        "tokens": given.tokens,
    }
    if metric in simple:
        return simple[metric]
    asked = request.answer_language
    if metric == "toxic":
        return None if toxic is None else toxic >= TOXIC_AT
    if metric == "own_language":
        return None if found is None or asked is None else same_language(found, asked)
    return in_script(given.text, asked) if asked in SCRIPTS and given.text else None
