"""The mini benchmark: what is on the picture, in ten languages.

Three tasks of the mini dataset's instruction rows, asked about the pictures of one split (by
default `test`: an art style that nothing was trained on):

* `name`: exact match of the object's name after `metrics.normalise`;
* `yesno`: exact match of the language's yes or no, pairs balanced (the true name, and a name of
  the same kind that is wrong);
* `category`: exact match of one of the eight category names.

Concepts that some other style showed in training ("seen") and concepts that nothing ever showed
("held_out") are never mixed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..common.cards import check_cards
from ..common.images import decode_picture, to_rgb
from ..common.telling import one_line
from .generation import Answer, Question
from .metrics import (
    SCRIPTS,
    Score,
    in_script,
    mean_of_languages,
    normalise,
    proportion,
    same_answer,
)
from .results import Failures, TaskScores

TASKS = ("name", "yesno", "category")
# The order of tables and sheets; other languages follow alphabetically.
LANGUAGES = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar", "bn", "ur")
# Enough for the longest answer of each task in the dataset's wordiest language.
MAX_NEW_TOKENS = {"name": 48, "yesno": 8, "category": 24}


@dataclass(frozen=True)
class Row:
    """One question about one picture, with the right answer."""

    id: str
    image: str
    lang: str
    task: str
    question: str
    expected: str
    concept: str
    about: str | None  # yesno only: the concept that the question names
    seen: bool
    style: str


@dataclass(frozen=True)
class Benchmark:
    """The rows of one split and the pictures they ask about, by image name."""

    rows: list[Row]
    pictures: dict[str, bytes]
    split: str
    languages: list[str]
    categories: dict[str, set[str]]  # language -> its category names
    answers: dict[str, set[str]]  # language -> its yes and no
    affirmative: dict[str, str]  # language -> its yes
    concepts: int  # in the whole split

    @property
    def images(self) -> list[str]:
        """Names of the pictures, sorted."""
        return sorted(self.pictures)

    def picture(self, image: str) -> Image.Image:
        """One picture as RGB."""
        return to_rgb(decode_picture(self.pictures[image], image))


def load(
    data: str,
    split: str = "test",
    languages: Sequence[str] | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> Benchmark:
    """Read the instruction rows and the pictures of one split.

    `data` is a folder or a Hub repository in the layout of the mini dataset (configs `instruct` and
    `images`). `limit` keeps that many pictures, the same ones for the same seed. Raises ValueError
    or FileNotFoundError in one line for a folder that is no such dataset, an unknown split or
    language, an empty split, `limit` below 1, a missing picture or one that cannot be decoded.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 picture, got {limit}")
    import pyarrow
    import pyarrow.compute as pc

    table = _table(data, "instruct", split)
    missing = {"id", "image", "lang", "task", "messages", "answer", "concept", "seen"} - set(
        table.column_names
    )
    if missing:
        raise ValueError(
            f"{data}: config 'instruct' lacks the columns {', '.join(sorted(missing))}"
        )
    tasks = pc.is_in(table["task"], value_set=pyarrow.array(TASKS))
    table = table.filter(tasks)
    known = sorted(pc.unique(table["lang"]).to_pylist(), key=_place)
    if not known:
        raise ValueError(f"{data}: split {split!r} has no rows of the tasks {', '.join(TASKS)}")
    unknown = [lang for lang in languages or () if lang not in known]
    if unknown:
        raise ValueError(
            f"unknown language {', '.join(map(repr, unknown))}; {split!r} has {', '.join(known)}"
        )
    if languages is None:
        languages = known
    languages = list(dict.fromkeys(languages))
    if not languages:
        raise ValueError(f"no language asked for; {split!r} has {', '.join(known)}")
    # What may be answered is known from the whole split, before any picture is left out.
    categories: dict[str, set[str]] = {lang: set() for lang in languages}
    answers: dict[str, set[str]] = {lang: set() for lang in languages}
    affirmative: dict[str, str] = {}
    asked = pc.is_in(table["lang"], value_set=pyarrow.array(languages))
    rows = [_row(data, found) for found in table.filter(asked).to_pylist()]
    for row in rows:
        if row.task == "category":
            categories[row.lang].add(row.expected)
        elif row.task == "yesno":
            answers[row.lang].add(row.expected)
            if row.about == row.concept:
                affirmative[row.lang] = row.expected
    concepts = len({row.concept for row in rows})
    images = sample(sorted({row.image for row in rows}), limit, seed)
    kept = set(images)
    return Benchmark(
        rows=[row for row in rows if row.image in kept],
        pictures=_pictures(data, split, images),
        split=split,
        languages=languages,
        categories=categories,
        answers=answers,
        affirmative=affirmative,
        concepts=concepts,
    )


