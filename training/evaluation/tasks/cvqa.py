"""CVQA: multiple choice about culture, written by people from 39 language-country pairs.

Source: CVQA (2406.05967), with Pangea's prompt (2410.16153). The paper reports the mean over the 39 pairs; the
mean over questions is a second metric. Each row has its own licence: show it with every picture
that you print.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
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
    in_order,
)
from ..public import LETTER, MAX_NEW_TOKENS, UNSEEN, RowPictures, Split, loaded_in
from ..results import Row
from ..scoring.choices import LATIN, letters_for
from ..scoring.choices_public import CHOICE_PARSERS
from ..scoring.intervals import Interval, mean, mean_of_languages

REPOSITORY, REVISION = "afaji/cvqa", "0f90214047e51d2e5f3f4dc9865107215553096a"
COLUMNS = (
    *("ID", "Subset", "Question", "Options", "Translated Question", "Translated Options"),
    *("Label", "image"),
)
# The dataset's language name -> BCP-47 code.
LANGUAGES = {
    "Amharic": "am",
    "Bengali": "bn",
    "Breton": "br",
    "Bulgarian": "bg",
    "Chinese": "zh",
    "Egyptian Arabic": "arz",
    "Egyptian_Arabic": "arz",
    "Filipino": "fil",
    "Hindi": "hi",
    "Igbo": "ig",
    "Indonesian": "id",
    "Irish": "ga",
    "Japanese": "ja",
    "Javanese": "jv",
    "Kinyarwanda": "rw",
    "Korean": "ko",
    "Malay": "ms",
    "Marathi": "mr",
    "Minangkabau": "min",
    "Mongolian": "mn",
    "Norwegian": "no",
    "Oromo": "om",
    "Portuguese": "pt",
    "Romanian": "ro",
    "Russian": "ru",
    "Sinhala": "si",
    "Spanish": "es",
    "Sundanese": "su",
    "Swahili": "sw",
    "Tamil": "ta",
    "Telugu": "te",
    "Urdu": "ur",
}
SUBSET = re.compile(r"\('([^']+)', '([^']+)'\)")


class Cvqa(Task):
    """Questions about the culture of 39 language-country pairs: 10,374 with four options each."""

    languages = tuple(dict.fromkeys(LANGUAGES.values()))
    name = "cvqa"
    title = "CVQA"
    contamination = UNSEEN
    protocols = {
        # The default's parser does not guess, and does not read the article of "La respuesta" as an A.
        "local": "CVQA (2406.05967), questions in the local language; this package's parser",
        "english": "as local, but the questions in English",
        "pangea": "as local, but Pangea's parser (2410.16153); where that guesses, the answer is wrong",
    }
    metrics = {
        "accuracy": {
            "title": "accuracy, mean of countries",
            "higher_is_better": True,
            "percent": True,
        },
        "micro": {"title": "accuracy of questions", "higher_is_better": True, "percent": True},
    }

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = CHOICE_PARSERS["choice_pangea_cvqa" if protocol == "pangea" else "choice"]

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": _prompt("{question}", {"A": "...", "B": "..."}),
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        split = Split(selection, REPOSITORY, REVISION, "default", name, COLUMNS, "image")
        kind = "Translated " if self.protocol == "english" else ""
        requests: list[Request] = []
        places: dict[str, tuple[Split, int]] = {}
        for number, row in split.rows():
            found = SUBSET.fullmatch(row["Subset"] or "")
            if found is None or found[1] not in LANGUAGES:
                raise ValueError(
                    f"{split.place}: row {number}: Subset: expected a known language and its country, as "
                    f"('Hindi', 'India'), found {row['Subset']!r}"
                )
            texts, label = row[f"{kind}Options"] or [], row["Label"]
            # A label of -1 hides the right answer.
            if label is None or not 0 <= label < len(texts):
                raise ValueError(
                    f"{split.place}: row {number}: Label: expected the index of one of {len(texts)} options, "
                    f"found {label!r}"
                )
            options = letters_for(texts)
            places[row["ID"]] = (split, number)
            requests.append(
                Request(
                    id=row["ID"],
                    language="en" if kind else LANGUAGES[found[1]],
                    content=(Picture(row["ID"]), _prompt(row[f"{kind}Question"], options)),
                    max_new_tokens=MAX_NEW_TOKENS,
                    # The ID of a question begins with its picture's number and "_".
                    item=row["ID"].partition("_")[0],
                    expected=LATIN[label],
                    about={"options": options, "country": f"{found[1]}, {found[2]}"},
                    chance=1 / len(options),
                )
            )
        known = in_order({request.language for request in requests})
        asked = chosen_languages(selection.languages, known, name) if known else []
        requests = [request for request in requests if request.language in asked]
        splits = dict.fromkeys(asked, split) or {"": split}
        return loaded_in(selection, splits, requests, RowPictures(places), name)

    def score(self, request: Request, answer: Answer) -> Score:
        letter = self.parser(answer.text, request.about["options"]).letter
        return Score({"micro": float(letter == request.expected)}, letter, letter is None)

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write the CSV for the benchmark's server (EvalAI 2305).

        An answer is an option's index from 0, or -1 if the parser read no option.
        """
        path = folder / f"{self.key}.csv"
        lines = [
            f"{one.request.id},{LATIN.index(one.score.parsed) if one.score.parsed else -1}\n"
            for one in scored
        ]
        write_text(path, "".join(["ID,index\n", *lines]))
        return [path]

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        """Return the means over countries for each language and group of languages, then those over questions."""
        languages = in_order({one.request.language for one in scored})
        rows = []
        for metric in self.metrics:
            place = Place(self.key, "all", run, metric, True)
            for name, members in [*((lang, [lang]) for lang in languages), *groups.items()]:
                own = [one for one in scored if one.request.language in members]
                if own:
                    interval = _interval(own, metric, seed)
                    failures = sum(one.score.unparsable for one in own)
                    rows.append(place.row(name, *interval, len(own), failures))
        return rows


def _interval(own: Iterable[Scored], metric: str, seed: int) -> Interval:
    countries: dict[str, list[tuple[str, float]]] = {}
    for one in own:
        country = one.request.about["country"] if metric == "accuracy" else ""
        value = one.score.values["micro"] or 0.0
        countries.setdefault(country, []).append((one.request.item, value))
    if len(countries) == 1:
        return mean(next(iter(countries.values())), seed)
    return mean_of_languages(countries, seed=seed)


def _prompt(question: str, options: Mapping[str, str]) -> str:
    listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return f"Question: {question} \n\n Options: {listed} \n\n {LETTER.strip()}"
