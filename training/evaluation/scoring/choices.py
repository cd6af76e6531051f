r"""Multiple choice: the parser that finds the option an answer names, in any language, or None.

The parser tries these steps, from the most to the least explicit form of an answer:

1. The whole answer is a letter or the text of an option.
2. A JSON value, an <answer> tag or a \boxed{} holds the answer.
3. A line holds only a letter.
4. A letter or text follows or precedes "answer": "The answer is C", "答案是B", "B is the correct answer".
5. A letter begins the answer or a line and is followed by a mark.
6. A letter or text follows "option".
7. Letters stand alone in sentences.
8. The texts of options occur in sentences.

The first step that finds a candidate decides. The result is None if that step finds two different candidates, and
for letters without an option, negated options, refusals, and letters with two possible readings.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from .leads import (
    ANSWER,
    FILLERS,
    FOLLOWERS,
    JOINERS,
    NEGATIONS,
    NEGATIONS_INSIDE,
    OPTION,
    REFUSAL,
    occurrences,
)
from .parsed import Parser
from .plain import at_boundary, is_word_character, lowered, plain, visible, without_thought, words

LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# The letters that tasks and models write for the first, second, ... option.
_ALPHABETS = [
    [plain(letter) for letter in letters.split()]
    for letters in (
        "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
        "а б в г д е ж з",
        # Cyrillic letters that sound like A, B, C, D.
        "а б ц д",
        "α β γ δ ε",
        "أ ب ج د ه و",
        "ا ب ت ث",
        "الف ب ج د",
        "क ख ग घ ङ",
        "अ ब स द",
        "ए बी सी डी ई",
        "ক খ গ ঘ ঙ",
        "এ বি সি ডি ই",
        "اے بی سی ڈی ای",
        "א ב ג ד ה",
        "ก ข ค ง จ",
        "가 나 다 라 마",
        "ア イ ウ エ オ",
        "甲 乙 丙 丁 戊",
    )
]
# Letters that look alike in two scripts. В is the third Cyrillic letter and looks like a Latin B.
_ALIKE = dict(zip("авсекмнорт", "abcekmhopt", strict=True))
_ALIKE |= {latin: cyrillic for cyrillic, latin in _ALIKE.items()}
# Letters that, as capitals, are words too or can begin a sentence: "A man", "I see", "Y así", "В центре".
_WORDS = frozenset("aieoyuvzsk")
_ARTICLES = re.compile(r"(?:an?|the|une?|l[ae]s?|el|los|un[ao]s?|der|die|das|eine?) (?=.)")
_CAPITALS = frozenset(LATIN)
_LETTERS = frozenset(letter for letters in _ALPHABETS for letter in letters) | frozenset(_ALIKE)
_ENCLOSING = ("()", "[]", "{}", '""', "''", "«»", "“”", "「」", "『』", "【】")
_JOINING_MARKS = (",", "/", "&", "+", ":", "、", "،")
_SENTENCE_ENDS = ".!?。।۔؟;"
_CLAUSE_END = re.compile(r"[.!?。।؟۔,;:、،؛\n]")
_MOST_FILLERS = 8
# A step yields this for a letter without an option.
_NOT_OFFERED = ""
_MARKED = re.compile(
    r"<answer>(?P<tag>.*?)</answer>|\\boxed\{(?P<box>[^{}]*)\}"
    r"|[\"'](?:choice|answer|option)[\"']\s*:\s*(?P<quote>[\"'])(?P<json>.*?)(?P=quote)",
    re.IGNORECASE | re.DOTALL,
)


class Choice(NamedTuple):
    """The result of a multiple-choice parser.

    Args:
        letter: the parsed label, None if there is none. Public parsers may return a letter without an
            option.
        guesses: whether the original script draws a random letter here.
    """

    letter: str | None
    guesses: bool = False


def letters_for(texts: Sequence[str]) -> dict[str, str]:
    """Return the options of a question as A, B, C, ... -> text.

    Raises:
        ValueError: there are more than 26 options.
    """
    if len(texts) > len(LATIN):
        raise ValueError(f"options: expected at most {len(LATIN)}, found {len(texts)}")
    return dict(zip(LATIN, texts, strict=False))


def parse_choice(response: str, options: Mapping[str, str]) -> Choice:
    """Return the label of the option that `response` names.

    Args:
        response: the model's answer.
        options: label -> text, in the order of the question. Labels are those shown in the question: A to
            Z, letters of another script, numbers, or (1). A text may be empty, as for pictures.

    Raises:
        ValueError: there are no options, or two labels are equal once normalised.
    """
    question = _Question(options)
    return Choice(question.read(visible(without_thought(response))))


class _Text:
    """An answer and its words, each as (begin, end)."""

    def __init__(self, text: str):
        self.text, self.folded = text, lowered(text)
        self.words = words(text)
        self.index = {begin: index for index, (begin, _) in enumerate(self.words)}

    def word(self, index: int) -> str:
        """Return a word in lower case, "" for an index out of range."""
        if not 0 <= index < len(self.words):
            return ""
        begin, end = self.words[index]
        return self.folded[begin:end]

    def is_capital(self, index: int) -> bool:
        begin, end = self.words[index]
        return self.text[begin:end] in _CAPITALS

    def between(self, index: int) -> str:
        """Return the text between a word and the word before it."""
        return self.text[self.words[index - 1][1] : self.words[index][0]]

    def ends(self, index: int) -> bool:
        """Return whether a mark, a line end or the end of the text follows a word."""
        rest = self.text[self.words[index][1] :].lstrip(" ")[:1]
        return not rest or not is_word_character(rest)

    def is_enclosed(self, index: int) -> bool:
        """Return whether a word is in brackets or quotes."""
        begin, end = self.words[index]
        pair = self.text[max(begin - 1, 0) : begin] + self.text[end : end + 1]
        return pair in _ENCLOSING

    def may_be_label(self, index: int) -> bool:
        """Return whether a word that looks like a label is one, and not a word of the sentence."""
        following = self.word(index + 1)
        if self.ends(index) or following in FOLLOWERS or following in JOINERS:
            return True
        if not self.is_capital(index):
            return False
        # Chinese and Japanese put no space between a letter and the next word.
        return self.word(index) not in _WORDS or self.between(index + 1) == ""


class _Question:
    """The options of one question, prepared for the search."""

    def __init__(self, options: Mapping[str, str]):
        if not options:
            raise ValueError("options: expected at least one, found none")
        self.labels = list(options)
        own = [_bare(label) for label in self.labels]
        if len(set(own)) < len(own) or "" in own:
            raise ValueError(f"options: expected different labels, found {self.labels}")
        self.signs = dict(zip(own, self.labels, strict=True))
        if not any(sign.isdecimal() for sign in own):
            self._add_other_letters(own)
        cores = {label: _core(text) for label, text in options.items()}
        self.texts = {label: core for label, core in cores.items() if core}

    def _add_other_letters(self, own: list[str]) -> None:
        """Add letters of other alphabets that stand for exactly one option."""
        meanings: dict[str, set[int]] = {}
        for letters in _ALPHABETS:
            for place, letter in enumerate(letters[: len(own)]):
                meanings.setdefault(letter, set()).add(place)
        for letter, twin in _ALIKE.items():
            if twin in own:
                meanings.setdefault(letter, set()).add(own.index(twin))
        for letter, places in meanings.items():
            if letter not in self.signs and len(places) == 1:
                self.signs[letter] = self.labels[places.pop()]

    def read(self, answer: str, marked: bool = True) -> str | None:
        """Return the label that an answer names, None if it names none or several."""
        text = _Text(answer)
        steps = [
            self._whole,
            *([self._marked] if marked else []),
            self._alone,
            self._announced,
            self._leading,
            self._as_option,
            self._in_sentences,
            self._content,
        ]
        for step in steps:
            found = set(step(text))
            if found:
                return found.pop() or None if len(found) == 1 else None
        return None

    # ------------------------------------------------------------------ the steps

    def _whole(self, answer: _Text) -> Iterator[str]:
        """Read an answer that is a label or the text of an option, and nothing else."""
        sign = _bare(answer.text)
        if sign in self.signs:
            yield self.signs[sign]
            return
        core = _core(sign)
        same = [label for label, own in self.texts.items() if own == core]
        yield from same
        parts = [answer.word(index) for index in range(len(answer.words))]
        letters = all(part in self.signs or part in _LETTERS for part in parts)
        # Several letters with nothing else name no option: "A C", "A;C", "N/A".
        if not same and letters and len(set(parts)) > 1:
            first = self.signs.get(parts[0])
            if first is None or self.texts.get(first) != " ".join(parts[1:]):
                yield _NOT_OFFERED
        if not same and sign in _LETTERS:
            yield _NOT_OFFERED

    def _marked(self, answer: _Text) -> Iterator[str]:
        """Read JSON values, tags and boxes. Content that cannot be read names no option."""
        for match in _MARKED.finditer(answer.text):
            content = next(
                match[name] for name in ("tag", "box", "json") if match[name] is not None
            )
            yield self.read(content.strip(), marked=False) or _NOT_OFFERED

    def _alone(self, answer: _Text) -> Iterator[str]:
        """Read lines that hold only a label, above or below an explanation."""
        for line in answer.folded.split("\n"):
            sign = _bare(line)
            if sign in self.signs:
                yield self.signs[sign]

    def _announced(self, answer: _Text) -> Iterator[str]:
        """Read the text after and before "answer"."""
        spans = occurrences(ANSWER, answer.folded)
        for _, end in spans:
            yield from self._after(answer, end)
        yield from self._before(answer, {begin for begin, _ in spans})

    def _as_option(self, answer: _Text) -> Iterator[str]:
        """Read the text after "option". Explanations name options too, so this step comes late."""
        for _, end in occurrences(OPTION, answer.folded):
            yield from self._after(answer, end)

    def _leading(self, answer: _Text) -> Iterator[str]:
        """Read labels that begin a line and are followed by a mark: B. / (B) / B: / B, because."""
        for index in range(len(answer.words)):
            if (index and "\n" not in answer.between(index)) or not answer.ends(index):
                continue
            sign, end = answer.word(index), answer.words[index][1]
            if sign in self.signs:
                yield from self._series(answer, index)
                if answer.folded[end - 1 : end + 1] == "a:":
                    # The label may take the place of "answer": the answer is then the text after it.
                    yield from self._text_at(answer.folded, end + 2)
            elif sign in _LETTERS and answer.text[end : end + 1] in (".", ")", ":"):
                yield _NOT_OFFERED

    def _in_sentences(self, answer: _Text) -> Iterator[str]:
        """Read capital letters that stand alone, and all labels in brackets or quotes."""
        if occurrences(REFUSAL, answer.folded):
            return
        negated = _Negations(answer.folded)
        for index, (begin, _) in enumerate(answer.words):
            label = self.signs.get(answer.word(index))
            if label is None:
                continue
            alone = answer.is_capital(index) and answer.may_be_label(index)
            if (alone or answer.is_enclosed(index)) and not negated.at(begin):
                yield label

    def _content(self, answer: _Text) -> Iterator[str]:
        """Read the texts of options, unless they are negated or part of another option's text."""
        covered = bytearray(len(answer.folded))
        found: list[tuple[int, str]] = []
        sizes = sorted({len(core) for core in self.texts.values()}, reverse=True)
        for size in sizes:
            spans = [
                (begin, label)
                for label, core in self.texts.items()
                if len(core) == size
                for begin in _places(core, answer.folded)
                if not all(covered[begin : begin + size])
            ]
            for begin, _ in spans:
                covered[begin : begin + size] = b"\1" * size
            found += spans
        # A negation or refusal inside an option's text does not count.
        rest = "".join(
            " " if hidden else char for char, hidden in zip(answer.folded, covered, strict=True)
        )
        if occurrences(REFUSAL, rest):
            return
        negated = _Negations(rest)
        yield from (label for begin, label in found if not negated.at(begin))

    # ------------------------------------------------------------------ their parts

    def _after(self, answer: _Text, place: int) -> Iterator[str]:
        """Yield the options named right after an announcement, which ends at `place`."""
        for _ in range(_MOST_FILLERS):
            while place < len(answer.text) and not is_word_character(answer.text[place]):
                if answer.text[place] in _SENTENCE_ENDS:
                    return
                place += 1
            named = self._text_at(answer.folded, place)
            index = answer.index.get(place)
            if named or index is None:
                yield from named
                return
            sign = answer.word(index)
            if sign in self.signs and answer.may_be_label(index):
                yield from self._series(answer, index)
                return
            if sign in _LETTERS and answer.ends(index):
                yield _NOT_OFFERED
                return
            filler = next((f for f in FILLERS if _stands_at(answer.folded, f, place)), None)
            if filler is None:
                return
            place += len(filler)

    def _before(self, answer: _Text, leads: set[int]) -> Iterator[str]:
        """Yield the options named right before an announcement: B is the correct answer."""
        for index, (_, place) in enumerate(answer.words):
            if answer.word(index) not in self.signs or not answer.may_be_label(index):
                continue
            for _ in range(_MOST_FILLERS):
                place += answer.text[place : place + 1] == " "
                if place in leads:
                    yield self.signs[answer.word(index)]
                filler = next((f for f in FILLERS if _stands_at(answer.folded, f, place)), None)
                if place in leads or filler is None:
                    break
                place += len(filler)

    def _text_at(self, text: str, place: int) -> list[str]:
        """Return the options whose text begins at `place`: the longest, if several do."""
        article = _ARTICLES.match(text, place)
        starts = {place, article.end()} if article else {place}
        sizes = {
            label: len(core)
            for label, core in self.texts.items()
            if core not in self.signs and any(_stands_at(text, core, start) for start in starts)
        }
        return [label for label, size in sizes.items() if size == max(sizes.values())]

    def _series(self, answer: _Text, index: int) -> Iterator[str]:
        """Yield the label at a word, and those joined to it by "or", "and" or a mark such as a comma."""
        while True:
            yield self.signs[answer.word(index)]
            following = index + 1
            while answer.word(following) in JOINERS and not answer.is_capital(following):
                following += 1
            if answer.word(following) not in self.signs or not answer.may_be_label(following):
                return
            between = answer.between(following)
            joined = following > index + 1 or between == "." or between.strip(" ") in _JOINING_MARKS
            if not joined:
                return
            index = following


