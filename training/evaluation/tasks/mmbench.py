"""MMBench: multiple choice, where each question is asked once for every position of the right option.

Source: MMBench (2307.06281); asked as LLaVA asks, parsed and scored as VLMEvalKit does. Rows of one question
have the indexes base, base + 1,000,000, ...; a question is right if all its rows are. MMBench's server and
LLaVA's table report this number. Of Maya's published numbers, 61.22 is this one and 71.10 is the mean over rows.
Only the server has the answers of the test split.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.files import write_text
from ...inference.generation import Answer
from ..protocol import (
    Loaded,
    Picture,
    Place,
    Request,
    Score,
    Scored,
    Selection,
    Task,
    chosen_languages,
    mean_rows,
)
from ..public import LETTER, MAX_NEW_TOKENS, MIX, RowPictures, Split, loaded_in
from ..results import Row
from ..scoring.choices_public import CHOICE_PARSERS
from ..scoring.mmbench import METRIC, ROTATION

REPOSITORY, REVISION = "lmms-lab/MMBench", "56ba1af8954932c4804bd3f522e05ed96e63b654"
COLUMNS = ("index", "question", "hint", "answer", "A", "B", "C", "D", "image")
# Only the server has this split's answers. The split is asked and exported, without a score.
HIDDEN = "test"
# BCP-47 code -> the dataset's config, and LLaVA's request for a letter in that language.
LANGUAGES = {"en": ("en", LETTER), "zh": ("cn", "\n请直接回答选项字母。")}


class MmBench(Task):
    """Twenty abilities in English and Chinese, on the dev split, whose answers are public."""

    languages = tuple(LANGUAGES)
    name = "mmbench"
    title = "MMBench"
    contamination = (
        f"MMBench is partly made from public sets, COCO and TextVQA among them (2307.06281); {MIX} has pictures of "
        "both."
    )
    protocols = {
        # The default is the protocol of the server and of published tables.
        "circular": "MMBench (2307.06281), VLMEvalKit e8e78f0: all rotations of a question right",
        "vanilla": "as circular, but only the first rotation of each question is asked",
        "strict": "as circular, but an answer is read by this package's parser, in any language",
    }
    metrics = {
        "accuracy": {"title": "accuracy of questions", "higher_is_better": True, "percent": True},
        "per_row": {"title": "accuracy of rows", "higher_is_better": True, "percent": True},
    }

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = CHOICE_PARSERS["choice" if protocol == "strict" else "choice_vlmevalkit"]
        self.incomplete: dict[str, int] = {}

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{hint}}\n{{question}}\nA. ...\nB. ...{LETTER}",
            "its end in Chinese": LANGUAGES["zh"][1],
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
            "metric": f"{METRIC} {self.protocol}",
            **self.incomplete,
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "dev"
        hidden = name == HIDDEN
        splits: dict[str, Split] = {}
        requests: list[Request] = []
        places: dict[str, tuple[Split, int]] = {}
        self.incomplete = {"questions without all rotations": 0, "questions without the first": 0}
        for language in chosen_languages(selection.languages, list(LANGUAGES), name):
            config, ending = LANGUAGES[language]
            split = Split(selection, REPOSITORY, REVISION, config, name, COLUMNS, "image")
            splits[language] = split
            groups: dict[int, list[tuple[int, int, dict[str, Any]]]] = {}
            for number, row in split.rows():
                index = _index(split, number, row["index"])
                groups.setdefault(index % ROTATION, []).append((index, number, row))
            for group, rows in groups.items():
                most = max(len(_options(row)) for _, _, row in rows)
                self.incomplete["questions without all rotations"] += len(rows) < most
                first = [row for row in rows if row[0] < ROTATION]
                self.incomplete["questions without the first"] += not first
                asked = first if self.protocol == "vanilla" else rows
                for place, (index, number, row) in enumerate(asked):
                    picture = f"{language}/{group}"
                    places.setdefault(picture, (split, number))
                    options = _options(row)
                    answer = None if hidden and _is_none(row["answer"]) else row["answer"]
                    if answer is not None and answer not in options:
                        raise ValueError(
                            f"{split.place}: row {number}: answer: expected one of {', '.join(options)}, "
                            f"found {row['answer']!r}"
                        )
                    hint = "" if _is_none(row["hint"]) else f"{row['hint']}\n"
                    listed = "".join(f"\n{letter}. {text}" for letter, text in options.items())
                    requests.append(
                        Request(
                            id=f"{language}/{index}",
                            language=language,
                            content=(
                                Picture(picture),
                                f"{hint}{row['question']}{listed}{ending}",
                            ),
                            max_new_tokens=MAX_NEW_TOKENS,
                            item=str(group),
                            expected=answer,
                            about={"options": options, "question": row["question"], "split": name},
                            # The chance is that of the whole question, so only its first row has it.
                            chance=len(options) ** -len(asked) if place == 0 and answer else None,
                        )
                    )
        return loaded_in(selection, splits, requests, RowPictures(places), name)

    def score(self, request: Request, answer: Answer) -> Score:
        letter = self.parser(answer.text, request.about["options"]).letter
        right = None if request.expected is None else float(letter == request.expected)
        return Score({"per_row": right}, letter, letter is None)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write a table for each language: tab-separated, with the columns of the server's xlsx format."""
        written = []
        for language in LANGUAGES:
            lines = [
                {
                    "index": one.request.id.partition("/")[2],
                    "question": one.request.about["question"],
                    **dict.fromkeys("ABCD", ""),
                    **one.request.about["options"],
                    "prediction": one.answer.text,
                    "answer": one.request.expected or "",
                    "split": one.request.about["split"],
                }
                for one in scored
                if one.request.language == language
            ]
            if lines:
                table = io.StringIO()
                writer = csv.DictWriter(table, lines[0], delimiter="\t", lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)
                written.append(folder / f"{self.key}.{language}.tsv")
                write_text(written[-1], table.getvalue())
        return written

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        """Return the rows of whole questions, then those of single rows. A question fails if one row does."""
        right: dict[str, dict[str, float]] = {}
        failed: dict[str, set[str]] = {}
        for one in scored:
            if one.score.values["per_row"] is None:
                continue
            language, item = one.request.language, one.request.item
            own = right.setdefault(language, {})
            own[item] = min(own.get(item, 1.0), one.score.values["per_row"] or 0.0)
            if one.score.unparsable:
                failed.setdefault(language, set()).add(item)
        values = {language: list(own.items()) for language, own in right.items()}
        failures = {language: len(items) for language, items in failed.items()}
        place = Place(self.key, "all", run, "accuracy", True)
        return [
            *mean_rows(place, values, groups, seed, failures, self.interval),
            *self.rows(scored, "per_row", "all", run, groups, seed),
        ]


def _index(split: Split, number: int, value: Any) -> int:
    """Return a row's index, which is a number or its text."""
    text = str(value)
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(
            f"{split.place}: row {number}: index: expected a number of 0 or more, found {value!r}"
        )
    return int(text)


def _is_none(cell: str | None) -> bool:
    return cell is None or cell.strip().lower() in ("", "nan")


def _options(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the options of a row, at most four; the cells of missing ones are empty or nan."""
    return {letter: row[letter] for letter in "ABCD" if not _is_none(row[letter])}
