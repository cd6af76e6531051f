"""`report.html`: one or more evaluations as one page that opens offline and has no script.

Answers are untrusted text: the template escapes every text, and the page's content security policy allows only
its own style and embedded pictures.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ...common.files import write_bytes
from ...common.languages import NAMES
from ...common.telling import printable
from ..measures import MEASURES
from ..protocol import BLIND, CHANCE, MODEL, SHUFFLED, in_order
from ..results import MetricInfo, ModelInfo, Results, Row, TaskInfo
from ..scoring.fidelity import same_language
from ..scoring.toxicity import TOXIC_AT
from ..table import group_title, rows_of
from .compare import Comparison, compare, only_one, place
from .evaluations import SAMPLES, Evaluation, address, of_run, question_of, read_evaluation
from .published import Published, Source, published, warning

# Entries of a list of failures on the page; the answers file has all.
LISTED = 100
# Characters of a text on the page.
LONGEST = 1200
# Languages written from right to left; they decide for a text whose letters do not.
RIGHT_TO_LEFT = {"ar", "ur", "fa", "he", "ps", "sd", "ug", "yi", "dv", "ckb"}
# Kind of failure -> its description, which follows "N of M answers".
KINDS = {
    "unparsable": "could not be parsed, and count as wrong",
    "cut": "were cut by the limit of new tokens",
    "failed": "have a judgement that failed, and are not averaged",
    "language": "are in another language than requested",
    "toxic": "are toxic by the chosen classifier",
}


class Shown(NamedTuple):
    """A text of a model or dataset with its language and direction."""

    text: str
    lang: str
    dir: str


def write_report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write report.html of the evaluations in `folders`.

    Args:
        output: the page's folder; None: the folder of a single evaluation, else the current one.

    Returns:
        The page's path.

    Raises:
        ValueError, OSError: in one line: a folder has no results or answers, or damaged ones.
    """
    evaluations = [read_evaluation(folder) for folder in folders]
    folder = output or (evaluations[0].folder if len(evaluations) == 1 else Path())
    path = folder / "report.html"
    write_bytes(path, report_page(evaluations).encode("utf-8"))
    return path


def report_page(evaluations: Sequence[Evaluation]) -> str:
    """Return the page of these evaluations, side by side."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = _clean
    names = _names(evaluations)
    tasks = list(dict.fromkeys(task for e in evaluations for task in e.results["tasks"]))
    infos = {
        task: next(e.results["tasks"][task] for e in evaluations if task in e.results["tasks"])
        for task in tasks
    }
    sources, tables = published()
    return environment.get_template("page.html.jinja").render(
        title=" and ".join(names),
        models=[
            {"name": name, "number": number, **_facts(evaluation.results["model"])}
            for number, (name, evaluation) in enumerate(zip(names, evaluations, strict=True))
        ],
        heat=_heat(evaluations, names, infos),
        tasks=[_task(task, infos[task], evaluations, names) for task in tasks],
        compared=_compared(evaluations, infos),
        published=[
            _published(table, sources[table["source"]], infos)
            for table in sorted(tables, key=lambda t: _of_task(t, infos) is None)
        ],
        language=lambda code: NAMES.get(code, code),
        kinds=KINDS,
        listed=LISTED,
    )


def _names(evaluations: Sequence[Evaluation]) -> list[str]:
    """Return a name for each model; equal names get a revision, a hash or a number."""
    plain = [evaluation.results["model"]["name"] for evaluation in evaluations]
    names = []
    for number, (name, evaluation) in enumerate(zip(plain, evaluations, strict=True)):
        model = evaluation.results["model"]
        mark = model["revision"] or model["weights_sha256"] or ""
        same = [n for n in range(len(plain)) if plain[n] == name]
        names.append(f"{name} {mark[:7] or number + 1}" if len(same) > 1 else name)
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return names


def _facts(model: ModelInfo) -> dict[str, Any]:
    """Return the known facts about a model, as one line and one by one; a served model has few."""
    facts = [
        f"{model['parameters']:,} parameters" if model["parameters"] is not None else "",
        " with ".join(filter(None, (model["text_model"], model["vision_model"]))),
        f"{model['image_tokens']} image tokens a picture" if model["image_tokens"] else "",
        " on ".join(filter(None, (model["dtype"], model["device"]))),
    ]
    line = ", ".join(filter(None, facts)) or "only its name is known"
    return {
        "facts": line,
        "about": {name: value for name, value in model.items() if value is not None},
    }


# ------------------------------------------------------------------------------ texts


def _clean(value: object) -> str:
    """Return a text without characters that could affect the page; a very long text is cut."""
    text = str(value)
    cut = f"{text[:LONGEST]} … ({len(text):,} letters)" if len(text) > LONGEST else text
    return "\n".join(printable(line) for line in cut.splitlines())


def shown(text: str, language: str) -> Shown:
    """Return a text with the direction of most of its letters: an answer's language may not be the requested one."""
    kinds = Counter(unicodedata.bidirectional(char) for char in text)
    right, left = kinds["R"] + kinds["AL"], kinds["L"]
    backwards = right > left or (right == left and language.split("-")[0] in RIGHT_TO_LEFT)
    return Shown(_clean(text), language, "rtl" if backwards else "ltr")


