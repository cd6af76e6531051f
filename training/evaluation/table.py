"""Make tables of results, for the terminal, cards and pages. The code iterates over rows."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..common.markdown import code, escaped
from .protocol import BASELINES, CHANCE, MODEL
from .results import Results, Row, TaskInfo

# Number of withheld scores that are listed.
SHOWN = 10


class Column(NamedTuple):
    """A column of scores: one subset under one run."""

    subset: str
    run: str


class Table(NamedTuple):
    """A table of one part of a task: languages, then groups of languages, by columns."""

    title: str  # "" for a task without parts
    columns: list[Column]
    languages: list[str]
    groups: list[str]


def tables(results: Results, task: str) -> Iterator[Table]:
    """Yield the tables of one task: one for each part, with its subsets and the baselines."""
    info = results["tasks"][task]
    found = {
        (row["subset"], row["run"], row["language"])
        for row in rows_of(results, task, info["metric"])
    }
    for part in info["parts"] or {"": ""}:
        subsets = [name for name in info["subsets"] if not part or name.startswith(f"{part}/")]
        columns = [
            Column(subset, run)
            for subset in subsets
            for run in (MODEL, *BASELINES)
            if any(
                found_subset == subset and found_run == run for found_subset, found_run, _ in found
            )
        ]
        shown = {language for subset, _, language in found if subset in subsets}
        if columns:
            yield Table(
                info["parts"].get(part, ""),
                columns,
                [language for language in info["languages"] if language in shown],
                [group for group in info["groups"] if group in shown],
            )


def rows_of(results: Results, task: str, metric: str) -> list[Row]:
    """Return the rows of one metric of one task."""
    return [row for row in results["rows"] if row["task"] == task and row["metric"] == metric]


class Scores:
    """One metric's rows by subset, run and language, and their display texts."""

    def __init__(self, results: Results, task: str, metric: str | None = None):
        info = results["tasks"][task]
        self.metric = metric or info["metric"]
        self.percent = info["metrics"][self.metric]["percent"]
        self.rows = {
            (row["subset"], row["run"], row["language"]): row
            for row in rows_of(results, task, self.metric)
        }

    def shown(self, column: Column, language: str, interval: bool) -> str:
        """Return a score as text, "-" if there is none."""
        row = self.rows.get((*column, language))
        if row is None:
            return "-"
        scale = 100 if self.percent else 1
        text = f"{scale * row['value']:.1f}"
        if interval and row["low"] is not None and row["high"] is not None:
            text += f" [{scale * row['low']:.1f}, {scale * row['high']:.1f}]"
        return text

    def chance(self, subset: str) -> str:
        """Return the mean chance of a subset as text, "" if there is none."""
        rows = [row["value"] for row in self.rows.values() if _is(row, subset, CHANCE)]
        scale = 100 if self.percent else 1
        return f"{scale * sum(rows) / len(rows):.2g}" if rows else ""


def _is(row: Row, subset: str, run: str) -> bool:
    return row["subset"] == subset and row["run"] == run


def group_title(info: TaskInfo, group: str) -> str:
    """Return the name of a group of languages in tables."""
    return f"mean of {group} ({len(info['groups'][group])})"


