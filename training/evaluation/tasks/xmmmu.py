"""xMMMU: college questions of MMMU's validation set in six more languages, multiple choice and open.

Source: MMMU (2311.16502) and Pangea (2410.16153), who translated it and whose prompts these are. A question
about several pictures is left out, counted in `asked`: models are asked about one picture here.
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
COLUMNS = ("id", "question", "options", "answer", "question_type", "image_1")
# The splits.
LANGUAGES = ("ar", "en", "fr", "hi", "id", "ja", "pt")
LETTER = "\nAnswer with the option letter from the given choices directly."
KINDS = {"multiple-choice": "choice", "open": "open"}
MARK = re.compile(r"<image (\d)>")


class Xmmmu(Task):
    """College questions in seven languages, about 300 each and 900 in English."""

    languages = LANGUAGES
    name = "xmmmu"
    title = "xMMMU"
    contamination = f"{UNSEEN} MMMU's validation set is public with its answers since 2023."
    protocols = {
        # MMMU's parser draws a random letter where it finds none; the default reads all languages.
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
            "left out, of several pictures": self.left_out,
        }

    def load(self, selection: Selection) -> Loaded:
        known = in_order(LANGUAGES)
        if selection.split is not None:
            known = chosen_languages([selection.split], known, REPOSITORY)
        splits: dict[str, Split] = {}
        requests: list[Request] = []
        places: dict[str, tuple[Split, int]] = {}
        self.left_out = {}
        for language in chosen_languages(selection.languages, known, REPOSITORY):
            split = Split(selection, REPOSITORY, None, "default", language, COLUMNS, "image_1")
            splits[language] = split
            self.left_out[language] = 0
            pictured = split.has_picture()
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
                marks = set(MARK.findall(text))
                if len(marks) > 1 or marks - {"1"}:
                    self.left_out[language] += 1
                    continue
                key = f"{language}/{row['id']}"
                content: tuple[str | Picture, ...] = (MARK.sub("", text),)
                if pictured[number]:
                    places[key] = (split, number)
                    before, found, behind = text.partition("<image 1>")
                    before, behind = (before, behind) if found else ("", before)
                    content = (before, Picture(key), MARK.sub("", behind))
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


def _texts(cell: str | None) -> list[str] | None:
    """The texts of a list that is written as text; None for what is none."""
    try:
        found = ast.literal_eval((cell or "").replace("\n", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [str(text) for text in found] if isinstance(found, list) else None
