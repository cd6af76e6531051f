"""The numbers reported by papers, from published.yaml, and whether they are comparable with a result."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ...common.reading import read_yaml
from ...common.shapes import check_shape
from ..results import TaskInfo

FILE = Path(__file__).with_name("published.yaml")


class Source(TypedDict):
    """A paper or repository that reports numbers."""

    title: str
    harness: str  # the owner of the prompts, parser and metric


class Published(TypedDict):
    """One table of one benchmark in one source.

    Args:
        benchmark: title of the benchmark.
        task: name of this package's task.
        metric: description of the numbers.
        source: a key of `sources`.
        judge: the judge model; absent if there was no judge.
        alike: task keys (`name` or `name:protocol`) that ask and score in the same way.
        note: other differences.
        scores: model -> language, group of languages or other column -> number, as printed.
    """

    benchmark: str
    task: str
    metric: str
    source: str
    judge: NotRequired[str]
    alike: list[str]
    note: NotRequired[str]
    scores: dict[str, dict[str, float]]


_SHAPE = {
    "sources": {...: {"title": str, "harness": str}},
    "tables": [
        {
            "benchmark": str,
            "task": str,
            "metric": str,
            "source": str,
            "alike": [str],
            "scores": {...: {...: float}},
        }
    ],
}


@lru_cache(maxsize=1)
def published() -> tuple[dict[str, Source], list[Published]]:
    """Return the sources and the tables of published.yaml.

    Raises:
        ValueError: the file is malformed; the message names the place.
    """
    content: Any = read_yaml(FILE)
    check_shape(content, _SHAPE, str(FILE.name))
    for number, table in enumerate(content["tables"]):
        if table["source"] not in content["sources"]:
            raise ValueError(
                f"{FILE.name}: tables[{number}].source: expected one of "
                f"{', '.join(content['sources'])}, found {table['source']!r}"
            )
    return content["sources"], content["tables"]


def warning(table: Published, key: str, info: TaskInfo | None) -> str:
    """Return why a table's numbers are not comparable with a result, "" if they are.

    Args:
        key: key of the result's task, with its protocol.
        info: the task's part of the results; None if there is no result of the benchmark.
    """
    if info is None:
        return ""
    reasons = []
    if key not in table["alike"]:
        reasons.append(f"prompts or scoring differ from {key}")
    if table.get("judge"):
        reasons.append(f"the judge is {table['judge']}")
    if info["settings"].get("limit") is not None:
        reasons.append(f"the result covers only {info['data']['images']:,} pictures")
    if info["data"]["revision"] is None:
        reasons.append("the result is on local files, which may hold other questions")
    return "; ".join(reasons)