def _place(language: str) -> tuple[int, str]:
    return (LANGUAGES.index(language) if language in LANGUAGES else len(LANGUAGES), language)


def _table(data: str, config: str, split: str) -> Any:
    """One split as an Arrow table; read straight from its files, without copying them to a cache."""
    import pyarrow
    from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset

    if Path(data).is_dir():
        check_cards(Path(data))
    try:
        configs = get_dataset_config_names(data)
        if config not in configs:
            raise ValueError(f"{data} has no config {config!r}; it has {', '.join(configs)}")
        splits = get_dataset_split_names(data, config)
        if split not in splits:
            raise ValueError(f"{data} has no split {split!r}; it has {', '.join(splits)}")
        rows = load_dataset(data, config, split=split, streaming=True).with_format("arrow")
        parts = list(rows.iter(batch_size=10_000))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"no dataset at {data!r}: expected a folder or a Hub repository in the layout of the "
            f"mini dataset"
        ) from error
    if not parts:
        raise ValueError(f"{data}: split {split!r} of {config!r} is empty")
    return pyarrow.concat_tables(parts)


def _row(data: str, found: dict[str, Any]) -> Row:
    messages = found["messages"]
    if len(messages) != 2 or messages[0]["role"] != "user":
        raise ValueError(
            f"{data}: row {found['id']!r} of task {found['task']!r} should be one user turn and "
            f"its answer, found {len(messages)} turns"
        )
    return Row(
        id=found["id"],
        image=found["image"],
        lang=found["lang"],
        task=found["task"],
        question=messages[0]["content"],
        expected=found["answer"],
        concept=found["concept"],
        about=found.get("about"),
        seen=found["seen"],
        style=found.get("style") or "",
    )


def sample(names: Sequence[str], limit: int | None, seed: int) -> list[str]:
    """The first `limit` names in an order that the seed and the names alone decide, sorted."""
    if limit is None or limit >= len(names):
        return sorted(names)
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return sorted(order[:limit])


def _pictures(data: str, split: str, images: Sequence[str]) -> dict[str, bytes]:
    wanted, pictures = set(images), {}
    for found in _table(data, "images", split).to_pylist():
        if found["image"] in wanted:
            content = (found.get("picture") or {}).get("bytes")
            if not content:
                raise ValueError(f"{data}: picture {found['image']!r} has no bytes")
            pictures[found["image"]] = content
    missing = sorted(wanted - set(pictures))
    if missing:
        raise ValueError(f"{data}: {len(missing)} pictures are missing, e.g. {missing[0]!r}")
    for image, content in pictures.items():
        try:
            to_rgb(decode_picture(content, image))
        except ValueError as error:
            raise ValueError(
                one_line(f"{data}: picture {image!r} cannot be decoded: {error}")
            ) from None
    return pictures


def derangement(benchmark: Benchmark, images: Sequence[str], seed: int) -> dict[str, str]:
    """For each of `images` another one, of a concept that none of its questions is about.

    Raises ValueError if there is none, as with a single picture.
    """
    concept = {row.image: row.concept for row in benchmark.rows}
    avoid: dict[str, set[str]] = {image: {concept[image]} for image in images}
    for row in benchmark.rows:
        if row.image in avoid and row.about is not None:
            avoid[row.image].add(row.about)
    order = sorted(images)
    np.random.default_rng(seed).shuffle(order)
    for shift in range(1, len(order)):
        pairs = {image: order[(i + shift) % len(order)] for i, image in enumerate(order)}
        if all(concept[other] not in avoid[image] for image, other in pairs.items()):
            return pairs
    raise ValueError(
        f"{len(images)} pictures cannot be shuffled so that none keeps its concept: use more"
    )


def questions(
    rows: Sequence[Row], images: Sequence[str], shuffled: dict[str, str] | None = None
) -> list[Question]:
    """The rows as questions; `images` gives the places, `shuffled` another picture for each."""
    place = {image: i for i, image in enumerate(images)}
    return [
        Question(
            place[shuffled[row.image] if shuffled else row.image],
            row.question,
            MAX_NEW_TOKENS[row.task],
        )
        for row in rows
    ]


