"""The concepts of the mini dataset: one per emoji, with Unicode CLDR's names in ten languages."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .draw import draw
from .sources import CHARACTER_SOURCES, Archive, SourceError

LANGUAGES = ("en", "zh", "fr", "es", "ru", "hi", "ja", "ar", "bn", "ur")

# Groups of emojibase -> the CLDR character label that names the group in every language.
CATEGORIES = {
    "smileys-emotion": "smiley",
    "people-body": "person",
    "animals-nature": "animals_nature",
    "food-drink": "food_drink",
    "travel-places": "travel_places",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
}
HELD_OUT_SHARE = 0.1
SENSITIVE_FILE = Path(__file__).with_name("sensitive.json")

_COMMAS = re.compile("[,،、]")
_VARIATION_SELECTOR = "fe0f"
_MAN_OR_WOMAN_JOINED = ("1f468-200d-", "1f469-200d-")


@dataclass(frozen=True)
class Concept:
    """One emoji.

    Attributes:
        id: code points in lower-case hexadecimal joined by "-", without variation selectors.
        names: language -> CLDR short name; languages without a name are missing.
        keywords: language -> CLDR keywords, in CLDR's order.
        seen: False if the concept is held out of every training split.
        sensitive: reasons why the concept is on the sensitive list; usually empty.
        toxic: whether one of the reasons is toxic, not only sensitive.
        icon_names: icon set with a character table -> its name for the concept.
    """

    id: str
    emoji: str
    category: str
    subgroup: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]
    seen: bool = True
    sensitive: tuple[str, ...] = ()
    toxic: bool = False
    icon_names: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """The selected concepts, localized category names, and what was dropped and repaired."""

    concepts: list[Concept]
    category_names: dict[str, dict[str, str]]
    dropped: dict[str, int]
    repaired: dict[str, int]
    unnamed: dict[str, list[str]]


@functools.cache
def load_sensitive() -> dict[str, dict[str, Any]]:
    """Return the list of sensitive concepts: reason -> {about, toxic, names (English CLDR names)}."""
    return json.loads(SENSITIVE_FILE.read_text(encoding="utf-8"))


def sensitive_names(texts: Sequence[str]) -> list[dict[str, float]]:
    """Judge English names by the curated list (for `toxicity.judges` of a plan).

    Returns:
        For each text {reason: 1.0} if it is a toxic name of the list, else {}.
    """
    listed = {
        name: reason
        for reason, entry in load_sensitive().items()
        if entry["toxic"]
        for name in entry["names"]
    }
    return [{listed[text]: 1.0} if text in listed else {} for text in texts]


def _drop_reason(row: dict[str, Any], group: str | None, concept: str) -> str | None:
    if group is None or group == "component":
        return "component (skin tone, hair, regional letter): not a picture of its own"
    if group == "flags":
        return "flag: templated names, political, missing from some styles"
    if row.get("gender") is not None:
        return "gendered copy of a neutral emoji"
    if concept.startswith(_MAN_OR_WOMAN_JOINED):
        return "man or woman joined to a profession, hair style or family: neutral form kept"
    if "facing right" in row["label"]:
        return "mirrored copy facing right"
    return None


def _hold_out(concepts: list[Concept]) -> set[str]:
    """Return the ids of the held-out tenth of every category."""
    held_out: set[str] = set()
    for category in CATEGORIES:
        ids = [concept.id for concept in concepts if concept.category == category]
        ids.sort(key=lambda concept: (draw(2**60, "held-out", concept), concept))
        held_out.update(ids[: round(HELD_OUT_SHARE * len(ids))])
    return held_out


def _read_annotations(archives: dict[str, Archive]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return {language: {character: {tts: [name], default: [keywords]}}}; plain entries override derived ones."""
    found: dict[str, dict[str, dict[str, Any]]] = {language: {} for language in LANGUAGES}
    for key, folder in (
        ("annotations-derived", "annotationsDerived"),
        ("annotations", "annotations"),
    ):
        names = {f"{folder}/{language}/annotations.json": language for language in LANGUAGES}
        for name, data in archives[key].read_json(names).items():
            found[names[name]].update(data[folder]["annotations"])
    return found


def _read_category_names(archive: Archive) -> dict[str, dict[str, str]]:
    files = {f"main/{language}/characterLabels.json": language for language in LANGUAGES}
    names = {}
    for name, data in archive.read_json(files).items():
        language = files[name]
        labels = data["main"][language]["characterLabels"]
        names[language] = {category: labels[key].lower() for category, key in CATEGORIES.items()}
    return {language: names[language] for language in LANGUAGES}


