"""LLaVA-Bench (In-the-Wild) in ten languages: a judge compares an answer with one that GPT-4 wrote from captions.

Source: LLaVA (2304.08485); in ten languages PALO (2402.14818). The score of a language is the mean of the
model's scores in percent of the mean of the reference's. The default is the papers' protocol, on which the
published numbers rest: one order. The protocol `both` judges both orders, since judges favour a position.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ..judges.rubric import Case
from ..judges.rubrics import REVIEW, REVIEW_STRICT
from ..protocol import Loaded, Picture, Place, Request, Scored, Selection, in_order
from ..public import UNSEEN, RowPictures, Split, language_splits, loaded_in
from ..results import Row
from ..scoring.intervals import mean_of_ratios
from ..scoring.scripts import in_script
from .judged import Judged

# PALO's questions and reference answers as parquet files.
REPOSITORY = "neulab/PangeaBench-multilingual-llava-bench"
COLUMNS = ("question_id", "image", "question", "caption", "image_id", "gpt_answer", "category")
LANGUAGES = {lang: lang for lang in ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar", "bn", "ur")}
MAX_NEW_TOKENS = 1024


class LlavaBench(Judged):
    """60 questions about 24 pictures, in ten languages."""

    languages = tuple(LANGUAGES)
    name = "llava_bench"
    title = "LLaVA-Bench (In-the-Wild), PALO"
    contamination = UNSEEN
    protocols = {
        "palo": "PALO (2402.14818) and LLaVA (2304.08485): the reference first, one order",
        "both": "this package: both orders, reasons first, position consistency; asked as palo",
    }
    rubrics = {"palo": REVIEW, "both": REVIEW_STRICT}
    subsets = {
        "all": "all",
        "complex": "complex reasoning",
        "conv": "conversation",
        "detail": "detailed description",
    }
    metrics = {
        "relative": {
            "title": "score relative to the reference",
            "higher_is_better": True,
            "percent": True,
        },
        "model": {"title": "the model's score of 10", "higher_is_better": True, "percent": False},
        "reference": {
            "title": "the reference's score of 10",
            "higher_is_better": None,
            "percent": False,
        },
    }
    metric = "relative"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.untranslated: dict[str, list[str]] = {}
        if self.protocol == "both":
            consistency = "both orders prefer the same answer"
            self.metrics = {
                **self.metrics,
                "consistency": {"title": consistency, "higher_is_better": None, "percent": True},
            }

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": "{question}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "stop": "none",
            "questions in English, by language": self.untranslated,
            **super().describe(),
        }

    def load(self, selection: Selection) -> Loaded:
        splits = language_splits(
            selection, REPOSITORY, None, "default", LANGUAGES, COLUMNS, "image"
        )
        requests: dict[str, Request] = {}
        places: dict[str, tuple[Split, int]] = {}
        self.untranslated = {}
        for language, split in splits.items():
            for number, row in split.rows():
                question, reference, category = (
                    split.text(number, row, name) for name in ("question", "gpt_answer", "category")
                )
                category = category.removeprefix("llava_bench_")
                name, picture = f"{language}/{row['question_id']}", str(row["image_id"])
                if category not in self.subsets or name in requests:
                    raise ValueError(
                        f"{split.place}: row {number}: expected a unique question_id and a category of "
                        f"{', '.join(self.subsets)}, found {row['question_id']!r} and {category!r}"
                    )
                translated = in_script(question, language)
                if not translated:
                    self.untranslated.setdefault(language, []).append(str(row["question_id"]))
                places.setdefault(picture, (split, number))
                requests[name] = Request(
                    id=name,
                    language=language,
                    content=(Picture(picture), question),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture,
                    answer_language=language if translated else "en",
                    subset=category,
                    expected=reference,
                    about={"context": _caption(row["caption"])},
                )
        every = list(requests.values())
        return loaded_in(selection, splits, every, RowPictures(places), ", ".join(splits))

    def cases(self, request: Request, text: str) -> list[Case]:
        shared = {"context": request.about["context"], "question": request.text}
        orders = [{"first": request.expected, "second": text}]
        if self.protocol == "both":
            orders.append({"first": text, "second": request.expected})
        return [Case(self.rubric, {**shared, **order}) for order in orders]

    def values(self, request: Request, judged: Sequence[Any]) -> Mapping[str, float | None]:
        # One (reference, model) pair for each order.
        pairs = [judged[0], *(pair[::-1] for pair in judged[1:])]
        reference, model = (sum(scores) / len(pairs) for scores in zip(*pairs, strict=True))
        values = {"relative": model / reference, "model": model, "reference": reference}
        if self.protocol == "both":
            signs = {(ours > theirs) - (ours < theirs) for theirs, ours in pairs}
            values["consistency"] = float(len(signs) == 1)
        return values

    def rows(
        self,
        scored: Sequence[Scored],
        metric: str,
        subset: str,
        run: str,
        groups: Mapping[str, Sequence[str]],
        seed: int,
    ) -> list[Row]:
        if metric != "relative":
            return super().rows(scored, metric, subset, run, groups, seed)
        # The score is a ratio of means, not a mean of ratios.
        parts: dict[str, list[tuple[str, float, float]]] = {}
        asked: dict[str, int] = {}
        for one in scored:
            language, values = one.request.language, one.score.values
            asked[language] = asked.get(language, 0) + 1
            if values["model"] is not None and values["reference"] is not None:
                own = (one.request.item, values["model"], values["reference"])
                parts.setdefault(language, []).append(own)
        place = Place(self.key, subset, run, metric, True)
        rows = []
        members = {lang: [lang] for lang in in_order(parts)} | dict(groups)
        for name, languages in members.items():
            chosen = {lang: parts[lang] for lang in languages if lang in parts}
            if chosen:
                n = sum(map(len, chosen.values()))
                failures = sum(asked[lang] for lang in chosen) - n
                rows.append(place.row(name, *mean_of_ratios(chosen, seed=seed), n, failures))
        return rows


def _caption(cell: Any) -> str:
    """Return a picture's description, which the dataset gives as one text or several."""
    return "\n".join(map(str, cell)) if isinstance(cell, list) else str(cell or "")