def blind_questions(rows: Sequence[Row]) -> list[Question]:
    """The same questions without a picture."""
    return [Question(None, row.question, MAX_NEW_TOKENS[row.task]) for row in rows]


def right(row: Row, answer: Answer) -> bool:
    """Whether the answer is the expected one."""
    return same_answer(answer.text, row.expected)


def scores(
    rows: Sequence[Row],
    answers: Sequence[Answer],
    groups: dict[str, list[str]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, TaskScores]]:
    """task -> "seen" | "held_out" -> scores per language and the means of groups of languages."""
    table: dict[str, dict[str, TaskScores]] = {}
    for task in TASKS:
        for subset in ("seen", "held_out"):
            pairs: dict[str, list[tuple[str, bool]]] = {}
            for row, answer in zip(rows, answers, strict=True):
                if row.task == task and row.seen == (subset == "seen"):
                    pairs.setdefault(row.lang, []).append((row.concept, right(row, answer)))
            if not pairs:
                continue
            means = {}
            for name, languages in groups.items():
                group = {lang: pairs[lang] for lang in languages if lang in pairs}
                if group:
                    means[name] = mean_of_languages(group, resamples=resamples, seed=seed)
            table.setdefault(task, {})[subset] = {
                "languages": {
                    lang: proportion([ok for _, ok in pairs[lang]])
                    for lang in sorted(pairs, key=_place)
                },
                "means": means,
            }
    return table


def chance(benchmark: Benchmark) -> dict[str, float | None]:
    """What guessing at random gets: one of the concepts, of two words, of the categories."""
    categories = {len(names) for names in benchmark.categories.values() if names}
    return {
        "name": 1 / benchmark.concepts,
        "yesno": 0.5,
        "category": 1 / max(categories) if categories else None,
    }


def yes_rate(
    benchmark: Benchmark, rows: Sequence[Row], answers: Sequence[Answer]
) -> dict[str, float]:
    """Share of "yes" among the answers to the yes/no questions, per language (fair: 0.5)."""
    said: dict[str, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        if row.task == "yesno" and row.lang in benchmark.affirmative:
            said.setdefault(row.lang, []).append(
                same_answer(answer.text, benchmark.affirmative[row.lang])
            )
    return {
        lang: sum(yes) / len(yes)
        for lang, yes in sorted(said.items(), key=lambda item: _place(item[0]))
    }


def fidelity(rows: Sequence[Row], answers: Sequence[Answer]) -> dict[str, Score]:
    """Share of the names given that are written in the script of the language asked in.

    Languages whose script is not known are left out.
    """
    own: dict[str, list[bool]] = {}
    for row, answer in zip(rows, answers, strict=True):
        if row.task == "name" and row.lang in SCRIPTS:
            own.setdefault(row.lang, []).append(in_script(answer.text, row.lang))
    return {lang: proportion(own[lang]) for lang in sorted(own, key=_place)}


def failures(
    benchmark: Benchmark, rows: Sequence[Row], answers: Sequence[Answer]
) -> dict[str, dict[str, Failures]]:
    """task -> language -> how many answers were empty, unfinished, off format or off script."""
    allowed = {
        "category": {k: {normalise(c) for c in v} for k, v in benchmark.categories.items()},
        "yesno": {k: {normalise(c) for c in v} for k, v in benchmark.answers.items()},
    }
    counts: dict[str, dict[str, Failures]] = {}
    for row, answer in zip(rows, answers, strict=True):
        count = counts.setdefault(row.task, {}).setdefault(
            row.lang, {"empty": 0, "unfinished": 0, "off_format": 0, "other_script": 0}
        )
        count["empty"] += not answer.text
        count["unfinished"] += not answer.ended
        if row.task in allowed:
            count["off_format"] += normalise(answer.text) not in allowed[row.task][row.lang]
        if row.lang in SCRIPTS:
            count["other_script"] += bool(answer.text) and not in_script(answer.text, row.lang)
    return counts


def files(data: str) -> list[Path]:
    """The parquet files of a local dataset folder; empty for a Hub repository.

    Those of the config `messages` are left out: it repeats some of the other files' rows, and no
    question is read from it.
    """
    folder = Path(data)
    found = sorted(folder.rglob("*.parquet")) if folder.is_dir() else []
    return [path for path in found if path.relative_to(folder).parts[0] != "messages"]
