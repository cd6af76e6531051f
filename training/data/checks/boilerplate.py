"""What models say around a translation, or instead of one: lists of phrases, one file a language.

Regular expressions for talk about translating, prefaces, refusals and notes, with what excuses them
when the source itself says something of the kind; common words of the language, by which a part left
untranslated is seen; and words on which no sentence ends.
"""

import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from ...common.reading import parse_yaml
from ...common.schema import build, digest
from .identify import primary

# What may stand before a phrase of a kind. Runs are bounded: else a row of hyphens or brackets takes
# the square of its length.
_BEFORE = {
    "prefaces": r"\A[\W_]{0,40}",
    "refusals": r"\A[\W_]{0,40}",
    "notes": r"(?:[\n(（\[【*]|[.!?。！？।۔؟]\s)[\s*_(（\[【-]{0,20}",
}


@dataclass
class PhraseLists:
    """Regular expressions by kind."""

    about: list[str]
    prefaces: list[str]
    refusals: list[str]
    notes: list[str]


@dataclass(kw_only=True)
class PhraseFile(PhraseLists):
    """A file of `phrases/`, explained in `phrases/en.yaml`."""

    words: list[str]
    dangling: list[str]
    excuses: PhraseLists


@dataclass(frozen=True)
class Phrases:
    """The phrases of one language; `digest` is of the file's content.

    said, excuses: pattern by kind: "about", "preface", "refusal", "note"; a kind without phrases has
        none.
    """

    said: dict[str, re.Pattern[str]]
    excuses: dict[str, re.Pattern[str]]
    words: frozenset[str]
    dangling: tuple[str, ...]
    digest: str


@lru_cache(maxsize=128)
def read_phrases(lang: str, path: str | None = None) -> Phrases:
    """Phrases of a language from `path`, or the shipped ones; empty if there are none.

    Raises ValueError for a file that is not as `phrases/en.yaml` is, OSError if `path` is missing.
    """
    shipped = Path(__file__).parent / "phrases" / f"{primary(lang)}.yaml"
    file = Path(path) if path else shipped
    if path is None and not file.exists():
        return Phrases({}, {}, frozenset(), (), "")
    content = file.read_text(encoding="utf-8")
    data = build(PhraseFile, parse_yaml(content, str(file)), str(file))
    kinds = list(asdict(data.excuses))
    return Phrases(
        _compiled(file, "", {kind: getattr(data, kind) for kind in kinds}, _BEFORE),
        _compiled(file, "excuses.", asdict(data.excuses), {}),
        frozenset(word.casefold() for word in data.words),
        tuple(word.casefold() for word in data.dangling),
        digest(content),
    )


def _compiled(
    file: Path, place: str, lists: dict[str, list[str]], before: dict[str, str]
) -> dict[str, re.Pattern[str]]:
    for key, patterns in lists.items():
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"{file}: {place}{key}: {pattern!r} is no regular expression: {error}"
                ) from None
    return {
        key.removesuffix("s"): re.compile(
            f"{before.get(key, '')}(?:{'|'.join(patterns)})", re.IGNORECASE
        )
        for key, patterns in lists.items()
        if patterns
    }


def excused(source: str, phrases: Phrases, name: str) -> bool:
    """Whether the source itself says something of the kind; then its translation may."""
    pattern = phrases.excuses.get(name)
    return bool(pattern and pattern.search(source))