def _expected(row: Mapping[str, Any]) -> str:
    """Return the expected answer as text; a task may expect one of several, or a value without a text form."""
    try:
        value = json.loads(row["expected"])
    except ValueError:
        value = row["expected"]
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(map(str, value)))
    return "" if value is None else str(value)


# ------------------------------------------------------------------------------ bars


def _scale(metric: MetricInfo) -> int:
    return 100 if metric["percent"] else 1


def _number(value: float | None, scale: float = 1) -> str:
    return "–" if value is None else f"{scale * value:.1f}"


def _range(low: float | None, high: float | None, scale: float, form: str = ".1f") -> str:
    """Return an interval as text, "" if there is none."""
    return "" if low is None or high is None else f"{scale * low:{form}} to {scale * high:{form}}"


def _chart(
    task: str, info: TaskInfo, subset: str, evaluations: Sequence[Evaluation]
) -> dict[str, Any] | None:
    """Return the bars of a subset, by language or group and by model; None if no model has any."""
    metric = info["metrics"][info["metric"]]
    found = [_by_place(e.results, task, info["metric"]) for e in evaluations]
    languages = [
        name
        for name in (*info["languages"], *info["groups"])
        if any((subset, MODEL, name) in rows for rows in found)
    ]
    if not languages:
        return None
    own = [
        rows[subset, MODEL, name]
        for rows in found
        for name in languages
        if (subset, MODEL, name) in rows
    ]
    top = 1.0 if metric["percent"] else max(max(r["value"], r["high"] or 0) for r in own)
    top = max([top, *(r["high"] or r["value"] for r in own)]) or 1.0
    return {
        "subset": subset,
        "title": place(info, subset),
        "lines": [
            {
                "language": name,
                "group": group_title(info, name) if name in info["groups"] else "",
                "bars": [
                    _bar(rows, subset, name, info, _scale(metric), top) | {"number": number}
                    for number, rows in enumerate(found)
                    if (subset, MODEL, name) in rows
                ],
            }
            for name in languages
        ],
        "n": sorted({r["n"] for r in own if r["language"] in info["languages"]}),
        "failures": sum(r["failures"] for r in own if r["language"] in info["languages"]),
        "top": f"{_scale(metric) * top:.4g}",
    }


def _by_place(results: Results, task: str, metric: str) -> dict[tuple[str, str, str], Row]:
    return {(r["subset"], r["run"], r["language"]): r for r in rows_of(results, task, metric)}


def _bar(
    rows: Mapping[tuple[str, str, str], Row],
    subset: str,
    name: str,
    info: TaskInfo,
    scale: int,
    top: float,
) -> dict[str, Any]:
    row = rows[subset, MODEL, name]
    marks = {}
    for run in (BLIND, SHUFFLED, CHANCE):
        members = info["groups"].get(name, [name])
        values = [
            rows[subset, run, lang]["value"] for lang in members if (subset, run, lang) in rows
        ]
        if (subset, run, name) in rows:
            values = [rows[subset, run, name]["value"]]
        if values:
            marks[run] = sum(values) / len(values)

    def along(value: float | None) -> str | None:
        return None if value is None else f"{100 * min(1.0, max(0.0, value / top)):.2f}%"

    return {
        "value": _number(row["value"], scale),
        "interval": _range(row["low"], row["high"], scale),
        "n": row["n"],
        "failures": row["failures"],
        "x": along(row["value"]),
        "low": along(row["low"]),
        "high": along(row["high"]),
        "marks": {
            run: {"x": along(value), "text": _number(value, scale)} for run, value in marks.items()
        },
    }


# ------------------------------------------------------------------------------ the map


