"""Report of a study (`report.json`, `report.md` and plots), and the index of all studies.

The report lists every run, including failed, diverged and missing runs, and counts all of them.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ..common.files import write_json, write_text
from ..common.markdown import code, escaped, prose
from ..common.provenance import Provenance, provenance
from ..common.reading import read_json_mapping
from ..common.schema import to_dict
from ..evaluation.scoring.intervals import holm
from .outcome import is_scored, measured, read_outcome, training_seconds
from .plan import Run
from .statistics import Mean, Paired, mean_over_seeds, paired_by_seed
from .study import Claim, Measure, Study, baseline_of, cells_of, main_measure, slug

REPORT, PAGE = "report.json", "report.md"
FORMAT = 1
LEVEL = 0.05  # significance level for corrected p values


class RunRecord(TypedDict):
    """A run in a report. state: done, failed, diverged or missing. values: measure -> value.

    seconds: of training, summed over stages and processes; a stage that runs share counts in each.
    """

    cell: str
    seed: int
    key: str
    state: str
    seconds: float | None
    values: dict[str, float]
    languages: dict[str, dict[str, float]]
    provenance: Provenance | None
    reason: NotRequired[str]


class Difference(Paired):
    """Difference of a cell from the baseline. corrected: p, Holm-corrected for all comparisons."""

    corrected: float | None


class MeasureRecord(TypedDict):
    """A measure for all cells. cells and differences have the cell's name as key."""

    name: str
    main: bool
    higher_is_better: bool | None
    cells: dict[str, Mean]
    differences: dict[str, Difference]


class Report(TypedDict):
    """All numbers of a study."""

    format: int
    name: str
    study: dict[str, Any]
    baseline: str
    runs: list[RunRecord]
    measures: list[MeasureRecord]
    answer: str
    provenance: Provenance


def make_report(name: str, study: Study, runs: Sequence[Run]) -> Report:
    """Return the report of a study, with the numbers of all finished runs.

    Args:
        name: the study's name, which is also its folder's name.
        study: from `read_study`.
        runs: from `plan_runs`.

    Raises:
        ValueError: a run's files do not contain a measure; the message lists what they contain.
    """
    records, higher = [], dict.fromkeys((each.name for each in study.measures), None)
    for run in runs:
        record = _record(run)
        records.append(record)
        if record["state"] != "done" or not is_scored(run, study):
            continue
        for measure in study.measures:
            try:
                found = measured(run, study, measure)
            except ValueError as error:
                raise ValueError(
                    f"{run.name}: {error}: correct the study's measures, and repeat with --report; all runs are kept"
                ) from None
            record["values"][measure.name] = found["value"]
            record["languages"][measure.name] = found["languages"]
            higher[measure.name] = found["higher_is_better"]
    measures = [
        _measure_record(study, measure, records, higher[measure.name]) for measure in study.measures
    ]
    _correct(measures)
    return {
        "format": FORMAT,
        "name": name,
        "study": to_dict(study),
        "baseline": baseline_of(study),
        "runs": records,
        "measures": measures,
        "answer": _answer(study, measures),
        "provenance": provenance(),
    }


def changed_since(folder: Path, study: Study, runs: Sequence[Run]) -> str | None:
    """Return a line that says how a study has changed since its last report, or None if it has not.

    Args:
        folder: of the study's reports.
        runs: of the study as it is now, from `plan_runs`.
    """
    path = folder / REPORT
    if not path.is_file():
        return None
    last = read_json_mapping(path)
    if last.get("study") == json.loads(json.dumps(to_dict(study))):
        return None
    before = {record["key"] for record in last["runs"]}
    kept = len(before & {run.key for run in runs})
    return (
        f"{study.title}: the study has changed since its last report: {kept} of {len(before)} runs of that report "
        f"belong to it still, the others stay in the folder and are not counted"
    )


def _record(run: Run) -> RunRecord:
    outcome = read_outcome(run)
    record: RunRecord = {
        "cell": run.cell.name,
        "seed": run.seed,
        "key": run.key,
        "state": outcome["state"] if outcome else "missing",
        "seconds": training_seconds(run),
        "values": {},
        "languages": {},
        "provenance": outcome["provenance"] if outcome else None,
    }
    if outcome and "reason" in outcome:
        record["reason"] = outcome["reason"]
    return record


