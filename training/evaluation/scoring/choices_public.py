"""Seven public parsers of multiple choice, which read an answer as their scripts do, mistakes included.

They make scores comparable with published ones. Where a script draws a random letter, `Choice.guesses`
is set and the letter is None. A letter without an option is returned as the script returns it.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher

from ...common.reading import parse_json
from .choices import LATIN, OURS, Choice
from .parsed import Parser

_NONE, _GUESS = Choice(None), Choice(None, guesses=True)


# ------------------------------------------------------------------- VLMEvalKit, MMBench


def vlmevalkit(response: str, options: Mapping[str, str]) -> Choice:
    """Parse as VLMEvalKit's `can_infer`: a letter in the last four words, "answer is X", or one option's text."""
    if "Failed to obtain answer via API" not in response:
        if any(refusal in response for refusal in _VLMEVALKIT_REFUSALS):
            return Choice("Z")
        parts = response.translate(_VLMEVALKIT_MARKS).split()
        named = [letter for letter in options if letter in parts]
        if len(named) == 1 and parts.index(named[0]) > len(parts) - 5:
            return Choice(named[0])
        if not named and "Z" in parts:
            return Choice("Z")
        announced = re.search(r"answer\s+is\s+\**([ABCD])\**", response, re.IGNORECASE)
        if announced and announced[1].upper() in options:
            return Choice(announced[1].upper())
    if len(response.lower()) > 2 * sum(len(text) for text in options.values()):
        return _NONE
    return _only_text(response, options)


_VLMEVALKIT_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VLMEVALKIT_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def lmms_eval_mmbench(response: str, options: Mapping[str, str]) -> Choice:
    """Parse as lmms-eval's MMBench: A to E as a word, with one of twelve pairs of marks, or one option's text.

    E is accepted although MMBench has four options. The word "A" is skipped if there are more than three words.
    """
    if "Failed to obtain answer via API" not in response:
        parts = response.split()
        for before, after in [("", ""), *_LMMS_MARKS]:
            named = [letter for letter in LATIN[:5] if before + letter + after in parts]
            quantifier = before == after == "" and "A" in parts and len(parts) > 3
            if len(named) == 1 and not quantifier:
                return Choice(named[0])
    return _only_text(response, options)


_LMMS_MARKS = [
    *(("", after) for after in (".", ",", ":", ")", ").")),
    *(("(", after) for after in (")", ").")),
    *((":", after) for after in ("", ",", ".", ")", ").")),
]


def _only_text(response: str, options: Mapping[str, str]) -> Choice:
    named = [letter for letter, text in options.items() if text.lower() in response.lower()]
    return Choice(named[0]) if len(named) == 1 else _NONE


# ------------------------------------------------------------------- MMMU


def mmmu(response: str, options: Mapping[str, str]) -> Choice:
    """Parse as MMMU's `parse_multi_choice_response`: (A), then "A ", then "A.", then a text; the last one wins.

    Texts of options are searched only in answers of more than five words. If nothing is found, the script guesses.
    """
    for mark in ",.!?;:'":
        response = response.strip(mark)
    response = f" {response} "
    # Patterns that find a letter and its last position; for two forms the script searches " A " for the position.
    for pattern, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        named = [letter for letter in options if pattern.format(letter) in response]
        if named:
            return Choice(max(named, key=lambda c: response.rfind(place.format(c))))
    if len(response.split()) > 5:
        lowered = response.lower()
        named = [letter for letter, text in options.items() if text.lower() in lowered]
        if named:
            return Choice(max(named, key=lambda c: lowered.rfind(options[c].lower())))
    return _GUESS


# ------------------------------------------------------------------- Pangea, CVQA


def pangea_cvqa(response: str, options: Mapping[str, str]) -> Choice:
    """Parse as Pangea's CVQA: the first a to d before a mark or space, else the first a to d anywhere.

    Only an answer without these letters is compared with the options' texts. If the similarity is below 0.7,
    the script guesses.
    """
    response = response.strip()
    found = re.search(r"\(?([A-D])[).:\s]", response, re.IGNORECASE)
    found = found or re.search(r"([ABCD])", response, re.IGNORECASE)
    if found:
        return Choice(found[1].upper())
    texts = [re.sub(r"^[A-D]\.\s*", "", text).strip() for text in options.values()]
    likeness = [SequenceMatcher(None, response, text).ratio() for text in texts]
    best = max(likeness, default=0.0)
    return Choice(LATIN[likeness.index(best)]) if best > 0.7 else _GUESS


# ------------------------------------------------------------------- Kaleidoscope


def kaleidoscope(response: str, options: Mapping[str, str]) -> Choice:
    """Parse by Kaleidoscope's strict rule: {"choice": "B"}, <ANSWER> B </ANSWER>, or a single letter or number.

    JSON is tried before the tag, as for the direct prompt. Cyrillic and Arabic letters are mapped to Latin ones.
    """
    return _kaleidoscope(response, options, (_kaleidoscope_json, _kaleidoscope_tag))


def kaleidoscope_thinking(response: str, options: Mapping[str, str]) -> Choice:
    """Parse by Kaleidoscope's rule for its chain-of-thought prompt: as `kaleidoscope`, but the tag before JSON."""
    return _kaleidoscope(response, options, (_kaleidoscope_tag, _kaleidoscope_json))