def _overall(info: TaskInfo, found: Iterable[tuple[str, str, str]]) -> list[str]:
    """Return the subsets that represent a task: the one of all answers if there is one, else each."""
    subsets = {subset for subset, run, _ in found if run == MODEL}
    return _whole(subsets) or [name for name in info["subsets"] if name in subsets]


def _whole(subsets: Iterable[str]) -> list[str]:
    """Return the subset of all answers, or the mean of the others; empty if a task has neither."""
    found: list[str] = [name for name in subsets if name in ("all", "mean")]
    return sorted(found)[:1]


def _heat(
    evaluations: Sequence[Evaluation], names: Sequence[str], infos: Mapping[str, TaskInfo]
) -> dict[str, Any]:
    """Return tasks by languages, for scores that are a share of questions, and the names of the other tasks."""
    lines, left = [], []
    columns = in_order({lang for info in infos.values() for lang in info["languages"]})
    for task, info in infos.items():
        metric = info["metrics"][info["metric"]]
        found = [_by_place(e.results, task, info["metric"]) for e in evaluations]
        if (
            not metric["percent"]
            or not metric["higher_is_better"]
            or info["metric"] in ("cider", "rouge_l")
        ):
            left.append(f"{info['title']} ({metric['title']})")
            continue
        for subset in _overall(info, [key for rows in found for key in rows]):
            chances = [
                row["value"]
                for rows in found
                for key, row in rows.items()
                if key[:2] == (subset, CHANCE)
            ]
            for number, rows in enumerate(found):
                cells = [rows.get((subset, MODEL, name)) for name in (*columns, "all")]
                if any(cells):
                    lines.append(
                        {
                            "task": task,
                            "title": _titled(info, subset),
                            "metric": metric["title"],
                            "model": names[number] if len(names) > 1 else "",
                            "chance": f"{100 * sum(chances) / len(chances):.3g}"
                            if chances
                            else "–",
                            "cells": [
                                None
                                if row is None
                                else {
                                    "text": _number(row["value"], 100),
                                    "share": f"{row['value']:.3f}",
                                }
                                for row in cells
                            ],
                        }
                    )
    return {"columns": columns, "lines": lines, "left": left}


def _titled(info: TaskInfo, subset: str) -> str:
    title = place(info, subset)
    return info["title"] if title in ("", "all", info["title"]) else f"{info['title']}: {title}"


# ------------------------------------------------------------------------------ one task


def _task(
    task: str, info: TaskInfo, evaluations: Sequence[Evaluation], names: Sequence[str]
) -> dict[str, Any]:
    have = [(n, e) for n, e in enumerate(evaluations) if task in e.results["tasks"]]
    answered = [(n, e) for n, e in have if e.has_answers(task)]
    charts = [
        _chart(task, info, subset, evaluations)
        for subset in dict.fromkeys((*info["subsets"], "all"))
    ]
    judge: Any = info.get("judge")
    return {
        "key": task,
        "anchor": f"task-{''.join(c if c.isalnum() else '-' for c in task)}",
        "info": info,
        "metric": info["metrics"][info["metric"]],
        "charts": [chart for chart in charts if chart],
        "measures": [_measures(task, e, names[n]) for n, e in have],
        "failures": [_failures(task, e, names[n]) for n, e in answered],
        "unanswered": [names[n] for n, e in have if not e.has_answers(task)],
        "samples": _samples(task, info, answered) if answered else [],
        "differs": _differing(task, [e for _, e in have]),
        "judge": judge,
        "provenance": [
            {"model": names[n], "rows": _provenance(e.results["tasks"][task])} for n, e in have
        ],
        "other": len(have) < len(evaluations),
    }


def _differing(task: str, evaluations: Sequence[Evaluation]) -> list[str]:
    """Return the settings in which the evaluations of a task differ; if there are any, bars are not comparable."""
    infos = [e.results["tasks"][task] for e in evaluations]
    found = []
    for name in ("version", "protocol", "asked"):
        if any(info[name] != infos[0][name] for info in infos):  # type: ignore[literal-required]
            found.append(name)
    for name in ("name", "revision", "files_sha256", "split", "requests"):
        if any(info["data"][name] != infos[0]["data"][name] for info in infos):  # type: ignore[literal-required]
            found.append(f"data: {name}")
    return found


