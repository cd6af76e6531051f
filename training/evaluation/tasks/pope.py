"""POPE: is an object in the picture, yes or no, in three sets of questions of growing difficulty.

Source: POPE (2305.10355), evaluate.py; asked as LLaVA asks. The paper's table shows the F1 of each set, and
LLaVA's shows the mean of the three. Yes is the positive class.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.files import write_text
from ...inference.generation import Answer
from ..protocol import Loaded, Picture, Place, Request, Score, Scored, Selection, Task
from ..public import MAX_NEW_TOKENS, MIX, SHORT, RowPictures, Split, loaded
from ..results import Row
from ..scoring.intervals import Interval, mean_of_ratios
from ..scoring.yes_no_public import YES_NO_PARSERS

REPOSITORY, REVISION = "lmms-lab/POPE", "4db1276663dfa5eb8ad16a52d24c31a09e470896"
COLUMNS = ("question_id", "question", "answer", "image_source", "image")
SETS = ("random", "popular", "adversarial")
# Metric -> (numerator, denominator). Both are summed over the counts that `_counts` returns.
RATIOS = {
    "f1": lambda c: (2 * c["tp"], c["said"] + c["yes"]),
    "precision": lambda c: (c["tp"], c["said"]),
    "recall": lambda c: (c["tp"], c["yes"]),
    "accuracy": lambda c: (c["right"], 1),
    "yes_rate": lambda c: (c["said"], 1),
    "false_yes": lambda c: (c["said"] - c["tp"], 1 - c["yes"]),
}


class Pope(Task):
    """Object hallucination: the F1 of yes, over questions of which half have the answer yes."""

    name = "pope"
    title = "POPE"
    contamination = (
        f"{MIX} has pictures of COCO train2017, which holds most of val2014, where POPE's 500 are from: a "
        "picture may have been seen, its questions not."
    )
    protocols = {
        "paper": "POPE (2305.10355), evaluate.py: an answer without No, not or no is a yes",
        "strict": "as paper, but an answer that says neither yes nor no in ten languages is wrong",
    }
    subsets = {name: name for name in SETS} | {"mean": "mean of the sets"}
    metrics = {
        "f1": {"title": "F1", "higher_is_better": True, "percent": True},
        "accuracy": {"title": "accuracy", "higher_is_better": True, "percent": True},
        "precision": {"title": "precision", "higher_is_better": True, "percent": True},
        "recall": {"title": "recall", "higher_is_better": True, "percent": True},
        "yes_rate": {"title": "share of yes", "higher_is_better": None, "percent": True},
        "false_yes": {
            "title": "yes to what is not there",
            "higher_is_better": False,
            "percent": True,
        },
    }
    metric = "f1"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = YES_NO_PARSERS["yes_no_pope" if self.protocol == "paper" else "yes_no"]

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
        }

    def load(self, selection: Selection) -> Loaded:
        names = [selection.split] if selection.split else list(SETS)
        requests: list[Request] = []
        places: dict[str, tuple[Split, int]] = {}
        splits: list[Split] = []
        for name in names:
            split = Split(selection, REPOSITORY, REVISION, "Full", name, COLUMNS, "image")
            splits.append(split)
            for number, row in split.rows():
                if row["answer"] not in ("yes", "no"):
                    raise ValueError(
                        f"{split.place}: row {number}: answer: expected yes or no, found "
                        f"{row['answer']!r}"
                    )
                places.setdefault(row["image_source"], (split, number))
                requests.append(
                    Request(
                        id=f"{name}/{row['question_id']}",
                        language="en",
                        content=(Picture(row["image_source"]), row["question"] + SHORT),
                        max_new_tokens=MAX_NEW_TOKENS,
                        item=row["image_source"],
                        subset=name,
                        expected=row["answer"],
                        about={"question": row["question"]},
                    )
                )
        first, *others = splits
        return loaded(selection, first, requests, RowPictures(places), ", ".join(names), others)

    def score(self, request: Request, answer: Answer) -> Score:
        said = self.parser(answer.text)
        return Score({"accuracy": float(said == request.expected)}, said, said is None)

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        """Return each metric of each set, then its mean over the sets. English is the only language."""
        sets = {name: [one for one in scored if one.request.subset == name] for name in SETS}
        sets = {name: own for name, own in sets.items() if own}
        chosen = {name: {name: own} for name, own in sets.items()}
        if len(sets) == len(SETS):
            chosen["mean"] = sets
        return [
            row
            for metric in self.metrics
            for subset, own in chosen.items()
            for row in self._rows(own, metric, subset, run, groups, seed)
        ]

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write a JSON Lines file for each set, for evaluate.py (`answer`) and LLaVA's eval_pope.py (`text`)."""
        written = []
        for name in SETS:
            lines = [
                json.dumps(
                    {
                        "question_id": one.request.id.partition("/")[2],
                        "question": one.request.about["question"],
                        "prompt": one.request.text,
                        "answer": one.answer.text,
                        "text": one.answer.text,
                    }
                )
                for one in scored
                if one.request.subset == name
            ]
            if lines:
                written.append(folder / f"{self.key}.{name}.jsonl")
                write_text(written[-1], "\n".join(lines) + "\n")
        return written

    def _rows(
        self,
        sets: Mapping[str, Sequence[Scored]],
        metric: str,
        subset: str,
        run: str,
        groups: Mapping[str, Sequence[str]],
        seed: int,
    ) -> Iterator[Row]:
        parts = {
            name: [(one.request.item, *RATIOS[metric](_counts(one))) for one in own]
            for name, own in sets.items()
        }
        # A ratio with denominator 0 is 0, as in the script.
        known = all(any(part[2] for part in own) for own in parts.values())
        interval = mean_of_ratios(parts, seed=seed) if known else Interval(0.0, None, None)
        n = sum(map(len, sets.values()))
        failures = sum(one.score.unparsable for own in sets.values() for one in own)
        place = Place(self.key, subset, run, metric, self.metrics[metric]["higher_is_better"])
        for language in ("en", *groups):
            yield place.row(language, *interval, n, failures)


def _counts(one: Scored) -> dict[str, int]:
    said, label = one.score.parsed == "yes", one.request.expected == "yes"
    right = one.score.parsed == one.request.expected
    return {"tp": int(said and label), "said": int(said), "yes": int(label), "right": int(right)}
