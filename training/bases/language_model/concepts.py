"""Texts of the concepts, read from the mini dataset, and the texts that the tokenizer learns from."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.reading import read_json_mapping
from ..tables import read_splits
from .recipe import LanguageModelRecipe

COLUMNS = ("lang", "text", "keywords", "category", "category_name", "concept", "seen")


@dataclass
class Concepts:
    """Texts of the training concepts, in the order of `ids`, without the held-out concepts.

    Texts are by language. A missing name is "", a missing keyword list is empty.
    """

    ids: list[str]
    category: list[str]
    names: dict[str, list[str]]
    keywords: dict[str, list[list[str]]]
    category_names: dict[str, dict[str, str]]
    confusable: list[list[int]]  # for each concept, others that are easily confused with it
    held_out: int  # number of held-out concepts
    missing: dict[str, int]  # number of missing names, by language

    def __len__(self) -> int:
        return len(self.ids)


def read_concepts(dataset: Path, languages: list[str], pivot: str) -> Concepts:
    """Read the seen concepts of the mini dataset's train split, with texts in every language.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if a column, a language or a concept's text is missing.
    """
    if not dataset.is_dir():
        raise FileNotFoundError(
            f"dataset: expected a folder, found nothing at {dataset}: build it with `maya data mini`"
        )
    splits = read_splits(dataset, "all", COLUMNS)
    if "train" not in splits:
        raise ValueError(
            f"{dataset}: config 'all': expected a split 'train', found {sorted(splits)}"
        )
    train = splits.pop("train")
    rows = [dict(zip(train, values, strict=True)) for values in zip(*train.values(), strict=True)]
    for other in splits.values():
        # The other splits contain the held-out concepts, which are only counted.
        flags = zip(other["concept"], other["seen"], strict=True)
        rows += [
            {"concept": c, "seen": False} for c in sorted({c for c, seen in flags if not seen})
        ]
    return concepts_from_rows(rows, languages, pivot, str(dataset))


def concepts_from_rows(
    rows: list[dict[str, Any]], languages: list[str], pivot: str, source: str
) -> Concepts:
    """Collect rows (one image, one language) into concepts; concepts that are not `seen` are only counted."""
    texts: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    held_out = set()
    for row in rows:
        if not row["seen"]:
            held_out.add(row["concept"])
        elif row["lang"] in languages:
            texts[row["concept"]].setdefault(row["lang"], row)
    if not texts:
        raise ValueError(
            f"{source}: expected rows with seen=True in the languages {languages}, found none"
        )
    ids = sorted(texts)
    missing = {lang: sum(lang not in texts[c] for c in ids) for lang in languages}
    for lang, count in missing.items():
        # CLDR lacks a few names; if a language lacks many, the dataset is the wrong one.
        if count > len(ids) // 10:
            raise ValueError(f"{source}: {count} of {len(ids)} concepts have no text in {lang!r}")
    for concept in ids:
        if pivot not in texts[concept]:
            raise ValueError(f"{source}: concept {concept} has no text in the pivot {pivot!r}")
        for lang, row in texts[concept].items():
            if not row["text"].strip():
                raise ValueError(f"{source}: concept {concept} has an empty text in {lang!r}")
    names = {lang: [texts[c].get(lang, {}).get("text", "") for c in ids] for lang in languages}
    category = [texts[c][pivot]["category"] for c in ids]
    return Concepts(
        ids=ids,
        category=category,
        names=names,
        keywords={
            lang: [list(texts[c].get(lang, {}).get("keywords") or ()) for c in ids]
            for lang in languages
        },
        category_names={
            lang: {
                row["category"]: row["category_name"]
                for row in (texts[c][lang] for c in ids if lang in texts[c])
            }
            for lang in languages
        },
        confusable=_confusable(names[pivot], category),
        held_out=len(held_out),
        missing=missing,
    )


def _confusable(names: list[str], category: list[str]) -> list[list[int]]:
    """Return for each concept those of its category whose names share a word, or else all of the category.

    If all words of one name are in the other ("person", "person running"), both may be true of one
    image, so such pairs are excluded.
    """
    words = [set(name.lower().replace(":", "").split()) for name in names]
    near: list[list[int]] = []
    for i, own in enumerate(words):
        mates = [
            j
            for j, other in enumerate(words)
            if j != i and category[j] == category[i] and not (own <= other or other <= own)
        ]
        shared = [j for j in mates if any(len(w) > 2 for w in own & words[j])]
        near.append(shared if len(shared) > 2 else mates or [i])
    return near


def read_prompts(path: Path, languages: list[str]) -> dict[str, Any]:
    """Read question wordings per language and task; see training/data/mini_dataset/prompts.json.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if a language or a wording is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts: expected a file, found nothing at {path}")
    prompts = read_json_mapping(path)
    for lang in languages:
        if lang not in prompts:
            raise ValueError(
                f"{path}: expected prompts for language {lang!r}, found {sorted(prompts)}"
            )
        for key in ("name", "yesno", "category", "keywords", "yes", "no"):
            if not prompts[lang].get(key):
                raise ValueError(
                    f"{path}: language {lang!r}: expected a value for {key!r}, found none"
                )
        for wording in prompts[lang]["yesno"]:
            if "{name}" not in wording:
                raise ValueError(
                    f"{path}: {lang!r}: yesno: expected '{{name}}' in it, found {wording!r}"
                )
    return {lang: prompts[lang] for lang in languages}


def tokenizer_texts(
    concepts: Concepts, prompts: dict[str, Any], recipe: LanguageModelRecipe
) -> Iterator[str]:
    """Yield the texts that BPE merges are learned from: names (weighted), keywords, prompts, answers."""
    for lang in recipe.languages:
        weight = recipe.language_weights.get(lang, 2)
        for name, words in zip(concepts.names[lang], concepts.keywords[lang], strict=True):
            if name:
                yield from [name] * (recipe.caption_weight * weight)
                yield from [f" {name}"] * weight
            for word in words:
                yield from [word] * weight
        for _ in range(200):
            for key in ("name", "yesno", "category", "keywords"):
                yield from prompts[lang][key]
            yield from (prompts[lang]["yes"], prompts[lang]["no"])
            yield from concepts.category_names[lang].values()
