"""VQAv2: short answers, compared with those of ten annotators.

Source: VQAv2 (1612.00837) and the official code of VQA (1505.00468), vqaEval.py; asked as LLaVA asks. Only
the validation set has answers. Published numbers are for test-dev, which the benchmark's server (EvalAI 830)
scores. The server needs the answers to all questions of the split `test`.
"""

from typing import Any, cast

from ..protocol import Loaded, Picture, Request, Selection
from ..public import MAX_NEW_TOKENS, MIX, SHORT, RowPictures, Split, loaded
from ..scoring.vqa import Protocol
from .people import HIDDEN, PeoplesAnswers, peoples_answers

REPOSITORY, REVISION = "lmms-lab/VQAv2", "32665d35052eb4a6d4414851c3c829a72754915a"
COLUMNS = ("question_id", "image_id", "question", "answers", "answer_type", "image")
# The dataset's answer type -> the subset.
KINDS = {"yes/no": "yes_no", "number": "number", "other": "other"}


class VqaV2(PeoplesAnswers):
    """Questions about photographs: 214,354 about 40,504 pictures."""

    name = "vqav2"
    title = "VQAv2"
    contamination = (
        f"{MIX} has 83,000 questions of the train split, and pictures of COCO train2017, which holds most of "
        "val2014, where those of the validation set are from."
    )
    protocols = {
        "official": "VQA (1505.00468), vqaEval.py: nothing is normalised where all ten answers are equal",
        "evalai": "EvalAI's processor, as lmms-eval 0.7.3 and TextVQA use it",
    }
    subsets = {"yes_no": "yes or no", "number": "number", "other": "other", "all": "all"}

    @property
    def rule(self) -> Protocol:
        return cast("Protocol", self.protocol)

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "validation"
        split = Split(selection, REPOSITORY, REVISION, "default", name, COLUMNS, "image")
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            given = [each["answer"] for each in row["answers"] or ()]
            answers, kind = peoples_answers(split, number, given, name), row["answer_type"]
            if kind not in KINDS and name not in HIDDEN:
                raise ValueError(
                    f"{split.place}: row {number}: answer_type: expected one of {', '.join(KINDS)}, found "
                    f"{kind!r}"
                )
            picture = str(row["image_id"])
            places.setdefault(picture, (split, number))
            requests.append(
                Request(
                    id=str(row["question_id"]),
                    language="en",
                    content=(Picture(picture), row["question"] + SHORT),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture,
                    answer_language="en",
                    subset=KINDS.get(kind, "all"),
                    expected=answers,
                )
            )
        return loaded(selection, split, requests, RowPictures(places), name)

    def entry(self, request: Request, text: str) -> dict[str, Any]:
        return {"question_id": int(request.id), "answer": text}
