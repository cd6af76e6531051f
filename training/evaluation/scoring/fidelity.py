"""Language fidelity: is an answer in the language it was asked for in, and in that of its question?

Detection is lingua's, among the languages of the task and English only: among all its languages a part of
Hindi is called Marathi. An answer's language is the one that most of its text is in, paragraph by paragraph. Code, addresses, tags, quotations and option letters say nothing about it
and are taken out first. An answer with too little left is "too short", which is neither right nor wrong.

Source: Centurio (2501.05122) for the measure; its detector is not published.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any, TypedDict

from .packages import need
from .plain import is_word_character, script_kind, without_thought

METRIC = "language_fidelity@1"
# A text with less than this cannot be told. Three words count as much as eight characters of a script
# without spaces, in a text that has both.
LEAST_WORDS, LEAST_CHARACTERS = 3, 8
# From this share of the text on, another language makes an answer mixed.
MIXED = 0.2
# lingua's names for languages that have another code in use.
_RENAMED = {"no": "nb", "iw": "he", "in": "id", "fil": "tl"}
_OTHER = "other"

_CODE = re.compile(
    r"```.*?(?:```|\Z)|<(script|style)\b.*?(?:</\1>|\Z)|<!doctype html.*?(?:</html>|\Z)|<html.*?(?:</html>|\Z)|`[^`\n]*`",
    re.DOTALL | re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|[^\s@]{1,64}@[^\s@]{1,255}")
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,200}>")
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|「[^」\n]*」|『[^』\n]*』|„[^“\n]*“")
_OPTION = re.compile(r"(?m)^[ \t]*\(?[A-Z][.):]\s|\( ?[A-Z] ?\)")


def prose(text: str) -> str:
    """What of an answer says which language it is in."""
    # lingua takes no half of a surrogate pair.
    text = "".join(c for c in without_thought(text) if unicodedata.category(c) != "Cs")
    for pattern in (_CODE, _ADDRESS, _TAG, _OPTION):
        text = pattern.sub(" ", text)
    # A name in quotes is no sign of a language, but an answer that is one quotation is all there is.
    unquoted = _QUOTED.sub(" ", text)
    return unquoted if _enough(unquoted) else text


def _amount(text: str) -> float:
    """Text in units of the least that can be told: words, or characters of scripts without spaces."""
    characters = sum(is_word_character(c) and script_kind(c) == "unspaced" for c in text)
    spaced = "".join(
        " " if is_word_character(c) and script_kind(c) == "unspaced" else c for c in text
    )
    words = sum(
        any(unicodedata.category(c).startswith("L") for c in word) for word in spaced.split()
    )
    return words / LEAST_WORDS + characters / LEAST_CHARACTERS


def _enough(text: str) -> bool:
    return _amount(text) >= 1


def _most(parts: Mapping[str, float]) -> str | None:
    return max(sorted(parts), key=lambda name: parts[name]) if parts else None


def _code(language: str) -> str:
    primary = language.lower().replace("_", "-").split("-")[0]
    return _RENAMED.get(primary, primary)


class Detector:
    """Tells the languages of a task and English apart.

    Args:
        languages: BCP-47 codes of the task.
        distractors: other languages that answers may turn out to be in. A language that is not among
            the candidates is taken for the one most like it, or for none.

    Raises:
        ValueError: a language that lingua does not know, with its code.
        ModuleNotFoundError: lingua, of the extra "eval", is not installed.
    """

    def __init__(self, languages: Sequence[str], distractors: Sequence[str] = ()):
        self.languages = sorted({_code(language) for language in (*languages, *distractors, "en")})
        self._detector, self._names = _lingua(tuple(self.languages))

    @property
    def id(self) -> str:
        version = metadata.version("lingua-language-detector")
        return f"{METRIC}, lingua {version} among {' '.join(self.languages)}"

    def parts(self, text: str) -> dict[str, float]:
        """How much of an answer is in each language, "other" for none of the candidates.

        Empty where there is too little to tell.
        """
        text = prose(text)
        found: dict[str, float] = {}
        if not _enough(text):
            return found
        # Short lines, such as a list's, cannot be told one by one, only all lines together.
        paragraphs = [line for line in text.split("\n") if _enough(line)] or [text]
        for paragraph in paragraphs:
            name = self._one(paragraph)
            found[name] = found.get(name, 0) + _amount(paragraph)
        return found

    def language(self, text: str) -> str | None:
        """The language of most of a text, "other" for none of the candidates, None if too short."""
        return _most(self.parts(text))

    def _one(self, text: str) -> str:
        return self._names.get(self._detector.detect_language_of(text), _OTHER)


@lru_cache(maxsize=8)
def _lingua(codes: tuple[str, ...]) -> tuple[Any, dict[Any, str]]:
    lingua = need("lingua", "lingua-language-detector", "language fidelity")
    known = {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise ValueError(
            f"{METRIC}: language {unknown[0]!r}: expected one of {' '.join(sorted(known))}: leave it out"
        )
    detector = lingua.LanguageDetectorBuilder.from_languages(
        *(known[code] for code in codes)
    ).build()
    return detector, {known[code]: code for code in codes}


# ------------------------------------------------------------------------------ scores


@dataclass(frozen=True)
class Answer:
    """An answer, the language asked for (BCP-47), and the question where its language may differ."""

    id: str
    language: str
    answer: str
    question: str | None = None


class LanguageFidelity(TypedDict):
    """One language asked for. Shares are of the answers that can be told; None without any."""

    n: int
    too_short: int
    told: int
    in_language: int
    share: float | None
    questions_told: int
    in_question_language: int
    question_share: float | None
    mixed: int
    found: dict[str, int]


class Fidelity(TypedDict):
    """All languages; `macro` is the mean over languages, as Centurio reports. Lists name the answers."""

    metric: str
    detector: str
    languages: dict[str, LanguageFidelity]
    macro: float | None
    wrong_ids: list[str]
    too_short_ids: list[str]


def fidelity(answers: Iterable[Answer], detector: Detector | None = None) -> Fidelity:
    """Fidelity for each language, with what was found instead (`found`, the row of a confusion table).

    Args:
        answers: of all languages of the task.
        detector: by default among the languages asked for and English.

    Raises:
        ValueError: no answers, or a language that cannot be detected.
    """
    answers = list(answers)
    if not answers:
        raise ValueError(f"{METRIC}: expected at least one answer, found none")
    detector = detector or Detector([answer.language for answer in answers])
    languages: dict[str, LanguageFidelity] = {}
    wrong: list[str] = []
    too_short: list[str] = []
    for answer in answers:
        score = languages.setdefault(answer.language, _empty())
        parts = detector.parts(answer.answer)
        found = _most(parts)
        score["n"] += 1
        if found is None:
            score["too_short"] += 1
            too_short.append(f"{answer.language}/{answer.id}")
            continue
        score["told"] += 1
        score["found"][found] = score["found"].get(found, 0) + 1
        score["mixed"] += parts[found] <= (1 - MIXED) * sum(parts.values())
        score["in_language"] += found == _code(answer.language)
        if found != _code(answer.language):
            wrong.append(f"{answer.language}/{answer.id}")
        asked_in = detector.language(answer.question) if answer.question else None
        if asked_in is not None:
            score["questions_told"] += 1
            score["in_question_language"] += found == asked_in
    for score in languages.values():
        if score["told"]:
            score["share"] = score["in_language"] / score["told"]
        if score["questions_told"]:
            score["question_share"] = score["in_question_language"] / score["questions_told"]
    shares = [score["share"] for score in languages.values() if score["share"] is not None]
    return {
        "metric": METRIC,
        "detector": detector.id,
        "languages": dict(sorted(languages.items())),
        "macro": sum(shares) / len(shares) if shares else None,
        "wrong_ids": wrong,
        "too_short_ids": too_short,
    }


def _empty() -> LanguageFidelity:
    return {
        "n": 0,
        "too_short": 0,
        "told": 0,
        "in_language": 0,
        "share": None,
        "questions_told": 0,
        "in_question_language": 0,
        "question_share": None,
        "mixed": 0,
        "found": {},
    }
