"""xMMMU: college questions of MMMU's validation set in six more languages, multiple choice and open.

Source: MMMU (2311.16502) and Pangea (2410.16153), which has the translations and the prompts. Pictures stand
where the question names them; a chat template may put them before the text, as Maya's do. A question is left
out if its row lacks a picture that it names; the protocol's description counts these questions.
"""

import ast
import re
from typing import Any

from ...inference.generation import Answer
from ..protocol import (
    Loaded,
    Picture,
    Request,
    Score,
    Selection,
    Task,
    chosen_languages,
    in_order,
)
from ..public import MAX_NEW_TOKENS, SHORT, UNSEEN, RowPictures, Split, loaded_in
from ..scoring.choices import letters_for
from ..scoring.choices_public import CHOICE_PARSERS
from ..scoring.mmmu import METRIC, open_is_right, parse_open

REPOSITORY = "neulab/PangeaBench-xmmmu"
IMAGES = tuple(f"image_{number}" for number in range(1, 8))
COLUMNS = ("id", "question", "options", "answer", "question_type", *IMAGES)
# The splits, which are named by BCP-47 codes.
LANGUAGES = ("ar", "en", "fr", "hi", "id", "ja", "pt")
LETTER = "\nAnswer with the option letter from the given choices directly."
KINDS = {"multiple-choice": "choice", "open": "open"}
MARK = re.compile(r"<image ([1-7])>")


class Xmmmu(Task):
    """College questions in seven languages: about 300 in each, 900 in English."""

    languages = LANGUAGES
    name = "xmmmu"
    title = "xMMMU"
    version = "2"
    contamination = f"{UNSEEN} MMMU's validation set is public with its answers since 2023."
    protocols = {
        # MMMU's parser draws a random letter if it finds none; the default reads all languages.
        "strict": "MMMU (2311.16502), Pangea (2410.16153); letters read by this package's parser",
        "mmmu": "as strict, but MMMU's eval/eval_utils.py reads letters; where it guesses, it is wrong",
    }
    subsets = {"choice": "multiple choice", "open": "open", "all": "all"}

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = CHOICE_PARSERS["choice_mmmu" if protocol == "mmmu" else "choice"]
        self.left_out: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question}}\nA. ...\nB. ...{LETTER}",
            "prompt of open questions": f"{{question}}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
            "metric of open questions": METRIC,
            "left out, without a picture that is named": self.left_out,
        }

    def load(self, selection: Selection) -> Loaded:
        known = in_order(LANGUAGES)
        if selection.split is not None:
            known = chosen_languages([selection.split], known, REPOSITORY)
        splits: dict[str, Split] = {}
        requests: list[Request] = []
        places: dict[str, tuple[Split, int, int]] = {}
        self.left_out = {}
        for language in chosen_languages(selection.languages, known, REPOSITORY):
            split = Split(selection, REPOSITORY, None, "default", language, COLUMNS, IMAGES)
            splits[language] = split
            self.left_out[language] = 0
            pictured = list(zip(*map(split.has_picture, range(len(IMAGES))), strict=True))
            for number, row in split.rows():
                kind = KINDS.get(row["question_type"])
                options = _texts(row["options"]) if kind == "choice" else []
                letters = letters_for(options or [])
                if kind is None or (kind == "choice" and row["answer"] not in letters):
                    raise ValueError(
                        f"{split.place}: row {number}: expected the type {' or '.join(KINDS)}, a list of "
                        f"options and the letter of one, found {row['question_type']!r}, "
                        f"{row['options']!r} and {row['answer']!r}"
                    )
                listed = "".join(f"\n{letter}. {text}" for letter, text in letters.items())
                text = f"{row['question']}{listed}{LETTER if kind == 'choice' else SHORT}"
                key = f"{language}/{row['id']}"
                content = _content(text, key, pictured[number][0])
                shown = [part.key for part in content if isinstance(part, Picture)]
                columns = {picture: int(picture.rpartition("/")[2]) - 1 for picture in shown}
                if not all(pictured[number][column] for column in columns.values()):
                    self.left_out[language] += 1
                    continue
                places |= {picture: (split, number, column) for picture, column in columns.items()}
                right = row["answer"]
                requests.append(
                    Request(
                        id=key,
                        language=language,
                        content=content,
                        max_new_tokens=MAX_NEW_TOKENS,
                        item=row["id"],
                        subset=kind,
                        expected=right if kind == "choice" else (_texts(right) or [right]),
                        about={"options": {key: MARK.sub("", own) for key, own in letters.items()}},
                        chance=1 / len(letters) if kind == "choice" else 0.0,
                    )
                )
        return loaded_in(selection, splits, requests, RowPictures(places), ", ".join(splits))

    def score(self, request: Request, answer: Answer) -> Score:
        if request.subset == "open":
            right = open_is_right(parse_open(answer.text), request.expected)
            said = answer.text.strip()
            return Score({"accuracy": float(right and said != "")}, said or None, not said)
        letter = self.parser(answer.text, request.about["options"]).letter
        return Score({"accuracy": float(letter == request.expected)}, letter, letter is None)


def _content(text: str, key: str, pictured: bool) -> tuple[str | Picture, ...]:
    """Return the prompt with pictures at their marks, or with the first picture in front if there are no marks."""
    parts = MARK.split(text)
    if len(parts) == 1 and pictured:
        return Picture(f"{key}/1"), text
    # Every second part is a mark's number.
    content = [Picture(f"{key}/{part}") if place % 2 else part for place, part in enumerate(parts)]
    return tuple(part for part in content if part)


def _texts(cell: str | None) -> list[str] | None:
    """Return the texts of a Python list given as text; None for any other text."""
    try:
        found = ast.literal_eval((cell or "").replace("\n", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(text) for text in found] if isinstance(found, list) else None