# ------------------------------------------------------------------------------ texts


def _bare(text: str) -> str:
    """Return a label or a whole answer without surrounding brackets and marks."""
    folded = plain(text)
    begin, end = 0, len(folded)
    while begin < end and not is_word_character(folded[begin]):
        begin += 1
    while end > begin and not is_word_character(folded[end - 1]):
        end -= 1
    return folded[begin:end]


def _core(text: str) -> str:
    """Return the searched form of an option's text: without end marks and a leading article."""
    core = " ".join(_bare(text).split())
    article = _ARTICLES.match(core)
    return core[article.end() :] if article else core


def _stands_at(text: str, part: str, place: int) -> bool:
    end = place + len(part)
    return text.startswith(part, place) and at_boundary(text, place) and at_boundary(text, end)


def _places(part: str, text: str) -> Iterator[int]:
    """Yield each position where a part begins in a text as whole words; overlaps count."""
    place = text.find(part)
    while place >= 0:
        if _stands_at(text, part, place):
            yield place
        place = text.find(part, place + 1)


class _Negations:
    """The clauses of a text that contain a negation."""

    def __init__(self, text: str):
        self._ends = [match.start() for match in _CLAUSE_END.finditer(text)]
        self._negated = []
        begin = 0
        for end in (*self._ends, len(text)):
            clause = text[begin:end]
            found = {clause[b:e] for b, e in words(clause)}
            parts = any(part in clause for part in NEGATIONS_INSIDE)
            self._negated.append(parts or not found.isdisjoint(NEGATIONS))
            begin = end

    def at(self, place: int) -> bool:
        """Return whether the clause at a position is negated."""
        return self._negated[bisect_left(self._ends, place)]


OURS = Parser("choice", 2, "this package: training/evaluation/scoring/choices.py", parse_choice)
