"""Load the images and captions of a run's training concepts into memory."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...common.images import decode_picture, to_rgb
from ..tables import read_splits
from .recipe import WHERE

# Concepts whose images mean something else, or nothing, when mirrored.
ONE_WAY = re.compile(
    r"\b(left|right|clock|clockwise|o.clock|thirty|arrow|quarter|crescent|button|input|level)\b",
    re.IGNORECASE,
)


class DatasetRecipe(Protocol):
    """The keys of a recipe that say what is read."""

    data: str
    train_styles: list[str]
    validation_styles: list[str]
    languages: list[str]
    image_size: int


@dataclass
class Pictures:
    """Images of the training concepts in memory, as uint8 like in the dataset."""

    pixels: Tensor  # uint8 [n, 3, image_size, image_size]
    concept: Tensor  # int64 [n], index into Dataset.concepts


@dataclass
class Dataset:
    """The part of the mini dataset that a run uses; it contains no held-out concept."""

    concepts: list[str]
    categories: list[str]
    category: Tensor  # int64 [concepts]
    may_flip: Tensor  # bool [concepts]
    captions: list[list[str | None]]  # [concepts][languages]; None if a language has no name
    train: Pictures
    validation: Pictures
    held_out: int  # number of held-out concepts


def read_dataset(recipe: DatasetRecipe, where: str = WHERE) -> Dataset:
    """Read images and captions, without the held-out concepts.

    Args:
        where: prefix of messages about the recipe.

    Raises:
        FileNotFoundError: if there is no dataset folder.
        ValueError: if a column, style or language of the recipe is missing, or an image cannot be
            opened.
    """
    folder = find_dataset(recipe.data, where)
    seen, category_of, captions_of = _read_texts(folder, recipe.languages)
    rows = _read_pictures(folder, [*recipe.train_styles, *recipe.validation_styles])
    pictured = {concept for style, _, concept, _ in rows if style in recipe.train_styles}
    # A concept without a training image is not a class.
    concepts = sorted(c for c, is_seen in seen.items() if is_seen and c in pictured)
    if not concepts:
        raise ValueError(
            f"{folder}: expected images of concepts with seen = true in {', '.join(recipe.train_styles)}, found "
            "none: change train_styles or rebuild the dataset"
        )
    numbers = {concept: number for number, concept in enumerate(concepts)}
    parts = []
    for part, styles in (
        ("train", recipe.train_styles),
        ("validation", recipe.validation_styles),
    ):
        chosen = [row for row in rows if row[0] in styles and row[2] in numbers]
        if not chosen:
            raise ValueError(
                f"{folder}: {part} styles: expected images of seen concepts, found none"
            )
        pixels = [_decode(row[3], f"{folder}: {row[1]}", recipe.image_size) for row in chosen]
        parts.append(
            Pictures(
                torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(),
                torch.tensor([numbers[row[2]] for row in chosen]),
            )
        )
    category = [category_of[concept] for concept in concepts]
    categories = sorted(set(category))
    captions = [captions_of[concept] for concept in concepts]
    one_way = [
        kind == "symbols" or bool(ONE_WAY.search(named.get("en", "")))
        for kind, named in zip(category, captions, strict=True)
    ]
    return Dataset(
        concepts=concepts,
        categories=categories,
        category=torch.tensor([categories.index(kind) for kind in category]),
        may_flip=~torch.tensor(one_way),
        captions=[[named.get(lang) for lang in recipe.languages] for named in captions],
        train=parts[0],
        validation=parts[1],
        held_out=sum(not is_seen for is_seen in seen.values()),
    )


def find_dataset(data: str, where: str = WHERE) -> Path:
    """Return the dataset folder: as given, or, for a missing relative path, inside this installation."""
    for folder in (Path(data), Path(__file__).resolve().parents[3] / data):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{where}: data: expected a folder, found nothing at {data!r}: give a built mini dataset "
        "(`maya data mini --output DIR` makes one)"
    )


def _read_texts(
    folder: Path, languages: list[str]
) -> tuple[dict[str, bool], dict[str, str], dict[str, dict[str, str]]]:
    """Return whether each concept is seen, its category, and its captions by language, for all concepts."""
    table = _read_table(folder, "all", ["lang", "text", "category", "concept", "seen"])
    seen: dict[str, bool] = {}
    category: dict[str, str] = {}
    captions: dict[str, dict[str, str]] = {}
    for lang, text, kind, concept, is_seen in zip(*table, strict=True):
        if seen.setdefault(concept, is_seen) != is_seen:
            raise ValueError(
                f"{folder}: concept {concept!r} is marked both seen and held out: rebuild the "
                "dataset"
            )
        category[concept] = kind
        captions.setdefault(concept, {})[lang] = text
    absent = sorted(set(languages) - set(table[0]))
    if absent:
        raise ValueError(
            f"{folder}: expected captions in {', '.join(absent)}, found "
            f"{', '.join(sorted(set(table[0])))}: change `languages` in the recipe"
        )
    return seen, category, captions


def _read_pictures(folder: Path, styles: list[str]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """Return (style, file name, concept, encoded image) of the images in these styles."""
    table = _read_table(folder, "images", ["style", "image", "concept", "picture"])
    absent = sorted(set(styles) - set(table[0]))
    if absent:
        raise ValueError(
            f"{folder}: expected images in the styles {', '.join(absent)}, found "
            f"{', '.join(sorted(set(table[0])))}"
        )
    return [row for row in zip(*table, strict=True) if row[0] in styles]


def _read_table(folder: Path, config: str, columns: list[str]) -> list[list[Any]]:
    """Return the named columns of a configuration, with all splits joined."""
    splits = read_splits(folder, config, columns).values()
    return [[value for split in splits for value in split[name]] for name in columns]


def _decode(picture: dict[str, Any], where: str, size: int) -> np.ndarray:
    try:
        rgb = to_rgb(decode_picture(picture["bytes"], where))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected a readable image: {error}: rebuild the dataset"
        ) from error
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(rgb)