def select(archives: dict[str, Archive]) -> Selection:
    """Select the concepts, with names, keywords, split and sensitivity.

    Raises:
        SourceError: a name on the sensitive list has no concept, or a name is not unique.
    """
    # 1. Emoji to keep, with their names and keywords
    emojibase = archives["emojibase"].read_json(["en/data.json", "meta/groups.json"])
    groups = emojibase["meta/groups.json"]["groups"]
    subgroups = emojibase["meta/groups.json"]["subgroups"]
    annotations = _read_annotations(archives)
    characters = {
        key: archives[key].read_json(["chars.json"])["chars.json"]
        for key in CHARACTER_SOURCES
        if key in archives
    }
    dropped: Counter[str] = Counter()
    repaired: Counter[str] = Counter()
    unnamed: dict[str, list[str]] = {}
    kept = []
    for row in sorted(emojibase["en/data.json"], key=lambda row: row.get("order", 0)):
        group = groups.get(str(row.get("group")))
        full = row["hexcode"].lower()
        concept = "-".join(code for code in full.split("-") if code != _VARIATION_SELECTOR)
        reason = _drop_reason(row, group, concept)
        emoji = row["emoji"].replace("\ufe0f", "")
        if reason is None and "tts" not in annotations["en"].get(emoji, {}):
            reason = "no English name in CLDR"
        if reason is not None:
            dropped[reason] += 1
            continue
        names, keywords = {}, {}
        english = annotations["en"][emoji]["tts"][0]
        for language in LANGUAGES:
            entry = annotations[language].get(emoji, {})
            if "tts" not in entry:
                unnamed.setdefault(language, []).append(concept)
                continue
            name = entry["tts"][0]
            if language == "hi" and "," in name and "," not in english:
                # CLDR's Hindi lists alternatives ("rocket, vehicle"); keep the first.
                name = name.split(",")[0].strip()
                repaired["hi: name cut at its first comma"] += 1
            names[language] = name
            given = entry.get("default", ())
            # Some keywords are lists. Split them: a whole list would hide a held-out name.
            keywords[language] = tuple(
                word.strip() for item in given for word in _COMMAS.split(item) if word.strip()
            )
            lists = sum(_COMMAS.search(item) is not None for item in given)
            repaired.update(
                {f"{language}: keyword taken apart at its commas": lists} if lists else {}
            )
        icon_names = {
            key: table[code]
            for key, table in characters.items()
            for code in (full, concept)
            if code in table
        }
        subgroup = subgroups[str(row["subgroup"])]
        kept.append(
            Concept(concept, emoji, group, subgroup, names, keywords, icon_names=icon_names)
        )

    # 2. Unique names, sensitive and held-out concepts
    for language in LANGUAGES:
        repaired.update(_tell_apart(language, kept, annotations[language]))
    reasons, toxic = _match_sensitive({each.names["en"]: each.id for each in kept})
    held_out = _hold_out(kept)
    concepts = [
        dataclasses.replace(
            each,
            seen=each.id not in held_out,
            sensitive=tuple(reasons.get(each.id, ())),
            toxic=each.id in toxic,
        )
        for each in kept
    ]
    return Selection(
        concepts=concepts,
        category_names=_read_category_names(archives["labels"]),
        dropped=dict(sorted(dropped.items())),
        repaired=dict(sorted(repaired.items())),
        unnamed=unnamed,
    )


def _tell_apart(
    language: str, concepts: list[Concept], annotations: dict[str, Any]
) -> Counter[str]:
    """Restore the full CLDR name wherever cutting made two names of a language equal."""
    count: Counter[str] = Counter()
    names = Counter(concept.names.get(language) for concept in concepts)
    for concept in concepts:
        own = concept.names.get(language)
        full = annotations.get(concept.emoji, {}).get("tts", [own])[0]
        if own is not None and names[own] > 1 and full != own:
            concept.names[language] = full
            count[f"{language}: name left whole, cut it would equal another"] += 1
    names = Counter(concept.names.get(language) for concept in concepts)
    twice = [name for name, times in names.items() if name is not None and times > 1]
    if twice:
        raise SourceError(
            f"CLDR {language}: expected each name once, found {twice[0]!r} for two concepts"
        )
    return count


def _match_sensitive(by_english: dict[str, str]) -> tuple[dict[str, list[str]], set[str]]:
    """Return {concept id: reasons}, and the ids with a toxic reason."""
    reasons: dict[str, list[str]] = {}
    toxic = set()
    for reason, entry in load_sensitive().items():
        for name in entry["names"]:
            if name not in by_english:
                raise SourceError(
                    f"{SENSITIVE_FILE.name}: {reason}: expected English names of concepts, found {name!r}"
                )
            reasons.setdefault(by_english[name], []).append(reason)
            if entry["toxic"]:
                toxic.add(by_english[name])
    return reasons, toxic
