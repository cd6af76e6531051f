"""The numbers that papers report, from published.yaml, and whether a result may stand beside them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from ...common.reading import read_yaml
from ...common.shapes import check_shape
from ..results import TaskInfo

FILE = Path(__file__).with_name("published.yaml")


class Source(TypedDict):
    """Where numbers were read."""

    title: str
    harness: str  # whose prompts, parser and metric


class Published(TypedDict):
    """One table of one benchmark in one source.

    Args:
        benchmark: its title.
        task: the name of this package's task.
        metric: what the numbers are.
        source: a key of `sources`.
        judge: the model that scored; absent where none did.
        alike: task keys (`name` or `name:protocol`) that ask and score in the same way.
        note: what else differs.
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
    """The sources and the tables of published.yaml. Raises ValueError, naming the place, for a bad file."""
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
    """Why a table's numbers are not comparable with a result; "" where they are.

    Args:
        key: of the result's task, with its protocol.
        info: of the result; None where there is no result of the benchmark.
    """
    if info is None:
        return ""
    reasons = []
    if key not in table["alike"]:
        reasons.append(f"another way of asking or scoring than {key}")
    if table.get("judge"):
        reasons.append(f"the judge is {table['judge']}")
    if info["settings"].get("limit") is not None:
        reasons.append(f"the result is on {info['data']['images']:,} pictures only")
    if info["data"]["revision"] is None:
        reasons.append("the result is on local files, which may hold other questions")
    return "; ".join(reasons)
