"""Two models on the same questions: the paired difference, with an interval clustered by item.

The mean over languages gives each language the same weight, as in results.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

from ...common.telling import one_line
from ..measures import MEASURES
from ..protocol import MODEL, in_order
from ..results import TaskInfo
from ..scoring.intervals import holm, paired_difference
from .evaluations import Evaluation, of_run

# Settings in which two runs may differ: they change no answer, or only the number of questions.
FREE = ("batch_size", "workers", "baselines", "baseline_items", "limit", "seed", "toxicity")


class Compared(TypedDict):
    """First model minus second, over one subset in one language or a group's languages."""

    subset: str
    language: str
    n: int
    first: float
    second: float
    difference: float
    low: float | None  # 95 %, clustered by item
    high: float | None
    p: float  # two-sided, corrected for the rows of the subset (Holm)
    first_alone: int  # questions on which the first model scores higher
    second_alone: int


class Comparison(NamedTuple):
    """The comparison of one task.

    Args:
        task: the task's key.
        metric: a metric with a score for each question.
        failed: number of questions left out because the judgement of an answer failed.
        rows: for each subset its languages, then groups of languages.
    """

    task: str
    metric: str
    percent: bool
    failed: int
    rows: list[Compared]


def compare(first: Evaluation, second: Evaluation, seed: int = 0) -> list[Comparison]:
    """Compare the tasks that both evaluations have.

    Raises:
        ValueError, OSError: in one line: no common task; different versions, protocols, data, judges or
            prompts; different questions; answers that cannot be read; no score for single questions.
    """
    tasks = [name for name in first.results["tasks"] if name in second.results["tasks"]]
    if not tasks:
        raise ValueError(
            f"compare: expected a common task, found {_tasks(first)} in {first.folder} and "
            f"{_tasks(second)} in {second.folder}: evaluate both on one task"
        )
    for name in tasks:
        _check_same(name, first, second)
    return [_compare_task(name, first, second, seed) for name in tasks]


def only_one(first: Evaluation, second: Evaluation) -> list[str]:
    """Return the tasks that only one of two evaluations has."""
    tasks, others = first.results["tasks"], second.results["tasks"]
    return [name for name in (*tasks, *others) if (name in tasks) != (name in others)]


def _tasks(evaluation: Evaluation) -> str:
    return ", ".join(evaluation.results["tasks"]) or "none"


def _check_same(task: str, first: Evaluation, second: Evaluation) -> None:
    """Raise ValueError for the first setting in which two runs of a task differ."""
    ways = [_way(evaluation.results["tasks"][task]) for evaluation in (first, second)]
    for key in dict.fromkeys((*ways[0], *ways[1])):
        one, other = (way.get(key) for way in ways)
        if one != other:
            raise ValueError(
                f"compare: {task}: {key}: expected the same in both, found "
                f"{one_line(repr(one), 100)} in {first.folder} and {one_line(repr(other), 100)} in "
                f"{second.folder}: evaluate both in one way"
            )


def _way(info: TaskInfo) -> dict[str, Any]:
    """Return everything, except the model, on which the score of a single question depends."""
    way: dict[str, Any] = {"version": info["version"], "protocol": info["protocol"]}
    for name, value in info["asked"].items():
        way[f"asked.{name}"] = value
    data: Mapping[str, Any] = info["data"]
    for name in ("name", "revision", "files_sha256", "split"):
        way[f"data.{name}"] = data[name]
    judge: Any = info.get("judge") or {}
    for name in ("id", "version", "rubric"):
        way[f"judge.{name}"] = judge.get(name)
    for name, value in info["settings"].items():
        if name not in FREE:
            way[f"settings.{name}"] = value
    return way


def _compare_task(task: str, first: Evaluation, second: Evaluation, seed: int) -> Comparison:
    info = first.results["tasks"][task]
    pair = [of_run(evaluation.answers(task), MODEL) for evaluation in (first, second)]
    _check_questions(task, first, second, pair)
    metric = _metric(task, info, pair)
    subsets = dict.fromkeys(name for name in info["subsets"] if name != "all")
    found: dict[str, dict[str, list[tuple[str, str, float, float]]]] = {"all": {}}
    failed = 0
    for question, one in pair[0].items():
        value, other = one.get(metric), pair[1][question].get(metric)
        if value is None or other is None:
            failed += 1
            continue
        for subset in {one["subset"], "all"}:
            values = found.setdefault(subset, {}).setdefault(one["language"], [])
            values.append((question, one["item"], float(value), float(other)))
    if not any(found.values()):
        raise ValueError(f"compare: {task}: expected questions judged for both models, found none")
    rows: list[Compared] = []
    for subset in (*[name for name in subsets if name in found], "all"):
        own = list(_rows(subset, found[subset], info["groups"], seed))
        corrected = holm({row["language"]: row["p"] for row in own})
        rows += [row | {"p": corrected[row["language"]]} for row in own]
    return Comparison(task, metric, info["metrics"][metric]["percent"], failed, rows)


