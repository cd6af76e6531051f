"""TextVQA: short answers about text in photographs, compared with those of ten annotators.

Source: TextVQA (1904.08920), scored by LLaVA's m4c_evaluator.py, as EvalAI does. LLaVA's prompt holds the words
that an OCR system found. The default does the same, since LLaVA's published numbers do; the protocol `lmms_eval`
asks without OCR. Numbers of the two protocols cannot be compared.
"""

from typing import Any

from ..protocol import Loaded, Picture, Request, Selection
from ..public import MIX, SHORT, RowPictures, Split, loaded
from .people import PeoplesAnswers, peoples_answers

REPOSITORY, REVISION = "lmms-lab/textvqa", "9c0699cd19768ac5ab97568f6b3cbac4c0062884"
COLUMNS = ("image_id", "question_id", "question", "answers", "ocr_tokens", "image")
# As in LLaVA's model_vqa_loader.py; lmms-eval sets no limit.
MAX_NEW_TOKENS = 128


class TextVqa(PeoplesAnswers):
    """Text in photographs: 5,000 questions of the validation set."""

    name = "textvqa"
    title = "TextVQA"
    contamination = (
        f"{MIX} has 22,000 captions (TextCaps) of pictures of the train split; those of the validation set are "
        "others."
    )
    protocols = {
        "llava": "LLaVA (2310.03744), m4c_evaluator.py, with the words of a text recogniser in the prompt",
        "lmms_eval": "lmms-eval 0.7.3, tasks/textvqa: without these words, the question capitalised",
    }

    def describe(self) -> dict[str, Any]:
        words = "\nReference OCR token: {ocr_tokens}" if self.protocol == "llava" else ""
        return {
            "prompt": f"{{question}}{words}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "validation"
        split = Split(selection, REPOSITORY, REVISION, "default", name, COLUMNS, "image")
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            question, picture = (split.text(number, row, each) for each in ("question", "image_id"))
            places.setdefault(picture, (split, number))
            requests.append(
                Request(
                    id=str(row["question_id"]),
                    language="en",
                    content=(Picture(picture), self._question(question, row["ocr_tokens"]) + SHORT),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture,
                    answer_language="en",
                    expected=peoples_answers(split, number, row["answers"], name),
                )
            )
        return loaded(selection, split, requests, RowPictures(places), name)

    def _question(self, question: str, words: list[str | None] | None) -> str:
        if self.protocol == "lmms_eval":
            return question.capitalize()
        return f"{question}\nReference OCR token: {', '.join(word or '' for word in words or ())}"

    def entry(self, request: Request, text: str) -> dict[str, Any]:
        return {"question_id": int(request.id), "answer": text}
