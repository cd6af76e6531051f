"""GQA: short answers about scenes, on the balanced questions of testdev.

Source: GQA (1902.09506), eval.py, which compares letter by letter; asked and converted as LLaVA does
(convert_gqa_for_eval.py: small letters, no full stop at the end).
"""

from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import MAX_NEW_TOKENS, SHORT, RowPictures, Split, loaded
from ..scoring.short_answers import gqa_prediction
from .short_answers import ShortAnswers

REPOSITORY, REVISION = "lmms-lab/GQA", "6ac3999af690e1f5631e2bf1efcf51e9a9afee4b"


class Gqa(ShortAnswers):
    """Scenes, objects and their relations, 12,578 questions about 398 pictures."""

    name = "gqa"
    title = "GQA"
    contamination = (
        "LLaVA-1.5's finetuning data, which PALO and Maya use too, has this dataset's "
        "training questions, about other pictures"
    )
    protocols = {
        "llava": "GQA (1902.09506), eval.py, after LLaVA's convert_gqa_for_eval.py",
        "lmms_eval": "lmms-eval 0.7.3: equal without case and ASCII punctuation",
    }
    rules = {"llava": "gqa_official", "lmms_eval": "gqa_lmms_eval"}
    metrics = ShortAnswers.metrics | {
        "accuracy": {"title": "exact match", "higher_is_better": True, "percent": True}
    }

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "testdev"
        images, questions = (
            Split(
                selection, REPOSITORY, REVISION, f"{name}_balanced_{kind}", name, columns, picture
            )
            for kind, columns, picture in (
                ("images", ("id", "image"), "image"),
                ("instructions", ("id", "imageId", "question", "answer"), None),
            )
        )
        places = {row["id"]: (images, number) for number, row in images.rows()}
        requests = []
        for number, row in questions.rows():
            if row["imageId"] not in places:
                raise ValueError(
                    f"{questions.place}: row {number}: imageId: expected an id of {images.place}, found "
                    f"{row['imageId']!r}"
                )
            if not row["answer"]:
                raise ValueError(
                    f"{questions.place}: row {number}: answer: expected one, found none"
                )
            requests.append(
                Request(
                    id=row["id"],
                    language="en",
                    content=(Picture(row["imageId"]), row["question"] + SHORT),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=row["imageId"],
                    answer_language="en",
                    expected=row["answer"],
                )
            )
        return loaded(selection, questions, requests, RowPictures(places), name)

    def parsed(self, text: str) -> str:
        return gqa_prediction(text)
