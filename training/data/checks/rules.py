"""Run all checks of one translated text against its source, cheaply and offline, on every row.

Each check that fires adds a `Flag`. A hard flag makes the translator retry the row and finally rejects it;
soft flags are for people, quality estimation and statistics. The plan says which checks are hard.
`tests/benchmarks/verification_rates.py` measures what each check catches and how often it is wrong. No
check understands a text: only a quality-estimation model finds a fluent caption of another image. A language
without phrases gets the checks that need none, and the English phrases, because models mostly comment in
English.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...common.schema import digest, to_dict
from .boilerplate import excused, read_phrases
from .identify import Identified, Identifier, code_of, primary, scripts
from .plan import DEFAULTS, LENGTHS, CheckPlan, Flag, LengthBin
from .repetition import find_repetition

# Increase when a check decides differently on the same text.
VERSION = 3


@dataclass(frozen=True)
class Examination:
    """The findings about one text.

    identified: its language.
    length_z: None if the plan has no lengths for the language.
    """

    flags: list[Flag]
    identified: Identified
    length_z: float | None

    @property
    def hard(self) -> bool:
        return any(flag.hard for flag in self.flags)


# Code must stay unchanged; the checks look at the language around it.
_KEPT = re.compile(r"<image>|```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_COLON = re.compile(r"[:：](?!\d)")
_ASIDE = re.compile(r"[(（〔【]")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？।۔؟]")
_MARKUP = re.compile(
    r"<\|?/?[a-zA-Z_][\w |/=\"'-]*>|```|\*\*|\[/?INST\]|^#{1,4} |\\n|&(?:amp|lt|gt|quot|nbsp);|\[\[|\]\]"
)
_END = re.compile(r"[.!?…。！？।॥۔؟][\"'”’»」』）)\]]*\s*$")
_QUOTED = re.compile(r"\s*[\"“”«„「『'‘].*[\"”“»」』'’]\s*$", re.S)
_LATIN_WORD = re.compile(r"[A-Za-z\u00c0-\u024f0-9]+(?:[-._/'’@+][A-Za-z\u00c0-\u024f0-9]+)*")
# Four lower-case Latin words, in a language of another script.
_LATIN_RUN = re.compile(r"(?:\b[a-z][a-z'’]{0,40}[ ,;]{1,20}){3,}[a-z]+")
_DIGITS = re.compile(r"\d+")
_EDGES = "\"'“”‘’«»„()[]{}<>（）【】「」『』.,;:!?…。，、；：！？।۔؟،؛*_-–—·/\\|"


class RowChecker:
    """Check translations of one source language into several target languages.

    key: hash of everything that affects the results.

    Args:
        source_language: BCP-47 code of the sources.
        languages: target languages.
        plan: hard, soft and disabled checks, and thresholds.

    Raises:
        ValueError: a language cannot be identified.
    """

    def __init__(self, source_language: str, languages: Sequence[str], plan: CheckPlan = DEFAULTS):
        self.plan, self.source_language = plan, source_language
        self.languages = list(dict.fromkeys(languages))
        own = {code_of(lang) for lang in (source_language, *languages)}
        self.identifier = Identifier(
            [source_language, *self.languages],
            [lang for lang in plan.distractors if code_of(lang) not in own],
            least=plan.least_letters,
            least_latin=plan.least_latin_letters,
            scripts=plan.scripts,
        )
        self._hard = frozenset(plan.hard)
        self._off = frozenset(plan.off)
        self._phrases = {
            lang: read_phrases(lang, plan.phrases.get(lang))
            for lang in (source_language, *self.languages, "en")
        }
        self._source_phrases = self._phrases[source_language]
        foreign = self._source_phrases.words | self._phrases["en"].words
        # Words of the source language (or English) that the target language does not have.
        self._foreign = {lang: foreign - self._phrases[lang].words for lang in self.languages}
        self._scripts = {
            lang: frozenset(self.identifier.candidates[code_of(lang)]) for lang in self.languages
        }
        self._source_scripts = self.identifier.candidates[code_of(source_language)]
        self._lengths = {lang: self._bins(lang) for lang in self.languages}
        self.key = digest(
            {
                "version": VERSION,
                "source": source_language,
                "languages": sorted(self.languages),
                "plan": to_dict(plan),
                "phrases": {lang: phrases.digest for lang, phrases in self._phrases.items()},
                "identification": self.identifier.version,
            }
        )

    def _bins(self, lang: str) -> list[LengthBin]:
        if lang in self.plan.lengths:
            return self.plan.lengths[lang]
        source, target = LENGTHS.get(primary(self.source_language)), LENGTHS.get(primary(lang))
        if source is None or target is None:
            return []
        spread = (
            target[1] if primary(self.source_language) == "en" else math.hypot(source[1], target[1])
        )
        return [LengthBin(0, target[0] - source[0], spread)]

    def check(
        self, source: str, text: str, lang: str, finish_reason: str | None = None
    ) -> list[Flag]:
        """Return the flags of one text, hard flags first.

        Raises:
            ValueError: the language is not one of the target languages.
        """
        return self.examine(source, text, lang, finish_reason).flags

    def examine_turns(
        self,
        source: Sequence[Mapping[str, str]],
        turns: Sequence[Mapping[str, str]],
        lang: str,
        finish_reason: str | None = None,
    ) -> Examination:
        """Examine every turn; report the language of the least certain turn and the most extreme length."""
        roles, expected = [t["role"] for t in turns], [t["role"] for t in source]
        if roles != expected:
            detail = f"expected turns of {', '.join(expected) or 'nobody'}, found {', '.join(roles) or 'none'}"
            return Examination([Flag("empty", True, detail)], Identified("", 0.0, 0.0), None)
        flags: dict[str, Flag] = {}
        identified, length_z = Identified("", 0.0, 0.0), None
        for number, (before, after) in enumerate(zip(source, turns, strict=True), 1):
            one = self.examine(before["content"], after["content"], lang, finish_reason)
            for flag in one.flags:
                flags.setdefault(
                    flag.name, Flag(flag.name, flag.hard, f"turn {number}: {flag.detail}")
                )
            if one.identified.language and (
                not identified.language or one.identified.expected < identified.expected
            ):
                identified = one.identified
            if one.length_z is not None and abs(one.length_z) >= abs(length_z or 0.0):
                length_z = one.length_z
        ordered = sorted(flags.values(), key=lambda flag: not flag.hard)
        return Examination(ordered, identified, length_z)

    def examine_row(self, row: Mapping[str, Any]) -> Examination:
        """Examine a translated row: `text` against `source_text`, or `turns` against the turns in `source_text`."""
        lang, reason = row["lang"], row.get("finish_reason")
        if row.get("turns") is not None:
            return self.examine_turns(json.loads(row["source_text"]), row["turns"], lang, reason)
        return self.examine(row["source_text"], row["text"] or "", lang, reason)

    def examine(
        self, source: str, text: str, lang: str, finish_reason: str | None = None
    ) -> Examination:
        """Run all checks on one text.

        Raises:
            ValueError: the language is not one of the target languages.
        """
        # 1. Placeholders and finish reason
        if lang not in self._scripts:
            raise ValueError(
                f"language {lang!r}: expected one of {', '.join(self.languages)}: "
                "texts in other languages cannot be checked"
            )
        found: list[tuple[str, str]] = []
        if finish_reason not in (None, "stop"):
            found.append(("finish_reason", str(finish_reason)))
        if text.count("<image>") != source.count("<image>"):
            told = f"{text.count('<image>')} <image>, {source.count('<image>')} expected"
            found.append(("placeholder", told))
        # 2. The text without code
        source = _KEPT.sub(" ", source).strip()
        text = _KEPT.sub(" ", text).strip()
        identified, length_z = Identified("", 0.0, 0.0), None
        if not text:
            if source:
                found.append(("empty", "no text"))
        else:
            length_z = self._length(source, text, lang, found)
            identified = self._language(source, text, lang, found)
            self._comments(source, text, lang, found)
            if repetition := find_repetition(source, text):
                found.append(repetition)
            self._marks(source, text, lang, found)
        # 3. Flags: the first finding of each name, hard flags first
        named = dict(reversed(found))
        flags = [
            Flag(name, name in self._hard, named[name])
            for name in dict(found)
            if name not in self._off
        ]
        flags.sort(key=lambda flag: not flag.hard)
        return Examination(flags, identified, length_z)

    def _length(
        self, source: str, text: str, lang: str, found: list[tuple[str, str]]
    ) -> float | None:
        bins = self._lengths[lang]
        if not bins or not source:
            return None
        size = len(source)
        model = bins[0]
        for item in bins:
            if item.least <= size:
                model = item
        # One character is much for a name and little for a sentence.
        spread = math.hypot(model.spread, 2.0 / size)
        z = (math.log(len(text) / size) - model.median) / spread
        if abs(z) > self.plan.length_z:
            # For a name the ratio means little: "tasse" is right for "teacup without handle".
            off = abs(len(text) / math.exp(model.median) - size)
            extreme = (
                abs(z) > self.plan.length_extreme_z and off >= self.plan.length_extreme_characters
            )
            name = "length_extreme" if extreme else "length"
            found.append((name, f"{len(text)} characters from {size}, z {z:+.1f}"))
        return z

    def _language(
        self, source: str, text: str, lang: str, found: list[tuple[str, str]]
    ) -> Identified:
        words = _words(text)
        source_words = _words(source)
        copied = self._copied(source_words, words, lang, found)
        own = self._scripts[lang]
        # Ignore unchanged names: they say nothing about the language of the text.
        rest = _without(text, _names(source_words))
        counts = scripts(rest)
        total = sum(counts.values())
        inside = sum(counts[script] for script in own)
        outside = total - inside
        if outside > inside * (1 / self.plan.script_share - 1) and (outside > 3 or not inside):
            if inside and "latin" not in own:
                # Words that no capital marks as names: file names, models, brands in lower case.
                kept = set(_LATIN_WORD.findall(source)) - self._foreign[lang]
                kept_counts = scripts(_without(text, kept))
                foreign = sum(kept_counts.values()) - sum(kept_counts[script] for script in own)
            else:
                foreign = outside
            # Some letters may come from the source; letters of a third script may not.
            theirs = {*own, *self._source_scripts}
            strange = not inside and any(counts[script] for script in counts.keys() - theirs)
            name = "script" if strange or foreign > 3 else "kept_words"
            found.append((name, f"{inside} of {total} letters are {' or '.join(sorted(own))}"))
            if name == "kept_words":
                return Identified("", 0.0, 0.0)
        if "latin" not in own:
            run = _LATIN_RUN.search(rest)
            if run and not set(_words(run.group())) <= set(source_words) - self._foreign[lang]:
                found.append(("mixed_language", run.group().strip()[:60]))
        stray = [
            s for s in counts if s not in own and s != "latin" and s not in self._source_scripts
        ]
        if stray and inside:
            found.append(("stray_script", ", ".join(f"{counts[s]} {s}" for s in stray)))
        identified = self.identifier.identify(rest, lang, counts)
        code = code_of(lang)
        if identified.language and identified.language != code and not copied:
            detail = f"{identified.language} {identified.confidence:.2f}, {code} {identified.expected:.2f}"
            sure = (
                identified.confidence >= self.plan.language_confidence
                and identified.expected <= self.plan.language_expected
            )
            if sure:
                found.append(("language", detail))
            elif identified.expected < min(self.plan.language_unsure, identified.confidence / 2):
                found.append(("language_unsure", detail))
        return identified

    def _copied(
        self, source: list[str], words: list[str], lang: str, found: list[tuple[str, str]]
    ) -> bool:
        """Flag copies and parts left in the source language; return True for the copy of a name."""
        if not words or primary(lang) == primary(self.source_language):
            return False
        folded = [w.casefold() for w in words]
        before = [w.casefold() for w in source]
        foreign = self._foreign[lang]
        if folded == before:
            plain = [w for w in source if w.islower() and w.isalpha()]
            titled = len(source) > 2 and not any(any(c.isdigit() for c in w) for w in source)
            if (len(source) > 2 and (plain or titled)) or any(w in foreign for w in before):
                found.append(("copy", "the same as the source"))
                return False
            if any(w.isalpha() for w in source):
                found.append(("copy_name", "the same as the source"))
            return True
        # Words inside a run of three or more that also occurs in the source.
        runs = {tuple(before[i : i + 3]) for i in range(len(before) - 2)}
        inside = [False] * len(words)
        if runs:
            for i in range(len(words) - 2):
                if tuple(folded[i : i + 3]) in runs:
                    inside[i] = inside[i + 1] = inside[i + 2] = True
        kept = sum(inside)
        markers = [
            w for w, plain in zip(folded, words, strict=True) if w in foreign and plain.islower()
        ]
        in_runs = any(
            flag and w in foreign and plain.islower()
            for flag, w, plain in zip(inside, folded, words, strict=True)
        )
        share = max(kept if in_runs else 0, 3 * len(markers) if len(markers) > 2 else 0) / len(
            words
        )
        if share >= self.plan.mixed_share:
            found.append(("mixed_language", f"among {len(words)} words: {' '.join(markers[:6])}"))
        else:
            # In a language of another script, two such words are as significant as a run of three.
            latin = "latin" in self._scripts[lang]
            left = [
                w
                for w, run in zip(words, inside, strict=True)
                if w.isascii() and w.isalpha() and w.islower() and len(w) > 2
                and (run if latin else w in before)
            ]  # fmt: skip
            if len(left) > 1:
                found.append(("kept_words", " ".join(left[:6])))
        return False

    def _comments(self, source: str, text: str, lang: str, found: list[tuple[str, str]]) -> None:
        lists = [self._phrases[lang], self._phrases["en"]]
        if primary(lang) == "en":
            lists = lists[:1]
        for name in ("about", "preface", "refusal", "note"):
            for phrases in lists:
                # A note cannot be the beginning of the text.
                pattern, start = phrases.said.get(name), int(name == "note")
                match = pattern.search(text, start) if pattern else None
                if match and not excused(source, self._source_phrases, name):
                    if name == "about":
                        found.append(("about_translation", match.group()))
                    else:
                        told = match.group().strip() if name == "note" else match.group()
                        found.append((name, told[:60]))
                    break
        lines = sum(1 for line in text.split("\n") if line.strip())
        expected = max(1, sum(1 for line in source.split("\n") if line.strip()))
        if lines > expected:
            found.append(("extra_lines", f"{lines} lines, {expected} in the source"))
        for name, find in (
            ("colon", _COLON.finditer),
            ("aside", _ASIDE.finditer),
            ("extra_sentence", _sentences),
        ):
            places = [match.start() for match in find(text)]
            if places and len(places) > len(list(find(source))):
                found.append((name, text[max(0, places[-1] - 20) : places[-1] + 20]))
        if _QUOTED.match(text) and not _QUOTED.match(source):
            found.append(("quoted", text[:1] + text[-1:]))

    def _marks(self, source: str, text: str, lang: str, found: list[tuple[str, str]]) -> None:
        left = [b for b in self.plan.brackets if b in text and b not in source]
        if left:
            found.append(("brackets", " ".join(left)))
        markup = _MARKUP.search(text)
        if markup and not _MARKUP.search(source):
            found.append(("markup", markup.group()[:30]))
        numbers = _DIGITS.findall(source)
        if numbers:
            # Compare digits of all scripts without separators: 1,000 equals 1 000 and ١٠٠٠.
            have = _ascii_digits(text)
            missing = [n for n in numbers if _ascii_digits(n) not in have]
            if missing:
                found.append(("numbers", f"{', '.join(missing[:5])} missing"))
        if not _END.search(text):
            if _END.search(source):
                found.append(("end_mark", f"ends on {text[-1]!r}"))
            last = self._dangles(text, self._phrases[lang].dangling)
            if last and not self._dangles(source, self._source_phrases.dangling):
                found.append(("dangling", last))

    @staticmethod
    def _dangles(text: str, dangling: Iterable[str]) -> str:
        folded = text.casefold().rstrip()
        for word in dangling:
            if folded.endswith(word):
                before = folded[: -len(word)]
                # Chinese and Japanese have no spaces; in other languages a space must precede the word.
                if before and (ord(word[0]) > 0x2E7F or word[0] in "、，" or before[-1].isspace()):
                    return word
        return ""


def _sentences(text: str) -> Iterator[re.Match[str]]:
    """Yield end marks that have a letter or digit anywhere after them."""
    last = next((i for i in range(len(text) - 1, -1, -1) if _is_word(text[i])), -1)
    return (match for match in _SENTENCE_END.finditer(text) if match.end() <= last)


def _is_word(letter: str) -> bool:
    return letter == "_" or letter.isalnum()


def _ascii_digits(text: str) -> str:
    """Return the decimal digits of a text, of any script, as ASCII."""
    return "".join(str(int(c)) for c in text if c.isdecimal())


def _words(text: str) -> list[str]:
    """Split at spaces, and strip punctuation around words."""
    return [w for w in (part.strip(_EDGES) for part in text.split()) if w]


def _names(words: Sequence[str]) -> set[str]:
    """Return source words that a translation may keep unchanged: words with a digit or a capital.

    If the source is all capitals or Capitalises Every Word, capitals do not count.
    """
    letters = [w for w in words if w[0].isalpha()]
    capitals = sum(1 for w in letters if not w[0].islower())
    trusted = capitals <= 0.6 * len(letters)
    return {
        w
        for i, w in enumerate(words)
        if (trusted and i and not w.islower() and w[0].isalpha()) or any(map(str.isdigit, w))
    }


def _without(text: str, words: Collection[str]) -> str:
    """Remove these words from the text; in Chinese and Japanese no spaces surround them."""
    if not words:
        return text
    return _LATIN_WORD.sub(lambda match: " " if match.group() in words else match.group(), text)
