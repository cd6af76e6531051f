"""VQAv2: short answers, each compared with those of ten people.

Source: VQAv2 (1612.00837) and the official code of VQA (1505.00468), vqaEval.py; asked as LLaVA asks. Only
the validation set has answers: published numbers are of test-dev, which its server scores.
"""

from typing import Any, Literal, cast

from ...inference.generation import Answer
from ..protocol import Loaded, Picture, Request, Score, Selection, Task
from ..public import MAX_NEW_TOKENS, SHORT, RowPictures, Split, loaded
from ..scoring.vqa import METRIC, accuracy, processed

REPOSITORY = "lmms-lab/VQAv2"
COLUMNS = ("question_id", "image_id", "question", "answers", "answer_type", "image")
# The dataset's name of a kind of answer -> the subset.
KINDS = {"yes/no": "yes_no", "number": "number", "other": "other"}


class VqaV2(Task):
    """Questions about photographs, 214,354 about 40,504 pictures."""

    name = "vqav2"
    title = "VQAv2"
    contamination = (
        "LLaVA-1.5's finetuning data, which PALO and Maya use too, has this dataset's "
        "training questions, and most pictures of this validation split"
    )
    protocols = {
        "official": "VQA (1505.00468), vqaEval.py: nothing is normalised where all ten answers are equal",
        "evalai": "EvalAI's processor, as lmms-eval 0.7.3 and TextVQA use it",
    }
    subsets = {"yes_no": "yes or no", "number": "number", "other": "other", "all": "all"}
    metrics = {
        "accuracy": {"title": "VQA accuracy", "higher_is_better": True, "percent": True},
    }

    @property
    def rule(self) -> Literal["official", "evalai"]:
        return cast("Literal['official', 'evalai']", self.protocol)

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "metric": f"{METRIC} {self.rule}",
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "validation"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS, "image")
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            answers = tuple(each["answer"] for each in row["answers"] or ())
            if not answers or row["answer_type"] not in KINDS:
                raise ValueError(
                    f"{split.place}: row {number}: expected answers of people and one of the types "
                    f"{', '.join(KINDS)}, found {len(answers)} and {row['answer_type']!r}"
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
                    subset=KINDS[row["answer_type"]],
                    expected=answers,
                )
            )
        return loaded(selection, split, requests, RowPictures(places), name)

    def score(self, request: Request, answer: Answer) -> Score:
        value = accuracy(answer.text, request.expected, self.rule)
        said = processed(answer.text, request.expected, self.rule)
        return Score({"accuracy": value}, said or None, not answer.text.strip())
