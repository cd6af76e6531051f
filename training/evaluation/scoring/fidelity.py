"""Language fidelity: is an answer in the requested language, and in the language of its question?

lingua detects the language. Its candidates are the task's languages and English only, because with all its
languages it calls some Hindi Marathi. Each paragraph is detected; the answer's language is that of most of its
text. Code, addresses, tags, quotations and option letters are removed first. An answer is "too short" if too
little text is left, or if little text fits two languages about equally well; such an answer is counted
separately, neither right nor wrong.

Source of the measure: Centurio (2501.05122). Its detector is not published.
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

METRIC = "language_fidelity@2"
# Shorter texts are not detected. In a text of both kinds, three words count as much as eight characters of a
# script without spaces.
LEAST_WORDS, LEAST_CHARACTERS = 3, 8
# A text of less than SHORT times that amount is detected only if lingua's confidences in the two most likely
# languages differ by CLEAR: lingua often takes three-word names in Spanish or Urdu for English or Arabic.
SHORT, CLEAR = 3, 0.3
# An answer is mixed if at least this share of its text is in other languages than its main one.
MIXED = 0.2
# Other codes in use -> lingua's code of the language.
_RENAMED = {"no": "nb", "iw": "he", "in": "id", "fil": "tl"}
_OTHER = "other"

_CODE = re.compile(
    r"```.*?(?:```|\Z)|<(script|style)\b.*?(?:</\1>|\Z)|<!doctype html.*?(?:</html>|\Z)|<html.*?(?:</html>|\Z)|`[^`\n]*`",
    re.DOTALL | re.IGNORECASE,
)
_ADDRESS = re.compile(r"(?:https?://|www\.)\S+|[^\s@]{1,64}@[^\s@]{1,255}")
_TAG = re.compile(r"</?[a-zA-Z][\w-]{0,30}(?:\s[^<>\n=]{1,40}=[^<>\n]{0,300})?\s{0,9}/?>")
_QUOTED = re.compile(r"\"[^\"\n]*\"|“[^”\n]*”|«[^»\n]*»|「[^」\n]*」|『[^』\n]*』|„[^“\n]*“")
_OPTION = re.compile(r"(?m)^[ \t]*\(?[A-Z][.):]\s|\( ?[A-Z] ?\)")


def prose(text: str) -> str:
    """Return the part of an answer that shows its language."""
    # lingua rejects half a surrogate pair.
    text = "".join(c for c in without_thought(text) if unicodedata.category(c) != "Cs")
    for pattern in (_CODE, _ADDRESS, _TAG, _OPTION):
        text = pattern.sub(" ", text)
    # Quotations are often names, so they are removed, unless too little text is left.
    unquoted = _QUOTED.sub(" ", text)
    return unquoted if _enough(unquoted) else text


def _amount(text: str) -> float:
    """Return the amount of text, in units of the least amount that is detected."""
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
    """Detects a text's language among the task's languages and English.

    Args:
        languages: BCP-47 codes of the task.
        distractors: other languages that answers may be in. A text in a language that is not a candidate
            is detected as the most similar candidate, or as "other".

    Raises:
        ValueError: lingua does not know a language, named by its code.
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
        """Return the amount of text in each language, "other" for no candidate; empty if the text is too short."""
        text = prose(text)
        found: dict[str, float] = {}
        if not _enough(text):
            return found
        # Lines that are too short alone, such as those of a list, are detected together.
        paragraphs = [line for line in text.split("\n") if _enough(line)] or [text]
        for paragraph in paragraphs:
            name = self._one(paragraph)
            if name is not None:
                found[name] = found.get(name, 0) + _amount(paragraph)
        return found

    def language(self, text: str) -> str | None:
        """Return the language of most of a text, "other" for no candidate, None if it is too short."""
        return _most(self.parts(text))

    def _one(self, text: str) -> str | None:
        """Return the language of a paragraph, "other" for no candidate, None if two languages fit a short one."""
        if _amount(text) < SHORT:
            likely = self._detector.compute_language_confidence_values(text)
            if len(likely) > 1 and 0 < likely[0].value < likely[1].value + CLEAR:
                return None
        return self._names.get(self._detector.detect_language_of(text), _OTHER)


def detectable(languages: Iterable[str]) -> list[str]:
    """Return the BCP-47 codes whose language lingua knows, in the given order."""
    lingua = need("lingua", "lingua-language-detector", "language fidelity")
    known = {language.iso_code_639_1.name.lower() for language in lingua.Language.all()}
    return [language for language in languages if _code(language) in known]


def same_language(found: str, asked: str) -> bool:
    """Return whether a detected language is that of a BCP-47 code."""
    return found == _code(asked)


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
    """An answer, its requested language (BCP-47), and its question, whose language may differ."""

    id: str
    language: str
    answer: str
    question: str | None = None


class LanguageFidelity(TypedDict):
    """Counts and shares for one requested language. Shares are of the detected answers; None if there are none."""

    n: int
    too_short: int
    detected: int
    in_language: int
    share: float | None
    questions_detected: int
    in_question_language: int
    question_share: float | None
    mixed: int
    found: dict[str, int]


class Fidelity(TypedDict):
    """All languages. `macro` is the mean over languages, as Centurio reports; ids are language/id."""

    metric: str
    detector: str
    languages: dict[str, LanguageFidelity]
    macro: float | None
    wrong_ids: list[str]
    too_short_ids: list[str]


def fidelity(answers: Iterable[Answer], detector: Detector | None = None) -> Fidelity:
    """Score the answers of each language; `found` is the language's row of the confusion table.

    Args:
        answers: answers in all languages of the task.
        detector: None: a detector of the requested languages and English.

    Raises:
        ValueError: there are no answers, or a language cannot be detected.
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
        score["detected"] += 1
        score["found"][found] = score["found"].get(found, 0) + 1
        score["mixed"] += parts[found] <= (1 - MIXED) * sum(parts.values())
        score["in_language"] += found == _code(answer.language)
        if found != _code(answer.language):
            wrong.append(f"{answer.language}/{answer.id}")
        asked_in = detector.language(answer.question) if answer.question else None
        if asked_in is not None:
            score["questions_detected"] += 1
            score["in_question_language"] += found == asked_in
    for score in languages.values():
        if score["detected"]:
            score["share"] = score["in_language"] / score["detected"]
        if score["questions_detected"]:
            score["question_share"] = score["in_question_language"] / score["questions_detected"]
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
        "detected": 0,
        "in_language": 0,
        "share": None,
        "questions_detected": 0,
        "in_question_language": 0,
        "question_share": None,
        "mixed": 0,
        "found": {},
    }