def _measures(task: str, evaluation: Evaluation, model: str) -> dict[str, Any]:
    """Return the secondary measures: a row for each language, a column for each measure of a subset."""
    info = evaluation.results["tasks"][task]
    columns: list[tuple[str, str, str]] = []
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for metric, about in info["metrics"].items():
        if metric == info["metric"]:
            continue
        rows = _by_place(evaluation.results, task, metric)
        subsets = dict.fromkeys(s for s, run, _ in rows if run == MODEL)
        chosen = _whole(subsets) or list(subsets)
        for subset in chosen:
            title = place(info, subset)
            whole = title in ("", "all", info["title"])
            columns.append(
                (metric, subset, about["title"] if whole else f"{about['title']} ({title})")
            )
            cells[metric, subset] = {
                lang: row for (s, run, lang), row in rows.items() if (s, run) == (subset, MODEL)
            }
    lines = []
    for name in (*info["languages"], *info["groups"]):
        found = [cells[metric, subset].get(name) for metric, subset, _ in columns]
        most = max((row["n"] for row in found if row), default=0)
        if most:
            lines.append(
                {
                    "language": name,
                    "group": group_title(info, name) if name in info["groups"] else "",
                    "cells": [
                        {"text": "–", "n": ""}
                        if row is None
                        else {
                            "text": _number(row["value"], _scale(info["metrics"][metric])),
                            "n": f"{row['n']:,}" if metric in MEASURES and row["n"] < most else "",
                        }
                        for row, (metric, _, _) in zip(found, columns, strict=True)
                    ],
                }
            )
    heads = [
        title + (", %" if info["metrics"][metric]["percent"] else "")
        for metric, _, title in columns
    ]
    return {"model": model, "heads": heads, "lines": lines}


def _failed(row: Mapping[str, Any], metric: str, found: set[str]) -> bool:
    """Return whether a judgement failed: it is listed, or the metric's column is empty in this row."""
    return row["id"] in found or (metric in row and row[metric] is None)


def _failures(task: str, evaluation: Evaluation, model: str) -> dict[str, Any]:
    """Return the lists of failures among the model's answers."""
    info = evaluation.results["tasks"][task]
    judge: Any = info.get("judge") or {}
    failed = set(judge.get("failed", {}).get(MODEL, ()))
    rows = [row for row in evaluation.answers(task) if row["run"] == MODEL]
    lists: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in KINDS}
    confused: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row["unparsable"]:
            lists["unparsable"].append(row)
        if row["ended"] is False:
            lists["cut"].append(row)
        if _failed(row, info["metric"], failed):
            lists["failed"].append(row)
        if (row.get("toxicity") or 0) >= TOXIC_AT:
            lists["toxic"].append(row)
        asked, found = row.get("answer_language"), row.get("language_found")
        if asked and found and not same_language(found, asked):
            lists["language"].append(row)
            confused[asked, found] += 1
    pictures = evaluation.pictures(task)
    return {
        "model": model,
        "file": f"answers/{task}.parquet",
        "asked": len(rows),
        "confused": [(asked, found, n) for (asked, found), n in confused.most_common(30)],
        "lists": [
            {
                "kind": kind,
                "count": len(own),
                "entries": [
                    _entry(row, pictures) | {"found": row.get("language_found")}
                    for row in own[:LISTED]
                ],
            }
            for kind, own in lists.items()
            if kind != "toxic" or "toxicity" in info["settings"]
        ],
    }


def _entry(row: Mapping[str, Any], pictures: Mapping[str, bytes]) -> dict[str, Any]:
    language = row["language"]
    return {
        "id": row["id"],
        "language": language,
        "prompt": shown(row["prompt"], language),
        "answer": shown(row["answer"], language),
        "expected": shown(_expected(row), language),
        "picture": next((address(pictures[k]) for k in row["pictures"] if k in pictures), ""),
    }


def _samples(
    task: str, info: TaskInfo, have: Sequence[tuple[int, Evaluation]]
) -> list[dict[str, Any]]:
    """Return pictures with their questions and each model's answers."""
    first = have[0][1]
    answers = [(number, of_run(e.answers(task), MODEL)) for number, e in have]
    samples = []
    for key, content in list(first.pictures(task).items())[:SAMPLES]:
        asked = [row for row in answers[0][1].values() if key in row["pictures"]]
        order = {lang: place for place, lang in enumerate(info["languages"])}
        asked.sort(key=lambda row: order.get(row["language"], len(order)))
        groups = []
        for subset in dict.fromkeys(row["subset"] for row in sorted(asked, key=_order(info))):
            own = [row for row in asked if row["subset"] == subset]
            groups.append(
                {
                    "title": place(info, subset),
                    "entries": list(_answered(own, answers, info["metric"])),
                    "right": sum(row.get(info["metric"]) == 1 for row in own),
                }
            )
        if groups:
            samples.append({"key": key, "picture": address(content), "groups": groups})
    return samples