def markdown_tables(results: Results, task: str) -> list[tuple[str, str]]:
    """Return (title, Markdown) of each table of a task, with intervals of the model's scores."""
    info, scores = results["tasks"][task], Scores(results, task)
    made = []
    for table in tables(results, task):
        heads = [
            escaped(info["subsets"][column.subset] or info["title"])
            if column.run == MODEL
            else escaped(column.run)
            for column in table.columns
        ]
        lines = [_row(["language", *heads])]
        lines.append(_row(["---", *("---" if c.run == MODEL else "---:" for c in table.columns)]))
        for language in (*table.languages, *table.groups):
            n = scores.rows.get((*table.columns[0], language))
            label = (
                f"**{escaped(group_title(info, language))}**"
                if language in table.groups
                else code(language) + (f" (n = {n['n']:,})" if n else "")
            )
            cells = [scores.shown(c, language, c.run == MODEL) for c in table.columns]
            lines.append(_row([label, *cells]))
        made.append((table.title, "\n".join(lines)))
    return made


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def text_table(results: Results, task: str) -> str:
    """Return a task's results for the terminal: languages by subsets, with the baselines beside the model."""
    info, scores = results["tasks"][task], Scores(results, task)
    data = info["data"]
    runs = {row["run"] for row in results["rows"] if row["task"] == task}
    styles = f" ({', '.join(data['styles'])})" if any(data["styles"]) else ""
    unit = "percent" if scores.percent else "score"
    lines = [
        f"{results['model']['name']} on {info['title']} {data['split']}{styles}: "
        f"{data['images']:,} pictures, {data['requests']:,} questions, {info['settings']['decoding']}",
        f"{info['metrics'][info['metric']]['title']}, {unit} with 95 % intervals",
    ]
    if runs & set(BASELINES):
        few = info["settings"]["baseline_items"]
        of = f" on {few:,} pictures" if few is not None else ""
        lines[1] += f"; blind (no picture) and shuffled (another's picture){of}"
    for table in tables(results, task):
        lines.append("")
        if table.title:
            lines.append(f"{table.title}:")
        heads, under = [""], [""]
        cells: list[list[str]] = [[label] for label in (*table.languages, *table.groups)]
        for column in table.columns:
            if column.run == MODEL:
                chance = scores.chance(column.subset)
                title = info["subsets"][column.subset] or info["title"]
                heads.append(title + (f" (chance {chance})" if chance else ""))
            else:
                heads.append("")
            under.append(column.run)
            for line, language in zip(cells, (*table.languages, *table.groups), strict=True):
                line.append(scores.shown(column, language, column.run == MODEL))
        lines += _aligned([under, *cells], heads)
    lines += ["", _measured(results, task)]
    lines += judge_lines(info)
    lines.append("seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in info["seconds"].items()))
    return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> list[str]:
    """Return aligned lines; a heading is above its own column and the empty columns after it."""
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(heads))]
    starts = [i for i, head in enumerate(heads) if head] + [len(heads)]
    for start, end in itertools.pairwise(starts):
        widths[start] += max(0, len(heads[start]) + 2 - sum(widths[start:end]))
    lines = [f"{'':{widths[0]}}"]
    for start, end in itertools.pairwise(starts):
        lines[0] += f"| {heads[start]:{sum(widths[start:end])}}"
    for row in rows:
        line = ""
        for i, cell in enumerate(row):
            line += f"{'| ' if heads[i] and i else ''}{cell:{widths[i]}}"
        lines.append(line)
    return [line.rstrip() for line in lines]


def judge_lines(info: TaskInfo) -> list[str]:
    """Return lines on the judge, its failures, and withheld scores; none for tasks without a judge."""
    if "judge" not in info:
        return []
    judge = info["judge"]
    names = ", ".join(dict.fromkeys([judge["id"], *judge["served"]]))
    failed = {run: len(requests) for run, requests in judge["failed"].items()}
    told = ", ".join(f"{number} of the {run} run" for run, number in failed.items()) or "none"
    lines = [f"judge: {names}, rubric {judge['rubric']}; failed judgements: {told}"]
    if len(judge["served"]) > 1:
        lines.append(f"replies came from {len(judge['served'])} models, so these scores mix judges")
    missing = [
        f"no score of {one['language']} ({one['subset']}, {one['run']} run): {one['failed']} of "
        f"{one['asked']} judgements failed, more than {100 * judge['failed_share']:g} %"
        for one in judge["withheld"]
    ]
    more = len(missing) - SHOWN
    rest = [f"and {more} more scores, see results.json"] if more > 0 else []
    return [*lines, *missing[:SHOWN], *rest]


def _measured(results: Results, task: str) -> str:
    """Return a line on unparsable, cut and other bad answers, over all languages."""
    info = results["tasks"][task]
    parts = []
    for metric, measure in info["metrics"].items():
        rows = [
            row
            for row in rows_of(results, task, metric)
            if row["subset"] == "all" and row["run"] == MODEL and row["language"] == "all"
        ]
        if metric != info["metric"] and rows:
            value = rows[0]["value"]
            text = f"{100 * value:.1f} %" if measure["percent"] else f"{value:.1f}"
            parts.append(f"{measure['title']} {text}")
    return "answers: " + ", ".join(parts)
