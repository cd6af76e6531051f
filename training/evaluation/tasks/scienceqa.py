"""ScienceQA: multiple choice from school books, with and without a picture.

Source: ScienceQA (2209.09513) and LLaVA, llava/eval/eval_science_qa.py. LLaVA's published number is the
accuracy over the questions with a picture. The dataset lacks the ids of the official files, so no file is
written for their scripts.
"""

from typing import Any

from ...inference.generation import Answer
from ..protocol import Loaded, Picture, Request, Score, Selection, Task
from ..public import LETTER, MAX_NEW_TOKENS, UNSEEN, RowPictures, Split, loaded
from ..scoring.choices import LATIN, letters_for
from ..scoring.choices_public import CHOICE_PARSERS

REPOSITORY, REVISION = "lmms-lab/ScienceQA", "69dd4d6b67373d38f96a5badd5d24d0eb5bcdc50"
COLUMNS = ("question", "choices", "answer", "hint", "image")


class ScienceQa(Task):
    """School science: 4,241 questions, 2,017 with a picture."""

    name = "scienceqa"
    title = "ScienceQA"
    contamination = UNSEEN
    protocols = {
        "llava": "ScienceQA (2209.09513), LLaVA, llava/eval/eval_science_qa.py",
        "lmms_eval": "lmms-eval 0.7.3, tasks/scienceqa/utils.py",
        "strict": "as llava, but an answer is read by this package's parser, in any language",
    }
    subsets = {"image": "with a picture", "text": "without one", "all": "all"}

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        strict = self.protocol == "strict"
        self.parser = CHOICE_PARSERS["choice" if strict else f"choice_{self.protocol}_scienceqa"]

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"Context: {{hint}}\n{{question}}\nA. ...\nB. ...{LETTER}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        split = Split(selection, REPOSITORY, REVISION, "ScienceQA-FULL", name, COLUMNS, "image")
        pictured = split.has_picture()
        requests = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            choices, right = row["choices"], row["answer"]
            if not choices or right is None or not 0 <= right < len(choices):
                raise ValueError(
                    f"{split.place}: row {number}: answer: expected the index of one of "
                    f"{len(choices or [])} choices, found {right!r}"
                )
            # The dataset has no ids, so a row's id is its index.
            key = f"{name}/{number}"
            options = letters_for(choices)
            context = f"Context: {row['hint']}\n" if row["hint"] else ""
            listed = "".join(f"\n{letter}. {text}" for letter, text in options.items())
            content: tuple[str | Picture, ...] = (f"{context}{row['question']}{listed}{LETTER}",)
            if pictured[number]:
                places[key] = (split, number)
                content = (Picture(key), *content)
            requests.append(
                Request(
                    id=key,
                    language="en",
                    content=content,
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=key,
                    subset="image" if pictured[number] else "text",
                    expected=LATIN[right],
                    about={"options": options},
                    chance=1 / len(choices),
                )
            )
        return loaded(selection, split, requests, RowPictures(places), name)

    def score(self, request: Request, answer: Answer) -> Score:
        letter = self.parser(answer.text, request.about["options"]).letter
        return Score({"accuracy": float(letter == request.expected)}, letter, letter is None)
