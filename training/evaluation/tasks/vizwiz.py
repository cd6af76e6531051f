"""VizWiz: questions of blind people about pictures they took, compared with the answers of ten annotators.

Source: VizWiz (1802.08218); asked as LLaVA asks, scored as EvalAI does. Only the validation set has answers.
Published numbers are for the test set, which the benchmark's server (EvalAI 2185) scores.
"""

from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import SHORT, UNSEEN, RowPictures, Split, loaded
from .people import HIDDEN, PeoplesAnswers, peoples_answers

REPOSITORY = "lmms-lab/VizWiz-VQA"
COLUMNS = ("question_id", "question", "answers", "category", "image")
SUFFIX = f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}"
# As in LLaVA's model_vqa_loader.py; lmms-eval sets no limit.
MAX_NEW_TOKENS = 128
# The dataset's answer type -> the subset.
KINDS = {"other": "other", "unanswerable": "unanswerable", "yes/no": "yes_no", "number": "number"}


class VizWiz(PeoplesAnswers):
    """Everyday questions of blind people: 4,319 questions, each about its own picture."""

    name = "vizwiz"
    title = "VizWiz"
    contamination = UNSEEN
    # The default is the protocol of LLaVA's and Maya's published numbers.
    protocols = {
        "llava": "LLaVA (2310.03744): the question as it stands; VQA accuracy after EvalAI's processor",
        "lmms_eval": "lmms-eval 0.7.3, tasks/vizwiz_vqa: as llava, but the question capitalised",
    }
    subsets = {
        "other": "other",
        "unanswerable": "unanswerable",
        "yes_no": "yes or no",
        "number": "number",
        "all": "all",
    }

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SUFFIX}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "val"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS, "image")
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            answers, kind = peoples_answers(split, number, row["answers"], name), row["category"]
            if kind not in KINDS and name not in HIDDEN:
                raise ValueError(
                    f"{split.place}: row {number}: category: expected one of {', '.join(KINDS)}, found "
                    f"{kind!r}"
                )
            question, key = (split.text(number, row, each) for each in ("question", "question_id"))
            if self.protocol == "lmms_eval":
                question = question.capitalize()
            places[key] = (split, number)
            requests.append(
                Request(
                    id=key,
                    language="en",
                    content=(Picture(key), question + SUFFIX),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=key,
                    answer_language="en",
                    subset=KINDS.get(kind, "all"),
                    expected=answers,
                )
            )
        return loaded(selection, split, requests, RowPictures(places), name)

    def entry(self, request: Request, text: str) -> dict[str, Any]:
        return {"image": f"{request.id.removesuffix('.jpg')}.jpg", "answer": text}
