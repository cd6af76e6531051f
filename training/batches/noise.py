"""Replace a stated share of a dataset's texts by wrong ones: `noise`, for studies of caption quality.

swapped: the text of another image of the dataset, in the same language and task. By chance it may be the same text.
wrong_language: a text of the same image and task in another language of the dataset.

Only the answers are replaced. The questions, the image and the language in reports stay those of the row.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..recipe import DataRecipe, NoiseRecipe


def check_noise(recipe: DataRecipe) -> None:
    """Raise ValueError for shares that fit no dataset."""
    noise = recipe.noise
    if noise is None:
        return
    total = noise.swapped + noise.wrong_language
    for name, share in (
        ("swapped", noise.swapped),
        ("wrong_language", noise.wrong_language),
        ("swapped + wrong_language", total),
    ):
        if not 0 <= share <= 1:
            raise ValueError(
                f"{recipe.path}: noise.{name}: expected a share from 0 to 1, found {share:g}"
            )
    if recipe.streaming:
        raise ValueError(
            f"{recipe.path}: noise: expected data in memory, found streaming: true: leave one of them out"
        )


def answers_from(
    noise: NoiseRecipe,
    image_set: np.ndarray,
    languages: Sequence[str | None],
    tasks: Sequence[str],
    seed: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """Choose the conversation that each conversation's answers come from.

    The choice depends on the seed only. A larger share replaces the texts that a smaller share replaces, and
    more.

    Args:
        noise: the shares.
        image_set: (n,) the image of each conversation, -1 for none, whose text is never replaced.
        languages, tasks: of each conversation.

    Returns:
        (n,) indices of conversations, and kind of noise -> number of replaced texts. It is lower than the share
        if texts have no other text to take their place.
    """
    # ---- Draw the conversations of both kinds.
    count = len(image_set)
    random = np.random.default_rng([seed, 0x6E6F697365])  # not the order of training
    place = random.random(count)
    pictured = image_set >= 0
    swapped = pictured & (place < noise.swapped)
    foreign = pictured & ~swapped & (place < noise.swapped + noise.wrong_language)
    chosen: np.ndarray = np.arange(count)

    # ---- swapped: another image, same language and task.
    same: dict[tuple[Any, ...], list[int]] = {}
    for i in np.flatnonzero(pictured).tolist():
        same.setdefault((languages[i], tasks[i]), []).append(i)
    for i in np.flatnonzero(swapped).tolist():
        others = same[languages[i], tasks[i]]
        start = int(random.integers(len(others)))
        turned = others[start:] + others[:start]
        chosen[i] = next((other for other in turned if image_set[other] != image_set[i]), i)

    # ---- wrong_language: same image and task, another language.
    about: dict[tuple[Any, ...], list[int]] = {}
    for i in np.flatnonzero(pictured).tolist():
        about.setdefault((image_set[i], tasks[i]), []).append(i)
    for i in np.flatnonzero(foreign).tolist():
        others = [o for o in about[image_set[i], tasks[i]] if languages[o] != languages[i]]
        if others:
            chosen[i] = others[int(random.integers(len(others)))]
    replaced = chosen != np.arange(count)
    return chosen, {
        "swapped": int((replaced & swapped).sum()),
        "wrong_language": int((replaced & foreign).sum()),
    }


def with_answers(
    messages: list[dict[str, Any]], others: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return messages with the answers of others in turn; the first answer follows the last one."""
    answers = [turn["content"] for turn in others if turn["role"] == "assistant"]
    result, number = [], 0
    for turn in messages:
        if turn["role"] == "assistant" and answers:
            turn = {**turn, "content": answers[number % len(answers)]}
            number += 1
        result.append(turn)
    return result
