"""The mini benchmark: questions in ten languages about the object that a picture shows.

It asks three kinds of questions, from the mini dataset's instruction rows, about the pictures of one split (by
default `test`: an art style that is not in the training data):

* `name`: exact match of the object's name after `plain.normalise`;
* `yesno`: exact match of the language's yes or no, in balanced pairs (the true name, and a wrong name
  of the same kind);
* `category`: exact match of one of the eight category names.

Concepts that training showed in other styles ("seen") and concepts that training never showed
("held_out") are scored separately.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ...common.cards import check_cards
from ...common.files import files_sha256
from ...common.images import decode_picture, to_rgb
from ...common.languages import LANGUAGES
from ...common.telling import one_line
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
    sample,
)
from ..scoring.intervals import Interval, proportion
from ..scoring.plain import normalise
from ..scoring.short_answers import same

DATA = Path(__file__).resolve().parents[2] / "data" / "mini"
# These limits fit the longest answer of each kind in the dataset's wordiest language.
MAX_NEW_TOKENS = {"name": 48, "yesno": 8, "category": 24}
# The dataset's one reason in `sensitive` for which toxicity_free leaves nothing out.
CULTURAL = "religion-politics"
COLUMNS = ("id", "image", "lang", "task", "messages", "answer", "concept", "seen")


class Mini(Task):
    """Names, yes or no, and categories, for concepts seen in training and for held-out ones."""

    languages = tuple(LANGUAGES)
    name = "mini"
    title = "mini"
    contamination = "No picture of the art style of its test split is in its training data; the seen concepts are, in other styles."
    protocols = {"mini": "the mini dataset of this package"}
    parts = {"seen": "concepts seen in training", "held_out": "concepts held out"}
    subsets = {
        f"{part}/{kind}": title
        for part in parts
        for kind, title in (("name", "naming"), ("yesno", "yes or no"), ("category", "category"))
    }
    metrics = {
        "accuracy": {"title": "exact match", "higher_is_better": True, "percent": True},
        "yes_rate": {"title": "share of yes", "higher_is_better": None, "percent": True},
        "false_yes": {
            "title": "yes to what is not there",
            "higher_is_better": False,
            "percent": True,
        },
        "flagged": {
            "title": "exact match on concepts that toxicity_free leaves out",
            "higher_is_better": True,
            "percent": True,
        },
        "cultural": {
            "title": "exact match on religion and politics",
            "higher_is_better": True,
            "percent": True,
        },
    }
    sheet = ("seen/name", "held_out/name")

    def load(self, selection: Selection) -> Loaded:
        data, split = selection.data or str(DATA), selection.split or "test"
        table = _table(data, "instruct", split)
        missing = sorted(set(COLUMNS) - set(table.column_names))
        if missing:
            raise ValueError(f"{data}: config 'instruct' has no column {', '.join(missing)}")
        table = table.filter(pc.is_in(table["task"], value_set=pa.array(MAX_NEW_TOKENS)))
        known = in_order(pc.unique(table["lang"]).to_pylist())
        if not known:
            kinds = ", ".join(MAX_NEW_TOKENS)
            raise ValueError(
                f"{data}: split {split!r}: expected rows of the tasks {kinds}, found none"
            )
        languages = chosen_languages(selection.languages, known, split)
        table = table.filter(pc.is_in(table["lang"], value_set=pa.array(languages)))
        rows = table.to_pylist()
        # Collect the possible answers from all rows, before the limit leaves pictures out.
        concepts = {row["concept"] for row in rows}
        allowed: dict[tuple[str, str], set[str]] = {}
        yes: dict[str, str] = {}
        for row in rows:
            allowed.setdefault((row["lang"], row["task"]), set()).add(row["answer"])
            if row["task"] == "yesno" and row["about"] == row["concept"]:
                yes[row["lang"]] = row["answer"]
        categories = {len(names) for (_, kind), names in allowed.items() if kind == "category"}
        chance = {"name": 1 / len(concepts), "yesno": 0.5}
        if categories:
            chance["category"] = 1 / max(categories)
        images = set(sample({row["image"] for row in rows}, selection.limit, selection.seed))
        rows = [row for row in rows if row["image"] in images]
        requests = [
            _request(data, row, allowed[row["lang"], row["task"]], yes.get(row["lang"]), chance)
            for row in rows
        ]
        return Loaded(
            requests=requests,
            pictures=MiniPictures(data, split, images),
            languages=languages,
            data={
                "name": Path(data).name if Path(data).is_dir() else data,
                "revision": _revision(data),
                "files_sha256": files_sha256(data_files(data)),
                "split": split,
                "styles": sorted({row.get("style") or "" for row in rows}),
                "images": len(images),
                "items": {
                    part: len({r.item for r in requests if r.subset.startswith(part)})
                    for part in self.parts
                },
                "requests": len(requests),
            },
        )

    def score(self, request: Request, answer: Answer) -> Score:
        about = request.about
        values: dict[str, float | None] = {"accuracy": float(same(answer.text, [request.expected]))}
        # Means over the concepts of a kind only.
        values |= dict.fromkeys(about["kinds"], values["accuracy"])
        said = normalise(answer.text)
        if about["yes"] is not None:
            values["yes_rate"] = float(said != "" and said == normalise(about["yes"]))
            if request.expected != about["yes"]:
                values["false_yes"] = values["yes_rate"]
        allowed = about["allowed"]
        unparsable = not said if allowed is None else said not in map(normalise, allowed)
        return Score(values, said or None, unparsable)

    def interval(self, values: Sequence[tuple[str, float]], seed: int) -> Interval:
        """Return Wilson's interval over questions, not items, as in all figures of this task."""
        return proportion([value for _, value in values])


