"""MME: two yes-or-no questions about each picture, in fourteen categories.

Source: MME (2306.13394), eval_tool/calculation.py; asked as LLaVA asks. A category's score is 100 times the
share of right answers plus 100 times the share of pictures with both answers right, so at most 200. The scores
of perception and cognition are the sums over their categories.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.files import write_text
from ...inference.generation import Answer
from ..protocol import Loaded, Picture, Place, Request, Score, Scored, Selection, Task
from ..public import MAX_NEW_TOKENS, MIX, SHORT, RowPictures, Split, loaded
from ..results import Row
from ..scoring.intervals import mean_of_languages
from ..scoring.mme import COGNITION, PERCEPTION
from ..scoring.yes_no_public import YES_NO_PARSERS

REPOSITORY, REVISION = "lmms-lab/MME", "d6c9023f017b564f7b3ccccf5348166bce8fdbcd"
COLUMNS = ("question_id", "question", "answer", "category", "image")
# LLaVA replaces this ending by its own.
ENDING = " Please answer yes or no."
CATEGORIES = {"perception": PERCEPTION, "cognition": COGNITION}


class Mme(Task):
    """Perception and cognition: 2,374 questions about 1,187 pictures."""

    name = "mme"
    title = "MME"
    contamination = (
        f"{MIX} has pictures of COCO, where those of existence, count, position and color are from: a picture "
        "may have been seen, its questions not."
    )
    protocols = {
        "paper": "MME (2306.13394), eval_tool/calculation.py: yes or no in the first four characters",
        "strict": "as paper, but an answer is read in ten languages, and one that says neither is wrong",
    }
    parts = {"perception": "perception", "cognition": "cognition"}
    subsets = {
        f"{part}/{category}": category.replace("_", " ")
        for part, categories in CATEGORIES.items()
        for category in (*categories, "sum")
    }
    metrics = {
        "mme_score": {"title": "MME score", "higher_is_better": True, "percent": False},
        "accuracy": {"title": "accuracy", "higher_is_better": True, "percent": True},
    }
    metric = "mme_score"

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = YES_NO_PARSERS["yes_no_mme" if self.protocol == "paper" else "yes_no"]

    def describe(self) -> dict[str, Any]:
        return {
            "prompt": f"{{question without{ENDING!r}}}{SHORT}",
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "test"
        split = Split(selection, REPOSITORY, REVISION, "default", name, COLUMNS, "image")
        parts = {category: part for part, own in CATEGORIES.items() for category in own}
        requests: list[Request] = []
        places: dict[str, tuple[Split, int]] = {}
        asked: dict[str, int] = {}
        for number, row in split.rows():
            label, category = row["answer"].strip().lower(), row["category"]
            if label not in ("yes", "no") or category not in parts:
                raise ValueError(
                    f"{split.place}: row {number}: expected the answer Yes or No and a category of MME, "
                    f"found {row['answer']!r} and {category!r}"
                )
            picture = f"{category}:{row['question_id']}"
            places.setdefault(picture, (split, number))
            asked[picture] = asked.get(picture, 0) + 1
            requests.append(
                Request(
                    id=f"{picture}:{asked[picture]}",
                    language="en",
                    content=(Picture(picture), row["question"].removesuffix(ENDING) + SHORT),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture,
                    subset=f"{parts[category]}/{category}",
                    expected=label,
                    about={"question": row["question"]},
                    chance=75.0,
                )
            )
        for picture, count in asked.items():
            if count != 2:
                raise ValueError(
                    f"{split.place}: picture {picture!r}: expected 2 questions, found {count}"
                )
        made = loaded(selection, split, requests, RowPictures(places), name)
        for part in self.parts:
            own = {r.item for r in made.requests if r.subset.startswith(part)}
            made.data["items"][part] = len(own)
        return made

    def score(self, request: Request, answer: Answer) -> Score:
        said = self.parser(answer.text)
        return Score({"accuracy": float(said == request.expected)}, said, said is None)

    def aggregate(
        self, scored: Sequence[Scored], run: str, groups: Mapping[str, Sequence[str]], seed: int
    ) -> list[Row]:
        """Return the score and the accuracy of each category, and a part's sum if no category is missing."""
        rows = []
        for part, categories in CATEGORIES.items():
            found: dict[str, list[Scored]] = {}
            for one in scored:
                if one.request.subset.startswith(f"{part}/"):
                    found.setdefault(one.request.subset.rpartition("/")[2], []).append(one)
            for category in categories:
                own = found.get(category)
                if own:
                    subset = f"{part}/{category}"
                    rows += self._score({category: own}, subset, run, groups, seed)
                    rows += self.rows(own, "accuracy", subset, run, groups, seed)
            if len(found) == len(categories):
                rows += self._score(found, f"{part}/sum", run, groups, seed)
        return rows

    def export(self, scored: Sequence[Scored], folder: Path) -> list[Path]:
        """Write a folder for eval_tool/calculation.py: one file a category, with a picture's two questions together.

        A line has the picture's name, the question, the right answer and the model's answer, separated by tabs.
        """
        lines: dict[str, list[str]] = {}
        for one in sorted(scored, key=lambda one: one.request.item):
            category, name = one.request.item.split(":", 1)
            cells = (
                name.rpartition("/")[2],
                one.request.about["question"],
                one.request.expected.capitalize(),
                one.answer.text,
            )
            line = "\t".join(" ".join(cell.split()) for cell in cells)
            lines.setdefault(category, []).append(f"{line}\n")
        written = []
        for category, own in lines.items():
            written.append(folder / self.key / f"{category}.txt")
            written[-1].parent.mkdir(parents=True, exist_ok=True)
            write_text(written[-1], "".join(own))
        return written

    def _score(
        self,
        categories: Mapping[str, Sequence[Scored]],
        subset: str,
        run: str,
        groups: Mapping[str, Sequence[str]],
        seed: int,
    ) -> list[Row]:
        """Return the sum of the categories' scores.

        A category's score is the mean over its pictures of 50 for each right answer, plus 100 if both are right.
        """
        values = {}
        for category, own in categories.items():
            right: dict[str, int] = {}
            for one in own:
                told = one.score.parsed == one.request.expected
                right[one.request.item] = right.get(one.request.item, 0) + told
            # Share of the 200 points that are possible.
            values[category] = [(item, (n + 2 * (n == 2)) / 4) for item, n in right.items()]
        value, low, high = mean_of_languages(values, seed=seed)
        most = 200 * len(categories)
        n = sum(map(len, categories.values()))
        failures = sum(one.score.unparsable for own in categories.values() for one in own)
        place = Place(self.key, subset, run, "mme_score", True)
        return [
            place.row(
                language,
                most * value,
                None if low is None else most * low,
                None if high is None else most * high,
                n,
                failures,
            )
            for language in ("en", *groups)
        ]
