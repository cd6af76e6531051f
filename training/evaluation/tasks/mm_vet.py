"""MM-Vet: open questions that need several abilities, graded by a judge.

Source: MM-Vet (2308.02490). The default grades each answer five times, as the benchmark's evaluator does, and gives
the spread over the five runs next to the score. That evaluator grades 0 if the judge fails five times; here
the answer is left out and counted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.files import write_json
from ..judges.rubric import Case
from ..judges.rubrics import MMVET, MMVET_STRICT
from ..protocol import Loaded, Picture, Place, Request, Scored, Selection
from ..public import UNSEEN, RowPictures, Split, loaded
from ..results import Row
from ..scoring.mmvet import CAPABILITIES, MmvetRow, mmvet_score
from .judged import Judged

REPOSITORY = "lmms-lab/MMVet"
COLUMNS = ("question_id", "image", "question", "answer", "capability")
ABILITIES = {
    "rec": "recognition",
    "ocr": "reading",
    "know": "knowledge",
    "gen": "writing",
    "spat": "places in the picture",
    "math": "mathematics",
}
RUNS = {"paper": 5, "strict": 1}
# As in LLaVA.
MAX_NEW_TOKENS = 1024


class MmVet(Judged):
    """218 English questions, each labelled with the abilities it needs."""

    name = "mm_vet"
    title = "MM-Vet"
    contamination = UNSEEN
    protocols = {
        "paper": "MM-Vet (2308.02490): few-shot grading in a table, five runs",
        "strict": "this package: reasons first, each text in a place of its own, one run; asked as paper",
    }
    rubrics = {"paper": MMVET, "strict": MMVET_STRICT}
    parts = {"ability": "by ability", "combination": "by combination of abilities"}
    metrics = {
        "score": {"title": "grade", "higher_is_better": True, "percent": True},
        "spread": {
            "title": "standard deviation over runs",
            "higher_is_better": None,
            "percent": True,
        },
    }
    metric = "score"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.runs = RUNS[self.protocol]
        self.subsets = {"ability/all": "all"}
        self.subsets |= {f"ability/{name}": title for name, title in ABILITIES.items()}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": "{question}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            "judge_runs": self.runs,
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS, "image")
        requests: dict[str, Request] = {}
        places: dict[str, tuple[Split, int]] = {}
        pictures = split.picture_names()
        for number, row in split.rows():
            own, question, answer, capability = (
                split.text(number, row, each)
                for each in ("question_id", "question", "answer", "capability")
            )
            needed = sorted(each.strip() for each in capability.split(","))
            if own in requests or not set(needed) <= set(CAPABILITIES):
                raise ValueError(
                    f"{split.place}: row {number}: expected a unique question_id and a capability of "
                    f"{', '.join(CAPABILITIES)}, found {own!r} and {capability!r}"
                )
            combination = f"combination/{'_'.join(needed)}"
            self.subsets = {
                **self.subsets,
                combination: " + ".join(ABILITIES[each] for each in needed),
            }
            places.setdefault(pictures[number], (split, number))
            requests[own] = Request(
                id=own,
                language="en",
                content=(Picture(pictures[number]), question),
                max_new_tokens=MAX_NEW_TOKENS,
                item=pictures[number],
                answer_language="en",
                subset=combination,
                expected=answer,
                about={"abilities": tuple(needed)},
            )
        return loaded(selection, split, list(requests.values()), RowPictures(places), name)

    def cases(self, request: Request, text: str) -> list[Case]:
        # The evaluator puts these spaces around the two words.
        reference = request.expected.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
        fields = {"question": request.text, "reference": reference, "answer": text}
        return [Case(self.rubric, fields, sample=run) for run in range(self.runs)]

    def values(self, request: Request, judged: Sequence[Any]) -> Mapping[str, float | None]:
        runs = {f"run_{run}": grade for run, grade in enumerate(judged, 1)}
        return {"score": sum(judged) / len(judged), "spread": None, **runs}

    def belongs(self, request: Request, subset: str) -> bool:
        part, _, name = subset.partition("/")
        if part == "combination":
            return subset == request.subset
        return name == "all" or name in request.about["abilities"]

    def rows(
        self,
        scored: Sequence[Scored],
        metric: str,
        subset: str,
        run: str,
        groups: Mapping[str, Sequence[str]],
        seed: int,
    ) -> list[Row]:
        if metric != "spread":
            return super().rows(scored, metric, subset, run, groups, seed)
        names = [f"run_{number}" for number in range(1, self.runs + 1)]
        graded = [
            MmvetRow(
                one.request.id,
                one.request.about["abilities"],
                [one.score.values[name] for name in names],
            )
            for one in scored
            if one.score.values["score"] is not None
        ]
        if self.runs == 1 or not graded:
            return []
        spread = mmvet_score(graded)["std"]
        assert spread is not None
        place = Place(self.key, subset, run, metric, None)
        failed = len(scored) - len(graded)
        return [
            place.row(name, spread / 100, None, None, len(graded), failed)
            for name in ("en", *groups)
        ]

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the file for the benchmark's own evaluator."""
        path = folder / f"{self.key}.json"
        write_json(path, {one.request.id: one.answer.text for one in scored})
        return [path]