def _check_questions(
    task: str,
    first: Evaluation,
    second: Evaluation,
    pair: Sequence[Mapping[str, Mapping[str, Any]]],
) -> None:
    """Raise ValueError if the two runs were not asked the same questions."""
    one, other = pair
    for question in (*one, *other):
        if question not in one or question not in other:
            folder = (second if question in one else first).answers_file(task)
            raise ValueError(
                f"compare: {task}: question {one_line(question, 100)!r}: expected in both, found "
                f"none in {folder}: evaluate both with the same limit, seed and languages"
            )
        for name in ("prompt", "expected", "item", "subset", "language"):
            if one[question][name] != other[question][name]:
                raise ValueError(
                    f"compare: {task}: question {one_line(question, 100)!r}: {name}: expected the "
                    f"same in both, found {one_line(repr(one[question][name]), 80)} and "
                    f"{one_line(repr(other[question][name]), 80)}: evaluate both on one dataset"
                )


def _metric(task: str, info: TaskInfo, pair: Sequence[Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the task's metric, or its first one, that scores single questions."""
    columns = [
        {
            name
            for row in rows.values()
            for name, value in row.items()
            if isinstance(value, (int, float))
        }
        for rows in pair
    ]
    known = set.intersection(*columns) - {"unparsable", "ended", "tokens"}
    own = [name for name in info["metrics"] if name in known and name not in MEASURES]
    if not own:
        raise ValueError(
            f"compare: {task}: expected a score of each question, found none: "
            f"{info['metrics'][info['metric']]['title']} is computed over all answers: compare other tasks"
        )
    return info["metric"] if info["metric"] in own else own[0]


def _rows(
    subset: str,
    languages: Mapping[str, Sequence[tuple[str, str, float, float]]],
    groups: Mapping[str, Sequence[str]],
    seed: int,
) -> Iterator[Compared]:
    chosen = {language: [language] for language in in_order(languages)}
    for group, members in groups.items():
        own = [language for language in members if language in languages]
        if own:
            chosen[group] = own
    for name, own in chosen.items():
        every = [one for language in own for one in languages[language]]
        # Languages count alike, so a question of a language with fewer questions weighs more.
        weights = {
            question: len(every) / (len(own) * len(languages[language]))
            for language in own
            for question, *_ in languages[language]
        }
        first = {question: weights[question] * one for question, _, one, _ in every}
        second = {question: weights[question] * other for question, _, _, other in every}
        items = {question: item for question, item, *_ in every}
        paired = paired_difference(first, second, items, seed=seed)
        yield {
            "subset": subset,
            "language": name,
            "n": len(every),
            "first": sum(first.values()) / len(every),
            "second": sum(second.values()) / len(every),
            "difference": paired["difference"],
            "low": paired["low"],
            "high": paired["high"],
            "p": paired["p"],
            "first_alone": sum(one > other for _, _, one, other in every),
            "second_alone": sum(one < other for _, _, one, other in every),
        }


def comparison_text(first: Evaluation, second: Evaluation, compared: Sequence[Comparison]) -> str:
    """Return the comparison as text for the terminal."""
    names = [_named(evaluation) for evaluation in (first, second)]
    lines = [f"A: {names[0]}", f"B: {names[1]}"]
    for one in compared:
        info = first.results["tasks"][one.task]
        unit = ", points" if one.percent else ""
        lines += [
            "",
            f"{info['title']}: {info['metrics'][one.metric]['title']} of each question, A - B{unit} "
            f"with 95 % intervals over items; p corrected for the rows of a subset (Holm)",
        ]
        if one.metric != info["metric"]:
            title = info["metrics"][info["metric"]]["title"]
            lines.append(f"{title} is computed over all answers, so it is not compared")
        if one.failed:
            lines.append(f"{one.failed:,} questions left out, since a judgement failed")
        cells = [["", "", "n", "A", "B", "A - B", "p", "A alone", "B alone"]]
        for row in one.rows:
            scale = 100 if one.percent else 1
            bounds = [row["low"], row["high"]]
            interval = ", ".join(
                "?" if bound is None else f"{scale * bound:+.1f}" for bound in bounds
            )
            cells.append(
                [
                    place(info, row["subset"]),
                    row["language"],
                    f"{row['n']:,}",
                    f"{scale * row['first']:.1f}",
                    f"{scale * row['second']:.1f}",
                    f"{scale * row['difference']:+.1f} [{interval}]",
                    f"{row['p']:.3f}",
                    f"{row['first_alone']:,}",
                    f"{row['second_alone']:,}",
                ]
            )
        widths = [max(len(line[i]) for line in cells) + 2 for i in range(len(cells[0]))]
        lines += [
            "".join(f"{c:{w}}" for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
    left = only_one(first, second)
    if left:
        lines += ["", f"not compared, since only one has them: {', '.join(left)}"]
    return "\n".join(lines)


def _named(evaluation: Evaluation) -> str:
    model = evaluation.results["model"]
    mark = model["revision"] or model["weights_sha256"] or "unknown weights"
    return f"{model['name']} ({mark[:12]})"


def place(info: TaskInfo, subset: str) -> str:
    """Return a subset's title for readers."""
    part = info["parts"].get(subset.partition("/")[0])
    title = info["subsets"].get(subset) or subset
    return f"{part}: {title}" if part and "/" in subset else title
