"""Build the prompts of a translator from `preambles/*.yaml`, and extract the translation from an answer.

    prompt = read_prompt("rules", "en", "fr", ("〘", "〙"))
    prompt.messages("a cat")      # system message, then the bare text
    prompt.unwrap("Sure! 〘un chat〙")   # "un chat"

`variants.yaml` has the preambles. Each language has one file with its name, its style and three
translated examples. All files translate the same three captions, so every direction has examples. A
further language needs one such file and nothing else.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from ...common.schema import build, digest, read_mapping
from ...common.thoughts import without_thought

FOLDER = Path(__file__).parent / "preambles"
_PLACE = re.compile(r"\{(\w+)\}")
Brackets = tuple[str, str]


@dataclass
class Answering:
    """The rule about the form of an answer: alone, or between {open} and {close}."""

    alone: str
    bracketed: str


@dataclass
class NativePart:
    """The preamble written in the target language."""

    role: str
    rules_heading: str
    rules: list[str]
    answer: Answering
    examples_heading: str
    labels: list[str]


@dataclass
class LanguagePart:
    """One file of `preambles/`.

    name: name of the language, in English.
    style: addition to the rule about signs.
    examples: the three captions of `en.yaml` in this language.
    native: the preamble in the language, for the variant `native`.
    """

    name: str
    style: str
    examples: list[str]
    native: NativePart | None = None


@dataclass(kw_only=True)
class EnglishPart(LanguagePart):
    """`en.yaml`, which also contains the English instructions for all languages."""

    rules: list[str]
    answer: Answering
    labels: list[str]


@dataclass(frozen=True)
class Prompt:
    """The whole prompt before the text, for one direction.

    system: the system message; None if the model takes none.
    brackets: the pair that must enclose the answer; None for a bare answer.
    style: "translategemma" puts language codes into the content, as that model's template requires.
    """

    name: str
    source: str
    target: str
    system: str | None
    brackets: Brackets | None
    style: Literal["preamble", "translategemma"] = "preamble"

    @cached_property
    def id(self) -> str:
        """Hash of everything that is sent, except the text."""
        return digest([self.messages(""), self.brackets])

    def messages(self, text: str) -> list[dict[str, Any]]:
        if self.style == "translategemma":
            content = {
                "type": "text",
                "source_lang_code": self.source,
                "target_lang_code": self.target,
                "text": text,
            }
            return [{"role": "user", "content": [content]}]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": text}]

    def unwrap(self, answer: str, text: str = "") -> str | None:
        """Return the text in the brackets of an answer; None if they are missing or ambiguous.

        A thought before the answer is removed; a thought alone counts as no answer.

        Args:
            answer: the model's answer.
            text: the translated text; an answer may repeat brackets that it contains.
        """
        said = without_thought(answer, text)
        if said is None or self.brackets is None:
            return said and said.strip()
        opened, closed = self.brackets
        start, end = said.find(opened), said.rfind(closed)
        if start < 0 or end < start:
            return None
        inside = said[start + len(opened) : end]
        if (opened in inside or closed in inside) and not (opened in text or closed in text):
            return None
        return inside.strip()


@lru_cache
def variants() -> dict[str, str]:
    """Return {name: text} of the shipped preambles."""
    return read_mapping(FOLDER / "variants.yaml")


def read_prompt(
    preamble: str,
    source: str,
    target: str,
    brackets: Brackets | None,
    parts: Mapping[str, str] | None = None,
) -> Prompt:
    """Return the prompt of a preamble in one direction.

    Args:
        preamble: name of a shipped preamble, or a text file with the same placeholders.
        source: source language.
        target: target language.
        brackets: the pair that must enclose the answer, or None.
        parts: language -> file, for further languages or to replace shipped files.

    Raises:
        ValueError: a language has no file, or a placeholder is unknown.
    """
    parts = parts or {}
    if preamble in variants():
        template = variants()[preamble]
    elif Path(preamble).is_file():
        template = Path(preamble).read_text(encoding="utf-8")
    else:
        raise ValueError(
            f"preamble: expected a text file or one of {', '.join(variants())}, found {preamble!r}"
        )
    places = _places(source, target, brackets, parts)
    if preamble == "native" and "native_role" not in places:
        raise ValueError(
            f"preamble 'native': {_file(target, parts)}: expected a part `native`, found none: add it or use 'rules'"
        )
    system = _fill(template, places, f"preamble {preamble!r}").strip()
    return Prompt(preamble, source, target, system, brackets)


def translategemma_prompt(source: str, target: str) -> Prompt:
    return Prompt("translategemma", source, target, None, None, "translategemma")


def examples(lang: str, parts: Mapping[str, str]) -> list[str]:
    """Return the examples in a language; an empty list if it has no file."""
    file = _find(lang, parts)
    return [] if file is None else _read_part(file).examples


def _places(
    source: str, target: str, brackets: Brackets | None, parts: Mapping[str, str]
) -> dict[str, str]:
    """Return placeholder -> value for a preamble."""
    english = _read_part(_file("en", {}))
    assert isinstance(english, EnglishPart)
    given, wanted = _read_part(_file(source, parts)), _read_part(_file(target, parts))
    if len(given.examples) != len(wanted.examples):
        raise ValueError(
            f"{_file(target, parts)}: examples: expected {len(given.examples)}, as in "
            f"{_file(source, parts)}, found {len(wanted.examples)}"
        )
    opened, closed = brackets or ("", "")
    pairs = list(zip(given.examples, wanted.examples, strict=True))

    def shown(labels: list[str]) -> str:
        return "\n\n".join(f"{labels[0]}: {a}\n{labels[1]}: {opened}{b}{closed}" for a, b in pairs)

    names = {"source": given.name, "target": wanted.name, "style": wanted.style}
    names |= {"open": opened, "close": closed}

    def answer(way: Answering) -> str:
        return _fill(way.bracketed if brackets else way.alone, names, "answer")

    places = {
        **names,
        "rules": _numbered([_fill(rule, names, "rules") for rule in english.rules]),
        "answer": answer(english.answer),
        "examples": shown(english.labels),
    }
    if (native := wanted.native) is not None:
        places |= {
            "native_role": native.role,
            "native_rules": f"{native.rules_heading}\n{_numbered(native.rules)}",
            "native_answer": answer(native.answer),
            "native_examples": f"{native.examples_heading}\n\n{shown(native.labels)}",
        }
    return places


def _numbered(rules: list[str]) -> str:
    return "\n".join(f"{number}. {rule}" for number, rule in enumerate(rules, 1))


def _fill(template: str, places: Mapping[str, str], where: str) -> str:
    def place(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in places:
            raise ValueError(
                f"{where}: expected placeholders of {', '.join(places)}, found {{{name}}}"
            )
        return places[name]

    return _PLACE.sub(place, template)


def _find(lang: str, parts: Mapping[str, str]) -> Path | None:
    """Return the file of a language: the plan's, the shipped one, or the one without the region."""
    for code in (lang, lang.split("-")[0]):
        if code in parts:
            return Path(parts[code])
        if (shipped := FOLDER / f"{code}.yaml").is_file():
            return shipped
    return None


def _file(lang: str, parts: Mapping[str, str]) -> Path:
    if (file := _find(lang, parts)) is not None:
        return file
    shipped = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "variants")
    raise ValueError(
        f"preamble: expected one of the languages {', '.join(shipped)}, found {lang!r}: write a file like "
        f"preambles/fr.yaml and name it in preamble_parts: {{{lang}: FILE}}"
    )


@lru_cache
def _read_part(path: Path) -> LanguagePart:
    data = read_mapping(path)
    return build(EnglishPart if "rules" in data else LanguagePart, data, str(path))