def _measure_record(
    study: Study, measure: Measure, records: Sequence[RunRecord], higher: bool | None
) -> MeasureRecord:
    values: dict[str, dict[int, float]] = {cell.name: {} for cell in cells_of(study)}
    for record in records:
        if measure.name in record["values"]:
            values[record["cell"]][record["seed"]] = record["values"][measure.name]
    baseline = baseline_of(study)
    differences: dict[str, Difference] = {}
    for cell, by_seed in values.items():
        if cell != baseline and (found := paired_by_seed(by_seed, values[baseline])):
            differences[cell] = {**found, "corrected": None}
    return {
        "name": measure.name,
        "main": measure is main_measure(study),
        "higher_is_better": higher,
        "cells": {
            cell: mean_over_seeds(list(found.values())) for cell, found in values.items() if found
        },
        "differences": differences,
    }


def _correct(measures: Sequence[MeasureRecord]) -> None:
    """Apply Holm's correction to the p values of all cells and measures together."""
    every = {
        f"{number}/{cell}": (difference, difference["p"])
        for number, measure in enumerate(measures)
        for cell, difference in measure["differences"].items()
    }
    known = {key: p for key, (_, p) in every.items() if p is not None}
    for key, p in holm(known).items():
        every[key][0]["corrected"] = p


def _answer(study: Study, measures: Sequence[MeasureRecord]) -> str:
    """Return one or two sentences with the result on the main measure."""
    main = next(each for each in measures if each["main"])
    if not main["differences"]:
        return "The runs so far do not compare any cell with the baseline."
    baseline = baseline_of(study)
    sure = [
        f"{cell} {'above' if found['difference'] > 0 else 'below'} {baseline} by "
        f"{_number(abs(found['difference']))} (p = {_p(found['corrected'])})"
        for cell, found in main["differences"].items()
        if found["corrected"] is not None and found["corrected"] < LEVEL
    ]
    if sure:
        return f"{main['name']}: {'; '.join(sure)}."
    return f"{main['name']}: no cell differs from {baseline} by more than the seeds explain."


def verdict(report: Report, claim: Claim) -> str:
    """Return a sentence that says whether the runs confirm a claim of the papers."""
    baseline = report["baseline"]
    measure = next(each for each in report["measures"] if each["name"] == claim.measure)
    better, worse, open_cells = [], [], []
    sign = 1 if measure["higher_is_better"] else -1
    for cell in claim.over or [each for each in _cells(report) if each != baseline]:
        found = measure["differences"].get(cell)
        if found is None or found["corrected"] is None or found["corrected"] >= LEVEL:
            open_cells.append(cell)
        elif sign * found["difference"] > 0:
            better.append(f"{cell!r} (by {_number(abs(found['difference']))})")
        else:
            worse.append(repr(cell))
    others = f" (compared with {', '.join(map(repr, claim.over))})" if claim.over else ""
    where = f"the papers' claim that {baseline!r} is best in {claim.measure}{others}"
    if better:
        return f"These runs contradict {where}: better are {', '.join(better)}."
    if not open_cells:
        return f"These runs confirm {where}: all others are worse."
    told = f"; worse are {', '.join(worse)}" if worse else ""
    return f"These runs neither confirm nor contradict {where}: no other is better by more than the seeds explain{told}."


# ------------------------------------------------------------------------------ files


