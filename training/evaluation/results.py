"""The format of evaluation results: `results.json`, documented by the types below.

Cards, tables and plots are made from this file; no number in them is typed. They iterate over its rows and
know no benchmark by name. The file is published with the model, so it holds no path and no host name.
"""

import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from ..common.files import write_bytes
from ..common.provenance import Machine
from ..common.reading import read_json
from ..common.shapes import check_shape

FORMAT = "maya-results-2"


class ModelInfo(TypedDict):
    """The evaluated model; a value is None if it is not known, as for a model behind a server."""

    name: str  # the folder's name, the repository's id, or the name on a server
    revision: str | None  # the Hub commit, if the model is from the Hub
    weights_sha256: str | None  # hash over the safetensors files; None if they are not local
    model_type: str | None
    text_model: str | None
    vision_model: str | None
    parameters: int | None
    image_tokens: int | None  # of every picture; None for models in which the number varies
    dtype: str | None
    device: str | None


def known_by_name(name: str) -> ModelInfo:
    """Return the info of a model about which only the name is known."""
    return {
        "name": name,
        "revision": None,
        "weights_sha256": None,
        "model_type": None,
        "text_model": None,
        "vision_model": None,
        "parameters": None,
        "image_tokens": None,
        "dtype": None,
        "device": None,
    }


class DataInfo(TypedDict):
    """The dataset of a task."""

    name: str
    revision: str | None
    files_sha256: str | None  # hash over the dataset's files; None if they are not local
    split: str
    styles: list[str]
    images: int
    items: dict[str, int]  # subset, or the part of subsets before "/" -> independent items
    requests: int


class MetricInfo(TypedDict):
    """The kind of a metric's values."""

    title: str
    higher_is_better: bool | None  # None: neither, such as a length
    percent: bool  # values from 0 to 1, shown as percent


class Withheld(TypedDict):
    """A score that is left out because too many of its judgements failed."""

    run: str
    subset: str
    language: str
    failed: int
    asked: int  # number of answers to judge


class JudgeInfo(TypedDict):
    """The judge of a task's answers, and its failures."""

    id: str
    version: str | None  # commit or hash of the judge's weights, if known
    served: list[str]  # names of the models in the servers' responses
    rubric: str  # with its version
    rubric_source: str
    failed_share: float  # there is no score if a larger share of judgements failed
    failed: dict[str, list[str]]  # run -> requests whose judgement failed
    withheld: list[Withheld]


class TaskInfo(TypedDict):
    """The settings and provenance of a task.

    Each task has its own, since a file may hold several evaluations of the same weights.
    """

    title: str
    version: str
    protocol: str
    source: str  # the paper or script that the protocol follows
    asked: dict[str, Any]  # prompts, parser and stop texts of the protocol
    contamination: str
    subsets: dict[str, str]  # in the order of tables, `part/column` or one word -> title
    parts: dict[str, str]  # the part before "/" in subsets -> title
    metrics: dict[str, MetricInfo]
    metric: str  # the headline metric, which tables show
    languages: list[str]
    groups: dict[str, list[str]]  # name -> the languages to average over
    data: DataInfo
    settings: dict[str, Any]  # decoding, caps, limits, seeds, sizes of the baselines
    created: str
    package: dict[str, str | bool | None]  # "version", "commit", "modified"
    machine: Machine
    versions: dict[str, str]
    seconds: dict[str, float]
    judge: NotRequired[JudgeInfo]  # for tasks whose answers a model grades


class Row(TypedDict):
    """One number.

    `run` is "model", "blind" (no picture), "shuffled" (another's picture) or "chance"; `language` is a BCP-47 code or
    a name of the task's `groups`.
    """

    task: str
    subset: str
    run: str
    language: str
    metric: str
    higher_is_better: bool | None
    value: float
    low: float | None  # 95 % interval
    high: float | None
    n: int  # answers
    failures: int  # unparsable answers (also in n) and failed judgements (not in n)


class Results(TypedDict):
    """The whole file."""

    format: str
    model: ModelInfo
    tasks: dict[str, TaskInfo]
    rows: list[Row]


def write_results(results: Results, path: Path) -> None:
    """Write a results file whole or not at all, with one line for each row."""
    head = {name: value for name, value in results.items() if name != "rows"}
    options: dict[str, Any] = {"ensure_ascii": False, "allow_nan": False}
    rows = ",\n".join("  " + json.dumps(row, **options) for row in results["rows"])
    text = json.dumps(head, indent=1, **options).removesuffix("\n}")
    write_bytes(path, f'{text},\n "rows": [\n{rows}\n ]\n}}\n'.encode())


def read_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        FileNotFoundError, ValueError: in one line: the file does not exist or is malformed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}: run `maya evaluate` on the model first")
    content = read_json(path)
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{path}: expected the format {FORMAT!r}, found {found!r}: run `maya evaluate` again"
        )
    check_shape(content, _shape(Results), str(path))
    for name, info in content["tasks"].items():
        if "judge" in info:
            check_shape(info["judge"], _shape(JudgeInfo), str(path), f"tasks.{name}.judge")
        if info["metric"] not in info["metrics"]:
            raise ValueError(
                f"{path}: tasks.{name}.metric: expected one of {', '.join(info['metrics'])}, found "
                f"{info['metric']!r}: run `maya evaluate` again"
            )
    for number, row in enumerate(content["rows"]):
        task = content["tasks"].get(row["task"])
        if task is None or row["subset"] not in (*task["subsets"], "all"):
            raise ValueError(
                f"{path}: rows[{number}]: expected a task and subset of this file, found "
                f"{row['task']!r} and {row['subset']!r}: run `maya evaluate` again"
            )
    return content


def check_model(value: Any, where: str) -> None:
    """Raise ValueError, naming `where` and the key, if the value is not a ModelInfo."""
    check_shape(value, _shape(ModelInfo), where)


def _shape(hint: Any) -> Any:
    """Return the shape, for `check_shape`, of a type of this module."""
    if is_typeddict(hint):
        kinds = get_type_hints(hint).items()
        return {name: _shape(kind) for name, kind in kinds if name in hint.__required_keys__}
    if isinstance(hint, UnionType):
        return tuple(None if kind is NoneType else kind for kind in get_args(hint))
    if get_origin(hint) is list:
        return [_shape(get_args(hint)[0])]
    if get_origin(hint) is dict:
        return {...: _shape(get_args(hint)[1])}
    return object if hint is Any else hint
