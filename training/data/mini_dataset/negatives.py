"""Choose the concept that a "no" question names: hard negatives, each name as often right as wrong.

In a block of similar concepts the negatives are a permutation without fixed points. So in each style and
language, every name occurs in one question with the answer yes and in one with the answer no: the name
alone does not reveal the answer.
"""

from __future__ import annotations

from collections.abc import Callable

from .concepts import CATEGORIES, Concept
from .draw import draw, shuffled

_ATTEMPTS = 40


def confusable(first: Concept, second: Concept, language: str) -> bool:
    """Return whether one name can describe the other concept ("person" for "person running").

    English names are compared by words, names in `language` by substring.
    """
    words = [
        set(concept.names["en"].lower().replace(":", "").split()) for concept in (first, second)
    ]
    if words[0] <= words[1] or words[1] <= words[0]:
        return True
    names = [concept.names[language].casefold() for concept in (first, second)]
    return names[0] in names[1] or names[1] in names[0]


def _permute(
    block: list[Concept], bad: Callable[[Concept, Concept], bool], *purpose: object
) -> list[Concept] | None:
    """Permute `block` so that no position is `bad` against the original; None if no such order is found."""
    size = len(block)
    for attempt in range(_ATTEMPTS if size > 1 else 0):
        order = [concept.id for concept in block]
        places = dict(zip(order, block, strict=True))
        moved = [places[key] for key in shuffled(order, "negative", attempt, *purpose)]
        for place in range(size):
            if not bad(block[place], moved[place]):
                continue
            start = draw(size, "swap", attempt, place, *purpose)
            for step in range(size):
                other = (start + step) % size
                if not bad(block[place], moved[other]) and not bad(block[other], moved[place]):
                    moved[place], moved[other] = moved[other], moved[place]
                    break
        if not any(bad(own, named) for own, named in zip(block, moved, strict=True)):
            return moved
    return None


def choose_negatives(concepts: list[Concept], style: str, language: str) -> dict[str, Concept]:
    """Return {concept id: concept that its "no" question names}.

    Partners come from the same subgroup if possible, else from the same category, else from any. Clean
    concepts get clean partners and seen concepts seen ones, so that the subsets stay balanced and contain
    nothing held out or flagged. Concepts without a partner are missing from the result.
    """

    def bad(own: Concept, named: Concept) -> bool:
        return own.id == named.id or confusable(own, named, language)

    chosen: dict[str, Concept] = {}

    def settle(block: list[Concept], *purpose: object) -> bool:
        moved = _permute(block, bad, style, language, *purpose)
        if moved is None:
            return False
        chosen.update((own.id, named) for own, named in zip(block, moved, strict=True))
        return True

    for seen in (True, False):
        for toxic in (False, True):
            pool = [c for c in concepts if c.seen == seen and c.toxic == toxic]
            leftover: list[Concept] = []
            for category in CATEGORIES:
                blocks: dict[str, list[Concept]] = {}
                for concept in pool:
                    if concept.category == category:
                        blocks.setdefault(concept.subgroup, []).append(concept)
                unsettled: list[Concept] = []
                for subgroup, block in sorted(blocks.items()):
                    if not settle(block, "subgroup", subgroup):
                        unsettled += block
                if unsettled and not settle(unsettled, "category", category):
                    leftover += unsettled
            if leftover and not settle(leftover, "any", seen, toxic):
                # The remaining concepts fit only together with others: permute the whole pool.
                settle(pool, "all", seen, toxic)
    return chosen