def _request(
    data: str, row: dict[str, Any], allowed: set[str], yes: str | None, chance: dict[str, float]
) -> Request:
    messages, kind = row["messages"], row["task"]
    if len(messages) != 2 or messages[0]["role"] != "user":
        raise ValueError(
            f"{data}: row {row['id']!r} of task {kind!r}: expected one user turn and its answer, "
            f"found {len(messages)} turns"
        )
    named = {row["concept"], row.get("about")} - {None}
    return Request(
        id=f"{row['lang']}/{row['id']}",
        language=row["lang"],
        content=(Picture(row["image"]), messages[0]["content"]),
        max_new_tokens=MAX_NEW_TOKENS[kind],
        item=row["concept"],
        answer_language=row["lang"],
        subset=f"{'seen' if row['seen'] else 'held_out'}/{kind}",
        expected=row["answer"],
        about={
            "allowed": None if kind == "name" else frozenset(allowed),
            "yes": yes if kind == "yesno" else None,
            "kinds": {
                "cultural" if reason == CULTURAL else "flagged"
                for reason in row.get("sensitive") or ()
            },
        },
        chance=chance[kind],
        marks=frozenset([row["concept"]]),
        avoid=frozenset(named),
    )


def _table(data: str, config: str, split: str) -> Any:
    """Return one split as an Arrow table, read from its files without a copy in a cache."""
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    if Path(data).is_dir():
        check_cards(Path(data))
    try:
        configs = get_dataset_config_names(data)
        if config not in configs:
            raise ValueError(
                f"{data}: config: expected one of {', '.join(configs)}, found {config!r}"
            )
        splits = get_dataset_split_names(data, config)
        if split not in splits:
            raise ValueError(f"{data}: split: expected one of {', '.join(splits)}, found {split!r}")
        rows = load_dataset(data, config, split=split, streaming=True).with_format("arrow")
        parts = list(rows.iter(batch_size=10_000))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no dataset at {data!r}: expected a folder or a Hub repository in the layout of the "
            f"mini dataset"
        ) from error
    if not parts:
        raise ValueError(f"{data}: split {split!r} of {config!r}: expected rows, found none")
    return pa.concat_tables(parts)


class MiniPictures:
    """The pictures of the mini dataset, which are few and small: their bytes are kept in memory."""

    def __init__(self, data: str, split: str, images: set[str]):
        self.data, self.content = data, {}
        for found in _table(data, "images", split).to_pylist():
            if found["image"] in images:
                content = (found.get("picture") or {}).get("bytes")
                if not content:
                    raise ValueError(
                        f"{data}: picture {found['image']!r}: expected its bytes, found none"
                    )
                self.content[found["image"]] = content
        missing = sorted(images - set(self.content))
        if missing:
            raise ValueError(f"{data}: {len(missing)} pictures are missing, e.g. {missing[0]!r}")
        for image in images:
            self.load(image)

    def load(self, key: str) -> Image.Image:
        try:
            return to_rgb(decode_picture(self.content[key], key))
        except ValueError as error:
            raise ValueError(
                one_line(f"{self.data}: picture {key!r} cannot be decoded: {error}")
            ) from None


def data_files(data: str) -> list[Path]:
    """Return the parquet files of a local dataset folder; none for a Hub repository.

    The config `messages` is left out: it repeats rows of other files, and no question is read from it.
    """
    folder = Path(data)
    found = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    return [path for path in found if path.relative_to(folder).parts[0] != "messages"]


def _revision(data: str) -> str | None:
    if Path(data).is_dir():
        return None
    from huggingface_hub import HfApi

    return HfApi().dataset_info(data).sha
