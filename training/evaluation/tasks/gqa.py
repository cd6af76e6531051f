"""GQA: short answers about scenes, on the balanced questions of testdev.

Source: GQA (1902.09506), eval.py, which wants an exact match; asked and converted as LLaVA does
(convert_gqa_for_eval.py: lower case, no full stop at the end).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..protocol import Loaded, Picture, Request, Scored, Selection
from ..public import MAX_NEW_TOKENS, MIX, SHORT, RowPictures, Split, export_json, loaded
from ..scoring.short_answers import gqa_prediction
from .short_answers import ShortAnswers

REPOSITORY, REVISION = "lmms-lab/GQA", "6ac3999af690e1f5631e2bf1efcf51e9a9afee4b"


class Gqa(ShortAnswers):
    """Scenes, objects and their relations, 12,578 questions about 398 pictures."""

    name = "gqa"
    title = "GQA"
    contamination = (
        f"{MIX} has 72,000 questions of the train split, so the way of answering was seen; the pictures of "
        "testdev are others."
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
                    f"{questions.place}: row {number}: answer: expected a text, found none"
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
        return loaded(selection, questions, requests, RowPictures(places), name, [images])

    def parsed(self, text: str) -> str:
        return gqa_prediction(text)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the predictions for eval.py, which needs every question of the split."""
        entries = [
            {"questionId": one.request.id, "prediction": gqa_prediction(one.answer.text)}
            for one in scored
        ]
        return [export_json(folder, self.key, entries)]