def _kaleidoscope(
    response: str,
    options: Mapping[str, str],
    forms: Sequence[Callable[[str, int], Iterator[int]]],
) -> Choice:
    for form in forms:
        for place in form(response, len(options)):
            return Choice(LATIN[place])
    alone = response.strip()
    place_or_none = _kaleidoscope_place(alone, len(options)) if len(alone) == 1 else None
    return _NONE if place_or_none is None else Choice(LATIN[place_or_none])


_KALEIDOSCOPE_LETTERS = {
    "Б": "B",
    "Ц": "C",
    "Д": "D",
    "Г": "D",
    "أ": "A",
    "ب": "B",
    "ج": "C",
    "د": "D",
}


def _kaleidoscope_letter(text: str, n: int) -> int | None:
    letter = _KALEIDOSCOPE_LETTERS.get(text, text).strip().upper()
    place = LATIN.find(letter) if len(letter) == 1 else -1
    return place if 0 <= place < n else None


def _kaleidoscope_place(text: str, n: int) -> int | None:
    """Return the index of an option given as a letter or as a number from 1."""
    place = _kaleidoscope_letter(text, n)
    if place is None and text.isdecimal() and len(text) < 3 and 1 <= int(text) <= n:
        return int(text) - 1
    return place


def _kaleidoscope_json(response: str, n: int) -> Iterator[int]:
    payload = (
        response.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    )
    choice = _choice_in(_json_value(payload))
    # Without this check, the search in a long answer with many "{" takes minutes.
    if choice is None and "}" in payload:
        found = re.search(r"\{\s*\"choice\"\s*:\s*.*?\s*\}", payload, re.DOTALL)
        choice = _choice_in(_python_value(found[0])) if found else None
    if choice is None:
        return
    parts = [choice] if _kaleidoscope_letter(choice, n) is not None else choice.split(".")
    places = [_kaleidoscope_letter(part.strip(), n) for part in parts]
    known = [place for place in places if place is not None]
    if len(known) == 1:
        yield known[0]


def _choice_in(value: object) -> str | None:
    choice = value.get("choice") if isinstance(value, dict) else None
    return choice.strip().upper() if isinstance(choice, str) else None


def _json_value(text: str) -> object:
    try:
        return parse_json(text, "answer")
    except ValueError:
        return None


def _python_value(text: str) -> object:
    try:
        with warnings.catch_warnings():
            # Python warns about unknown escapes in strings, such as "\\d".
            warnings.simplefilter("ignore")
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _kaleidoscope_tag(response: str, n: int) -> Iterator[int]:
    for raw in reversed(re.findall(r"<ANSWER>\s*([^\s<>]+)\s*</ANSWER>", response, re.IGNORECASE)):
        place = _kaleidoscope_place(raw.strip().strip(".)(").upper(), n)
        if place is not None:
            yield place
            return


# ------------------------------------------------------------------- ScienceQA


def llava_scienceqa(response: str, options: Mapping[str, str]) -> Choice:
    """Parse as LLaVA's ScienceQA: one letter, "X. ...", or exactly one "The answer is X" before a character."""
    if response in tuple("ABCDE"):
        return Choice(response)
    if len(response) >= 3 and response[0] in "ABCDE" and response[1:3] == ". ":
        return Choice(response[0])
    announced = re.findall(r"The answer is ([A-Z]).", response)
    return Choice(announced[0]) if len(announced) == 1 else _NONE


def llava_scienceqa_index(response: str, choices: Sequence[str] | int) -> int:
    """Return LLaVA's index of the answer, -1 if parsing failed or no choice is named."""
    n = choices if isinstance(choices, int) else len(choices)
    letter = llava_scienceqa(response, {}).letter
    return "ABCDE"[:n].find(letter) if letter else -1


def lmms_eval_scienceqa(response: str, options: Mapping[str, str]) -> Choice:
    """Parse as lmms-eval's ScienceQA: one letter in either case, or a capital and a full stop at the start."""
    response = response.strip()
    letter = response.upper() if len(response) == 1 else response[:1]
    behind = response[1:2]
    return Choice(letter) if letter and letter in LATIN and behind in ("", ".") else _NONE


CHOICE_PARSERS: dict[str, Parser[Choice]] = {
    parser.name: parser
    for parser in (
        OURS,
        Parser(
            "choice_vlmevalkit", 1, "VLMEvalKit e8e78f0, vlmeval/utils/matching_util.py", vlmevalkit
        ),
        Parser(
            "choice_lmms_eval_mmbench",
            1,
            "lmms-eval 0.7.3, tasks/mmbench/mmbench_evals.py",
            lmms_eval_mmbench,
        ),
        Parser("choice_mmmu", 1, "MMMU (2311.16502), eval/eval_utils.py", mmmu),
        Parser("choice_kaleidoscope", 1, "Kaleidoscope (2504.07072), format_answer", kaleidoscope),
        Parser(
            "choice_kaleidoscope_thinking",
            1,
            "Kaleidoscope (2504.07072), format_answer of its chain-of-thought prompt",
            kaleidoscope_thinking,
        ),
        Parser(
            "choice_pangea_cvqa",
            1,
            "Pangea (2410.16153), lmms_eval/tasks/cvqa/utils.py",
            pangea_cvqa,
        ),
        Parser(
            "choice_llava_scienceqa", 1, "LLaVA, llava/eval/eval_science_qa.py", llava_scienceqa
        ),
        Parser(
            "choice_lmms_eval_scienceqa",
            1,
            "lmms-eval 0.7.3, tasks/scienceqa/utils.py",
            lmms_eval_scienceqa,
        ),
    )
}
