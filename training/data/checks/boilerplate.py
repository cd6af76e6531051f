"""What models say around a translation, or instead of one: lists of phrases, one file a language.

Regular expressions for talk about translating, prefaces, refusals and notes, with what excuses them
when the source itself says something of the kind; common words of the language, by which a part left
untranslated is seen; and words on which no sentence ends.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from ...common.schema import digest
from .identify import primary


@dataclass(frozen=True)
class Phrases:
    """The phrases of one language, compiled; `digest` is of the file's content."""

    about: re.Pattern[str] | None
    preface: re.Pattern[str] | None
    refusal: re.Pattern[str] | None
    note: re.Pattern[str] | None
    excuses: dict[str, re.Pattern[str]]
    words: frozenset[str]
    dangling: tuple[str, ...]
    digest: str


NO_PHRASES = Phrases(None, None, None, None, {}, frozenset(), (), "")


@lru_cache(maxsize=128)
def read_phrases(lang: str, path: str | None = None) -> Phrases:
    """Phrases of a language from `path`, or the shipped ones; empty if there are none.

    Raises ValueError for a file that is not as `phrases/en.yaml` is, OSError if `path` is missing.
    """
    shipped = Path(__file__).parent / "phrases" / f"{primary(lang)}.yaml"
    file = Path(path) if path else shipped
    if path is None and not file.exists():
        return NO_PHRASES
    content = file.read_text(encoding="utf-8")
    try:
        data = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not a YAML file: {' '.join(str(error).split())}") from None
    kinds = {"about", "prefaces", "refusals", "notes"}
    keys = kinds | {"words", "dangling", "excuses"}
    if not isinstance(data, dict) or set(data) != keys:
        raise ValueError(f"{file}: expected the keys {', '.join(sorted(keys))}")
    excuses = data.pop("excuses")
    if not isinstance(excuses, dict) or set(excuses) != kinds:
        raise ValueError(f"{file}: excuses: expected the keys {', '.join(sorted(kinds))}")
    for key, items in [*data.items(), *((f"excuses.{k}", v) for k, v in excuses.items())]:
        if not isinstance(items, list):
            raise ValueError(
                f"{file}: {key}: expected a list of texts, found {items!r:.60}; write [...], or one "
                "text a line with a hyphen before it"
            )
        for item in items:
            if not isinstance(item, str):
                raise ValueError(f"{file}: {key}: expected texts, found {item!r} (quote it)")
    return Phrases(
        _alternatives(file, "about", data["about"], ""),
        # Runs are bounded: else a row of hyphens or brackets takes the square of its length.
        _alternatives(file, "prefaces", data["prefaces"], r"[\W_]{0,40}"),
        _alternatives(file, "refusals", data["refusals"], r"[\W_]{0,40}"),
        _alternatives(
            file,
            "notes",
            data["notes"],
            r"(?:[\n(（\[【*]|[.!?。！？।۔؟]\s)[\s*_(（\[【-]{0,20}",
        ),
        {
            key.removesuffix("s"): pattern
            for key, items in excuses.items()
            if (pattern := _alternatives(file, f"excuses.{key}", items, ""))
        },
        frozenset(word.casefold() for word in data["words"]),
        tuple(word.casefold() for word in data["dangling"]),
        digest(content),
    )


def _alternatives(file: Path, key: str, patterns: list[str], before: str) -> re.Pattern[str] | None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{file}: {key}: {pattern!r} is no regular expression: {error}"
            ) from None
    return (
        re.compile(before + "(?:" + "|".join(patterns) + ")", re.IGNORECASE) if patterns else None
    )


def excused(source: str, phrases: Phrases, name: str) -> bool:
    """Whether the source itself says something of the kind; then its translation may."""
    pattern = phrases.excuses.get(name)
    return bool(pattern and pattern.search(source))
