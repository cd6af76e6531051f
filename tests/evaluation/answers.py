"""A made-up task for tests of code that knows no task by name, and results of the task."""

from collections.abc import Sequence

from PIL import Image

from maya_vlm.training.common.provenance import provenance
from maya_vlm.training.evaluation.measures import MEASURES, measures
from maya_vlm.training.evaluation.protocol import (
    Loaded,
    Picture,
    Request,
    Score,
    Scored,
    Selection,
    Task,
)
from maya_vlm.training.evaluation.records import chance_rows
from maya_vlm.training.evaluation.results import FORMAT, Results
from maya_vlm.training.inference.generation import Answer


class Colours:
    """Squares, one colour for each key."""

    def load(self, key: str) -> Image.Image:
        return Image.new("RGB", (32, 32), key)


class Letters(Task):
    """Multiple choice and a number of two parts, in two languages."""

    name = "letters"
    title = "Letters"
    protocols = {"plain": "made up"}
    parts = {"old": "old pictures", "new": "new pictures"}
    subsets = {"old/choice": "choice", "new/choice": "choice"}
    sheet = ("old/choice",)

    def load(self, selection: Selection) -> Loaded:
        requests = [
            Request(
                id=f"{language}-{colour}",
                language=language,
                content=(Picture(colour), "A or B?"),
                max_new_tokens=4,
                item=colour,
                answer_language=language,
                subset=f"{'old' if colour != 'blue' else 'new'}/choice",
                expected="A",
                chance=0.5,
            )
            for language in ("en", "hi")
            for colour in ("red", "lime", "blue")
        ]
        return Loaded(
            requests,
            Colours(),
            {
                "name": "letters",
                "revision": "0" * 40,
                "files_sha256": None,
                "split": "test",
                "styles": [],
                "images": 3,
                "items": {"old": 2, "new": 1},
                "requests": len(requests),
            },
            ["en", "hi"],
        )

    def score(self, request: Request, answer: Answer) -> Score:
        parsed = answer.text if answer.text in ("A", "B") else None
        return Score({"accuracy": float(parsed == request.expected)}, parsed, parsed is None)


def scored(task: Task, loaded: Loaded, texts: Sequence[str]) -> list[Scored]:
    """Return requests with these answers, scored."""
    return [
        Scored(request, answer, task.score(request, answer))
        for request, answer in zip(
            loaded.requests, (Answer(text, len(text), True) for text in texts), strict=True
        )
    ]


def results_of(runs: dict[str, Sequence[str]], weights_sha256: str | None = None) -> Results:
    """Return results of the task `letters`: run -> its six answers."""
    task = Letters()
    loaded = task.load(Selection())
    groups = {"all": ["en", "hi"]}
    rows = chance_rows(task, loaded.requests)
    for run, texts in runs.items():
        given = scored(task, loaded, texts)
        rows += task.aggregate(given, run, groups, 0) + measures(task, given, run, groups, 0)
    return {
        "format": FORMAT,
        "model": {
            "name": "tiny",
            "revision": None,
            "weights_sha256": weights_sha256,
            "model_type": "maya",
            "text_model": "cohere",
            "vision_model": "siglip_vision_model",
            "parameters": 4321,
            "image_tokens": 9,
            "dtype": "float32",
            "device": "cpu",
        },
        "tasks": {
            "letters": {
                "title": task.title,
                "version": task.version,
                "protocol": task.protocol,
                "source": "made up",
                "asked": task.describe(),
                "contamination": task.contamination,
                "subsets": dict(task.subsets),
                "parts": dict(task.parts),
                "metrics": {**task.metrics, **MEASURES},
                "metric": task.metric,
                "languages": ["en", "hi"],
                "groups": groups,
                "data": loaded.data,
                "settings": {"baselines": ["blind"], "baseline_items": 50, "decoding": "greedy"},
                **provenance(),
                "seconds": {"total": 1.0},
            }
        },
        "rows": rows,
    }
