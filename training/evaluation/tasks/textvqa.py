"""TextVQA: short answers about text in photographs, each compared with those of ten people.

Source: TextVQA (1904.08920), scored by LLaVA's m4c_evaluator.py, as EvalAI does. LLaVA gives the
model the words that a text recogniser found. The default does so too, since its published numbers are such;
`lmms_eval` asks without them. Numbers of the two are not compared with one another.
"""

from typing import Any

from ...inference.generation import Answer
from ..protocol import Loaded, Picture, Request, Score, Selection, Task
from ..public import SHORT, RowPictures, Split, loaded
from ..scoring.vqa import METRIC, accuracy, processed

REPOSITORY = "lmms-lab/textvqa"
COLUMNS = ("image_id", "question_id", "question", "answers", "ocr_tokens", "image")
# LLaVA's model_vqa_loader.py; lmms-eval sets none of its own.
MAX_NEW_TOKENS = 128


class TextVqa(Task):
    """Reading in photographs, 5,000 questions of the validation set."""

    name = "textvqa"
    title = "TextVQA"
    contamination = (
        "LLaVA-1.5's finetuning data, which PALO and Maya use too, has captions of this "
        "dataset's training pictures (TextCaps)"
    )
    protocols = {
        "llava": "LLaVA (2310.03744), m4c_evaluator.py, with the words of a text recogniser in the prompt",
        "lmms_eval": "lmms-eval 0.7.3, tasks/textvqa: without these words, the question capitalised",
    }
    metrics = {
        "accuracy": {"title": "VQA accuracy", "higher_is_better": True, "percent": True},
    }

    def describe(self) -> dict[str, Any]:
        words = "\nReference OCR token: {ocr_tokens}" if self.protocol == "llava" else ""
        return {
            "prompt": f"{{question}}{words}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            "metric": f"{METRIC} evalai",
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "validation"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS, "image")
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            question, picture = (split.text(number, row, each) for each in ("question", "image_id"))
            if not row["answers"] or None in row["answers"]:
                raise ValueError(
                    f"{split.place}: row {number}: answers: expected those of people, found "
                    f"{row['answers']!r}"
                )
            places.setdefault(picture, (split, number))
            requests.append(
                Request(
                    id=str(row["question_id"]),
                    language="en",
                    content=(Picture(picture), self._question(question, row["ocr_tokens"]) + SHORT),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture,
                    answer_language="en",
                    expected=tuple(row["answers"]),
                )
            )
        return loaded(selection, split, requests, RowPictures(places), name)

    def _question(self, question: str, words: list[str | None] | None) -> str:
        if self.protocol == "lmms_eval":
            return question.capitalize()
        return f"{question}\nReference OCR token: {', '.join(word or '' for word in words or ())}"

    def score(self, request: Request, answer: Answer) -> Score:
        value = accuracy(answer.text, request.expected, "evalai")
        said = processed(answer.text, request.expected, "evalai")
        return Score({"accuracy": value}, said or None, not answer.text.strip())
