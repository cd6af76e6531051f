"""What every answer is measured by, whatever the task."""

from collections.abc import Mapping, Sequence

from .protocol import Place, Scored, Task, mean_rows
from .results import MetricInfo, Row
from .scoring.scripts import SCRIPTS, in_script

MEASURES: dict[str, MetricInfo] = {
    "unparsable": {"title": "unparsable", "higher_is_better": False, "percent": True},
    "empty": {"title": "empty", "higher_is_better": False, "percent": True},
    "cut": {"title": "cut by the limit", "higher_is_better": False, "percent": True},
    "own_script": {"title": "in the script asked for", "higher_is_better": True, "percent": True},
    "tokens": {"title": "mean tokens", "higher_is_better": None, "percent": False},
}


def measures(
    task: Task, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
) -> list[Row]:
    """Rows of MEASURES over all answers of a run."""
    rows = []
    for metric, info in MEASURES.items():
        values: dict[str, list[tuple[str, float]]] = {}
        for one in scored:
            value = _measure(metric, one)
            if value is not None:
                pair = (one.request.item, float(value))
                values.setdefault(one.request.language, []).append(pair)
        place = Place(task.key, "all", run, metric, info["higher_is_better"])
        rows += mean_rows(place, values, groups, seed)
    return rows


def _measure(metric: str, one: Scored) -> float | None:
    """One answer's value; None where it says nothing about it."""
    request, given = one.request, one.answer
    if metric == "unparsable":
        return one.score.unparsable
    if metric == "empty":
        return not given.text
    if metric == "cut":
        return not given.ended
    if metric == "tokens":
        return given.tokens
    if request.answer_language not in SCRIPTS or not given.text:
        return None
    return in_script(given.text, request.answer_language)
