"""Turn `results.json` into parts of cards. No benchmark's name is in the code; it only reads rows."""

from collections.abc import Iterable
from typing import Any

from maya_vlm.training.common.markdown import Markdown, code, escaped
from maya_vlm.training.evaluation.protocol import BASELINES, CHANCE, MODEL
from maya_vlm.training.evaluation.results import Results, Row, TaskInfo
from maya_vlm.training.evaluation.table import group_title, markdown_tables, rows_of

ALL = "all"  # the group of all languages, and the subset of all answers


def sections(results: Results) -> list[dict[str, Any]]:
    """Return for each task its title, an introduction, and tables with titles."""
    return [
        {
            "title": info["title"],
            "intro": _intro(info),
            "tables": [
                {"title": title[:1].upper() + title[1:], "text": Markdown(text)}
                for title, text in markdown_tables(results, task)
            ],
        }
        for task, info in results["tasks"].items()
    ]


def _intro(info: TaskInfo) -> Markdown:
    data, settings = info["data"], info["settings"]
    styles = f" ({', '.join(map(escaped, data['styles']))})" if any(data["styles"]) else ""
    items = ", ".join(
        f"{count:,} {escaped(info['parts'].get(part) or info['subsets'].get(part, part))}"
        for part, count in data["items"].items()
    )
    few = settings["baseline_items"]
    asked = min(few, data["images"]) if few is not None else data["images"]
    return Markdown(
        f"{data['requests']:,} questions about {data['images']:,} pictures of the split "
        f"{code(data['split'])}{styles} of {code(data['name'])}, decoding "
        f"{escaped(settings['decoding'])}"
        + (f"; {items}" if items else "")
        + f". The score is {escaped(info['metrics'][info['metric']]['title'])}."
        + (
            f" The baselines were asked about {asked:,} of the pictures."
            if settings["baselines"]
            else ""
        )
        + _judged(info)
    )


def _judged(info: TaskInfo) -> str:
    """Describe the judge of a task, since scores of other judges are not comparable; "" without a judge."""
    if "judge" not in info:
        return ""
    judge = info["judge"]
    names = ", ".join(map(code, dict.fromkeys([judge["id"], *judge["served"]])))
    version = f" ({code(judge['version'])})" if judge["version"] else ""
    failed = len(judge["failed"].get(MODEL, ()))
    return (
        f" The judge is {names}{version}, asked on {info['created'][:10]} with the rubric "
        f"{code(judge['rubric'])}; of its judgements {failed:,} failed and are left out. A language of which "
        f"more than {100 * judge['failed_share']:g} % failed has no score."
    )


def weaknesses(results: Results) -> list[str]:
    """Return lines about the weaknesses that the numbers show."""
    lines = []
    for task, info in results["tasks"].items():
        rows = rows_of(results, task, info["metric"])
        for subset in info["subsets"]:
            beaten, asked = _beaten([row for row in rows if row["subset"] == subset], info)
            if beaten:
                who = "every language" if len(beaten) == asked else ", ".join(beaten)
                lines.append(
                    f"{subset_title(info, subset)}: in {who} not clearly better than not seeing the "
                    f"picture."
                )
        measured = []
        for metric, measure in info["metrics"].items():
            value = _overall(results, task, metric)
            if value is not None and measure["percent"] and metric != info["metric"]:
                measured.append(f"{100 * value:.1f} % {measure['title']}")
        lines.append(
            f"Of {info['data']['requests']:,} answers to {info['title']}: {', '.join(measured)}."
        )
    return lines


def _beaten(rows: Iterable[Row], info: TaskInfo) -> tuple[list[str], int]:
    """Return the languages whose score is not clearly above a baseline or chance, and the number of all."""
    scores = {(row["run"], row["language"]): row for row in rows}
    languages = [lang for lang in info["languages"] if (MODEL, lang) in scores]
    beaten = []
    for lang in languages:
        rivals = [scores[run, lang]["high"] for run in BASELINES if (run, lang) in scores]
        if (CHANCE, lang) in scores:
            rivals.append(scores[CHANCE, lang]["value"])
        own = scores[MODEL, lang]["low"]
        if own is not None and any(rival is not None and own <= rival for rival in rivals):
            beaten.append(lang)
    return beaten, len(languages)


def _overall(results: Results, task: str, metric: str) -> float | None:
    for row in rows_of(results, task, metric):
        if (row["subset"], row["run"], row["language"]) == (ALL, MODEL, ALL):
            return row["value"]
    return None


def subset_title(info: TaskInfo, subset: str) -> str:
    """Return a subset's title for the start of a sentence: "Naming, concepts held out"."""
    title, part = info["subsets"][subset], info["parts"].get(subset.partition("/")[0], "")
    text = ", ".join(filter(None, (title, part))) or info["title"]
    return text[:1].upper() + text[1:]


def model_index(results: Results, name: str) -> list[dict[str, Any]]:
    """Return the card's `model-index`: one entry for each subset, the mean over languages."""
    entries = []
    for task, info in results["tasks"].items():
        metric = info["metrics"][info["metric"]]
        for row in rows_of(results, task, info["metric"]):
            if (
                row["run"] != MODEL
                or row["language"] != ALL
                or row["subset"] not in info["subsets"]
            ):
                continue
            subset = subset_title(info, row["subset"])
            scale = 100 if metric["percent"] else 1
            entries.append(
                {
                    "task": {"type": "image-text-to-text", "name": subset},
                    "dataset": {
                        "type": info["data"]["name"],
                        "name": info["data"]["name"],
                        "split": info["data"]["split"],
                    },
                    "metrics": [
                        {
                            "type": info["metric"],
                            "name": f"{metric['title']}, {group_title(info, ALL)}",
                            "value": round(scale * row["value"], 2),
                        }
                    ],
                }
            )
    return [{"name": name, "results": entries}]


def languages_of(results: Results) -> list[str]:
    """Return all languages of the questions, in the order of tables."""
    return list(
        dict.fromkeys(lang for info in results["tasks"].values() for lang in info["languages"])
    )
