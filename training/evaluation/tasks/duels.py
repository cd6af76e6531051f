"""Base of AyaVisionBench and m-WildVision: a judge prefers the model's answer, another model's, or neither.

Source: Aya Vision (2505.08751), appendix E: one order of the answers, a tie is not half a win, the mean over
languages. The default protocol judges both orders and adds the strengths, since judges favour a position. The
protocol `paper` follows the paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import pyarrow.compute as pc
from PIL import Image

from ..judges.judging import Judging
from ..judges.rubric import Case, Rubric
from ..judges.rubrics import DUEL, DUEL_STRICT
from ..protocol import (
    Loaded,
    Picture,
    Pictures,
    Request,
    Selection,
    chosen_languages,
    in_order,
)
from ..public import UNSEEN, Split, loaded_in
from ..scoring.pairwise import Duel, win_rate
from .judged import Against, Judged

# BCP-47 code -> (config of the dataset, name of the language in the judge's prompt).
LANGUAGES = {
    "ar": ("arb_Arab", "Arabic"),
    "cs": ("ces_Latn", "Czech"),
    "de": ("deu_Latn", "German"),
    "el": ("ell_Grek", "Greek"),
    "en": ("eng_Latn", "English"),
    "es": ("spa_Latn", "Spanish"),
    "fa": ("pes_Arab", "Persian"),
    "fr": ("fra_Latn", "French"),
    "he": ("heb_Hebr", "Hebrew"),
    "hi": ("hin_Deva", "Hindi"),
    "id": ("ind_Latn", "Indonesian"),
    "it": ("ita_Latn", "Italian"),
    "ja": ("jpn_Jpan", "Japanese"),
    "ko": ("kor_Hang", "Korean"),
    "nl": ("nld_Latn", "Dutch"),
    "pl": ("pol_Latn", "Polish"),
    "pt": ("por_Latn", "Portuguese"),
    "ro": ("ron_Latn", "Romanian"),
    "ru": ("rus_Cyrl", "Russian"),
    "tr": ("tur_Latn", "Turkish"),
    "uk": ("ukr_Cyrl", "Ukrainian"),
    "vi": ("vie_Latn", "Vietnamese"),
    "zh": ("zho_Hans", "Chinese"),
}
# Neither the datasets nor the paper give a limit.
MAX_NEW_TOKENS = 1024


class Columns(NamedTuple):
    """The names of a dataset's columns."""

    id: str
    question: str
    image: str = "image"


class Duels(Judged):
    """A comparison of the model's answers with another model's given answers."""

    languages = tuple(LANGUAGES)
    contamination = UNSEEN
    repository: ClassVar[str]
    columns: ClassVar[Columns]
    protocols = {
        "both": "this package: both orders, their strengths added; criteria of Aya Vision (2505.08751)",
        "paper": "Aya Vision (2505.08751), appendix E: one order, the model first",
    }
    rubrics: ClassVar[Mapping[str, Rubric]] = {"both": DUEL_STRICT, "paper": DUEL}
    subsets = {"all": "all"}
    metrics = {
        "win": {"title": "wins", "higher_is_better": True, "percent": True},
        "loss": {"title": "losses", "higher_is_better": False, "percent": True},
        "tie": {"title": "ties", "higher_is_better": None, "percent": True},
    }
    metric = "win"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.against: Against | None = None
        self.pictures: Pictures | None = None
        if self.protocol == "both":
            consistency = "both orders prefer the same answer"
            self.metrics = {
                **self.metrics,
                "consistency": {"title": consistency, "higher_is_better": None, "percent": True},
            }

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{{self.columns.question}}}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            "against": self.against and self.against.model,
            **super().describe(),
        }

    def prepare(self, judging: Judging, against: Against | None) -> None:
        if against is None:
            raise ValueError(
                f"{self.key}: expected another model's answers, found none: name their file with "
                "--against"
            )
        self.judging, self.against = judging, against

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        splits: dict[str, Split] = {}
        requests: dict[str, Request] = {}
        pictures = _Pictures()
        known = in_order(LANGUAGES)
        for language in chosen_languages(selection.languages, known, self.repository):
            config, _ = LANGUAGES[language]
            splits[language] = split = Split(
                selection, self.repository, None, config, name, self.columns, self.columns.image
            )
            shown = pc.list_value_length(split.table.column(self.columns.image)).to_pylist()
            for number, row in split.rows():
                item = str(row[self.columns.id])
                own = f"{language}/{item}"
                question = split.text(number, row, self.columns.question)
                if own in requests or not shown[number]:
                    raise ValueError(
                        f"{split.place}: row {number}: expected a unique {self.columns.id} and a picture, "
                        f"found {item!r} and {shown[number] or 0} pictures"
                    )
                keys = tuple(f"{own}/{place}" for place in range(shown[number]))
                for place, key in enumerate(keys):
                    pictures.places[key] = (split, number, place)
                requests[own] = Request(
                    id=own,
                    language=language,
                    content=(*map(Picture, keys), question),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=item,
                    answer_language=language,
                    # With these keys, the judge sees the true pictures also when it judges a baseline.
                    about={"pictures": keys},
                )
        self.pictures = pictures
        every = list(requests.values())
        return loaded_in(selection, splits, every, pictures, name)

    def cases(self, request: Request, text: str) -> list[Case]:
        assert self.against is not None
        other = self.against.answers[request.id].text
        orders = [(text, other), (other, text)] if self.protocol == "both" else [(text, other)]
        shared = {"question": request.text, "language": LANGUAGES[request.language][1]}
        return [
            Case(
                self.rubric,
                {**shared, "first": first, "second": second},
                request.about["pictures"],
                self.pictures,
            )
            for first, second in orders
        ]

    def values(self, request: Request, judged: Sequence[Any]) -> Mapping[str, float | None]:
        duel = Duel(request.id, request.language, *judged)
        found = win_rate([duel], "both" if self.protocol == "both" else "one")
        rates = {name: found["total"][name] for name in ("win", "loss", "tie")}
        if self.protocol == "both":
            rates["consistency"] = found["consistency"]
        return {name: None if rate is None else rate / 100 for name, rate in rates.items()}


class _Pictures:
    """Pictures by key, for rows that hold a list of pictures."""

    def __init__(self) -> None:
        self.places: dict[str, tuple[Split, int, int]] = {}

    def load(self, key: str) -> Image.Image:
        split, number, place = self.places[key]
        return split.picture(number, key, place)
