"""Find phrases that models add to a translation or write instead of it; one file of phrases per language.

A file has regular expressions for talk about translating, prefaces, refusals and notes. For each kind it
has excuses: if one matches the source, the translation may contain the phrase. It also lists common words
of the language, to find untranslated parts, and words that cannot end a sentence.
"""

import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from ...common.reading import parse_yaml
from ...common.schema import build, digest
from .identify import primary

# Text that may precede a phrase, by kind. Repeats are bounded; otherwise a run of hyphens or brackets
# takes quadratic time.
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
    """A file of `phrases/`; `phrases/en.yaml` explains its keys."""

    words: list[str]
    dangling: list[str]
    excuses: PhraseLists


@dataclass(frozen=True)
class Phrases:
    """The phrases of one language. digest: hash of the file's content.

    said, excuses: kind ("about", "preface", "refusal", "note") -> pattern; kinds without phrases are
        missing.
    """

    said: dict[str, re.Pattern[str]]
    excuses: dict[str, re.Pattern[str]]
    words: frozenset[str]
    dangling: tuple[str, ...]
    digest: str


@lru_cache(maxsize=128)
def read_phrases(lang: str, path: str | None = None) -> Phrases:
    """Read the phrases of a language from `path` or the shipped file; without a file they are empty.

    Raises:
        ValueError: the file does not have the shape of `phrases/en.yaml`.
        OSError: `path` is missing.
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
                    f"{file}: {place}{key}: expected a regular expression, found {pattern!r}: {error}"
                ) from None
    return {
        key.removesuffix("s"): re.compile(
            f"{before.get(key, '')}(?:{'|'.join(patterns)})", re.IGNORECASE
        )
        for key, patterns in lists.items()
        if patterns
    }


def excused(source: str, phrases: Phrases, name: str) -> bool:
    """Return whether the source contains an excuse for phrases of a kind."""
    pattern = phrases.excuses.get(name)
    return bool(pattern and pattern.search(source))