def write_report(report: Report, folder: Path) -> Path:
    """Write report.json, the plots and report.md, and return the path of report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT, report)
    plots = [_plot(report, measure, folder) for measure in report["measures"]]
    write_text(folder / PAGE, _page(report, [plot for plot in plots if plot]))
    return folder / PAGE


def write_index(work: Path) -> Path:
    """Write index.md, one line per study, from the reports in the folder of all studies."""
    lines = ["# Studies", "", "| study | question | answer | runs |", "| --- | --- | --- | ---: |"]
    for path in sorted(work.glob(f"*/{REPORT}")):
        report: Any = read_json_mapping(path)
        done = sum(run["state"] == "done" for run in report["runs"])
        title = f"[{escaped(report['study']['title'])}]({path.parent.name}/{PAGE})"
        question = escaped(report["study"]["question"])
        answer = escaped(report["answer"])
        lines.append(f"| {title} | {question} | {answer} | {done} of {len(report['runs'])} |")
    write_text(work / "index.md", "\n".join(lines) + "\n")
    return work / "index.md"


def _page(report: Report, plots: Sequence[str]) -> str:
    study = report["study"]
    parts = [f"# {escaped(study['title'])}", "", prose(study["question"]), ""]
    parts += [f"**{escaped(report['answer'])}**", ""]
    if study["paper"]:
        parts += ["**What the papers say.** " + prose(study["paper"]), ""]
    if study["claim"]:
        parts += [escaped(verdict(report, Claim(**study["claim"]))), ""]
    if study["scope"]:
        parts += ["**What this study can show.** " + prose(study["scope"]), ""]
    parts += list(_runs(report))
    for measure in report["measures"]:
        parts += list(_measure(report, measure))
    parts += [f"![{escaped(plot)}]({plot})\n" for plot in plots]
    parts += list(_provenance(report))
    return "\n".join(parts) + "\n"


def _runs(report: Report) -> Iterator[str]:
    states = [run["state"] for run in report["runs"]]
    counts = ", ".join(
        f"{states.count(s)} {s}" for s in ("done", "failed", "diverged", "missing") if s in states
    )
    seeds = len(report["study"]["seeds"])
    yield f"{len(states)} runs, {seeds} seed{'s' if seeds > 1 else ''} per cell: {counts}."
    yield ""
    for run in report["runs"]:
        if "reason" in run:
            yield f"- {code(run['cell'])}, seed {run['seed']}: {run['state']}: {escaped(run['reason'])}"
    if any("reason" in run for run in report["runs"]):
        yield ""


def _measure(report: Report, measure: MeasureRecord) -> Iterator[str]:
    better = {True: "higher is better", False: "lower is better", None: "neither is better"}
    yield f"## {escaped(measure['name'])}"
    yield ""
    yield f"{better[measure['higher_is_better']].capitalize()}. Mean over seeds with 95 % interval."
    yield ""
    yield "| cell | seeds | mean | difference from the baseline | p | p, corrected | seconds |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for cell in report["study"]["cells"] or _cells(report):
        mean, found = measure["cells"].get(cell), measure["differences"].get(cell)
        seconds = [run["seconds"] for run in report["runs"] if run["cell"] == cell]
        known = [each for each in seconds if each is not None]
        row = [
            f"{code(cell)}{' (baseline)' if cell == report['baseline'] else ''}",
            str(mean[0]) if mean else "0",
            _interval(*mean[1:]) if mean else "-",
            _interval(found["difference"], found["low"], found["high"], "+") if found else "-",
            _p(found["p"]) if found else "-",
            _p(found["corrected"]) if found else "-",
            f"{sum(known) / len(known):,.0f}" if known else "-",
        ]
        yield f"| {' | '.join(row)} |"
    yield ""


def _cells(report: Report) -> list[str]:
    return list(dict.fromkeys(run["cell"] for run in report["runs"]))


def _provenance(report: Report) -> Iterator[str]:
    known = [run["provenance"] for run in report["runs"] if run["provenance"]]
    commits = sorted({str(each["package"]["commit"]) for each in known})
    machines = sorted({str(each["machine"]["processor"]) for each in known})
    yield f"Base recipe {code(report['study']['base'])}; changes of all cells: "
    changes = [f"{key}={value}" for key, value in report["study"]["set"].items()]
    yield (", ".join(map(code, changes)) or "none") + "."
    if known:
        yield f"Trained on {escaped(', '.join(machines))} at commit {escaped(', '.join(commits))}."
    yield "Seconds are those of training, summed over stages and processes; a shared stage counts in every run."
    yield "The p values are from t-tests paired by seed; the corrected values use Holm's method over all comparisons."


def _plot(report: Report, measure: MeasureRecord, folder: Path) -> str | None:
    """Plot a measure per language and cell (mean and range over seeds), and return the file's name.

    Returns None with fewer than two languages.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    values: dict[str, dict[str, list[float]]] = {}
    for run in report["runs"]:
        for language, value in run["languages"].get(measure["name"], {}).items():
            values.setdefault(run["cell"], {}).setdefault(language, []).append(value)
    languages = list(dict.fromkeys(each for cell in values.values() for each in cell))
    if len(languages) < 2:
        return None
    figure, axes = pyplot.subplots(figsize=(1.2 + 0.7 * len(languages), 3.6), layout="constrained")
    for number, (cell, found) in enumerate(values.items()):
        known = [language for language in languages if language in found]
        places = [languages.index(each) + 0.8 * (number + 0.5) / len(values) for each in known]
        means = [sum(found[each]) / len(found[each]) for each in known]
        spread = [
            [mean - min(found[each]) for mean, each in zip(means, known, strict=True)],
            [max(found[each]) - mean for mean, each in zip(means, known, strict=True)],
        ]
        axes.errorbar(places, means, yerr=spread, fmt="o", markersize=4, label=cell, capsize=2)
    axes.set_xticks([number + 0.4 for number in range(len(languages))], languages)
    axes.set_title(measure["name"], fontsize=10)
    axes.legend(fontsize=8, loc="best")
    axes.grid(axis="y", alpha=0.3)
    name = f"{slug(measure['name'])}.png"
    figure.savefig(folder / name, dpi=120)
    pyplot.close(figure)
    return name


def _number(value: float) -> str:
    return f"{value:.4g}"


def _interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    text = f"{value:{sign}.4g}"
    return text if low is None or high is None else f"{text} [{low:{sign}.4g}, {high:{sign}.4g}]"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