def _order(info: TaskInfo) -> Any:
    subsets = list(info["subsets"])
    return lambda row: subsets.index(row["subset"]) if row["subset"] in subsets else len(subsets)


def _answered(
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[tuple[int, Mapping[str, Mapping[str, Any]]]],
    metric: str,
) -> Iterator[dict[str, Any]]:
    for row in rows:
        given = []
        for number, own in answers:
            other = own.get(question_of(row))
            if other is not None:
                value = other.get(metric)
                mark = {1.0: "right", 0.0: "wrong"}.get(value, "") if value is not None else ""
                told = "" if mark or value is None else f"{value:.2f}"
                answer = shown(other["answer"], row["language"])
                given.append({"number": number, "answer": answer, "mark": mark, "value": told})
        yield {
            "language": row["language"],
            "prompt": shown(row["prompt"], row["language"]),
            "expected": shown(_expected(row), row["language"]),
            "given": given,
        }


def _provenance(info: TaskInfo) -> dict[str, str]:
    """Return flat names and values, in reading order."""
    parts: dict[str, Any] = {
        "protocol": f"{info['protocol']}, version {info['version']}: {info['source']}",
        "asked": info["asked"],
        "data": info["data"],
        "settings": info["settings"],
        "created": info["created"],
        "package": info["package"],
        "machine": info["machine"],
        "versions": info["versions"],
        "seconds": {name: round(value, 1) for name, value in info["seconds"].items()},
    }
    flat = {}
    for name, value in parts.items():
        if isinstance(value, Mapping):
            told = [f"{key}: {each}" for key, each in value.items() if each not in (None, [], {})]
            value = "\n".join(told)
        if value:
            flat[name] = _clean(value)
    return flat


# ------------------------------------------------------------------------------ comparisons


def _compared(
    evaluations: Sequence[Evaluation], infos: Mapping[str, TaskInfo]
) -> dict[str, Any] | None:
    """Return the paired comparison of two evaluations, or the reason why they cannot be compared."""
    if len(evaluations) != 2:
        return None
    try:
        found = compare(evaluations[0], evaluations[1])
    except (ValueError, FileNotFoundError) as error:
        return {"refused": str(error), "tables": [], "left": []}
    return {
        "refused": "",
        "tables": [_compared_task(one, infos[one.task]) for one in found],
        "left": only_one(evaluations[0], evaluations[1]),
    }


def _compared_task(one: Comparison, info: TaskInfo) -> dict[str, Any]:
    scale = 100 if one.percent else 1
    widest = max(
        max(abs(r["low"] or 0), abs(r["high"] or 0), abs(r["difference"])) for r in one.rows
    )

    def along(value: float | None) -> str | None:
        return None if value is None else f"{50 + 50 * value / (widest or 1):.2f}%"

    return {
        "title": info["title"],
        "metric": info["metrics"][one.metric]["title"],
        "failed": one.failed,
        "parts": [
            {
                "title": place(info, subset),
                "rows": [
                    {
                        "language": row["language"],
                        "group": row["language"] in info["groups"],
                        "n": row["n"],
                        "first": _number(row["first"], scale),
                        "second": _number(row["second"], scale),
                        "difference": f"{scale * row['difference']:+.1f}",
                        "interval": _range(row["low"], row["high"], scale, "+.1f"),
                        "p": f"{row['p']:.3f}",
                        "first_alone": row["first_alone"],
                        "second_alone": row["second_alone"],
                        "x": along(row["difference"]),
                        "low": along(row["low"]),
                        "high": along(row["high"]),
                    }
                    for row in one.rows
                    if row["subset"] == subset
                ],
            }
            for subset in dict.fromkeys(row["subset"] for row in one.rows)
        ],
    }


def _of_task(table: Published, infos: Mapping[str, TaskInfo]) -> str | None:
    """Return the key of a result for a published table's benchmark, a comparable one if there is any."""
    keys = [key for key in infos if key.partition(":")[0] == table["task"]]
    return next((key for key in keys if key in table["alike"]), keys[0] if keys else None)


def _published(table: Published, source: Source, infos: Mapping[str, TaskInfo]) -> dict[str, Any]:
    key = _of_task(table, infos)
    columns = list(dict.fromkeys(name for own in table["scores"].values() for name in own))
    return {
        "table": table,
        "source": source,
        "columns": columns,
        "task": key,
        "warning": warning(table, key, infos[key]) if key else "",
        "judge": table.get("judge", ""),
        "note": table.get("note", ""),
    }
