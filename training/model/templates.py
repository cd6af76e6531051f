"""Chat templates for any decoder: found by name, made ready for training, and tried before they are used.

A template is ready when it marks what the assistant says (`{% generation %}`) and gives each image its
placeholder. Maya's own templates are. A decoder's own chat template usually does neither: then it is
put, unchanged, into a template that renders it and marks the answers in what comes out, so that the
text stays that of the decoder's template to the letter.

Every template is tried on short conversations: where an answer begins, its prompt must end, and its
last token must be one token of the tokenizer, so that a trained model ends its answers.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from processing_maya import CHAT_TEMPLATES, MayaImageProcessor, MayaProcessor, load_chat_template

from ..common.reading import read_text
from ..common.telling import one_line

OWN = "own"
IMAGE = "<image>"
# A template is a page or two of text.
MAX_BYTES = 2**20
# Control tokens as templates spell them: a tokenizer without them reads a dozen letters each.
CONTROL = re.compile(r"<[|｜][^<>|｜\s]{1,60}[|｜]>")
GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
# Private-use characters around an answer while its template renders it.
START, END = "\U000f0005", "\U000f0006"

# What is asked and answered to find out how a template works: words that no template contains.
ASKED, SAID, SYSTEM = "Zebra quilt?", "Velvet walnut.", "Silver thimble."
AGAIN = "Amber lantern?"
# How answers may begin: what a tokenizer could join to the end of a prompt.
BEGINNINGS = ("a", "The", "I", "1", "é", "एक", "船", "<")

WRAPPER = """\
{#- The decoder's own chat template, in the macro, renders the conversation. Around it: images come
    first in their turn, and what follows the generation prompt, up to the end of the turn, is marked
    as the assistant's. -#}
{%- macro decoders_own(messages, add_generation_prompt) +%}OWN_TEMPLATE{%+ endmacro -%}
{%- macro words_of(content) -%}
    {%- if content is string -%}
        {{- content | replace(mark_start, "") | replace(mark_end, "") -}}
    {%- else -%}
        {%- for part in content if part.type == "text" -%}{{- words_of(part.text) -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro with_marks(words) -%}
    {%- set said = words | trim -%}
    {{- words.replace(said, mark_start ~ said ~ mark_end, 1) if said else words -}}
{%- endmacro -%}
{%- macro with_images(parts) -%}
    {%- set images = parts | selectattr("type", "equalto", "image") | list | length -%}
    {{- (IMAGE_LINE * images ~ words_of(parts) | trim) | trim if images else words_of(parts) -}}
{%- endmacro -%}
{%- set mark_start, mark_end, opening, endings = START_MARK, END_MARK, OPENING, ENDINGS -%}
{%- set state = namespace(turns=[], rest="", closing="") -%}
{%- for message in messages -%}
    {%- if message.role == "assistant" -%}
        {%- set content = with_marks(words_of(message.content)) -%}
    {%- elif message.content is string or message.role != "user" -%}
        {%- set content = words_of(message.content) -%}
    {%- else -%}
        {%- set content = USER_PARTS -%}
    {%- endif -%}
    {%- if TAKES_PARTS and content is string -%}
        {%- set content = [{"type": "text", "text": content}] -%}
    {%- endif -%}
    {%- set state.turns = state.turns + [dict(message, content=content)] -%}
{%- endfor -%}
{%- set pieces = decoders_own(state.turns, add_generation_prompt).split(mark_end) -%}
{%- set state.rest = pieces[0] -%}
{%- for following in pieces[1:] -%}
    {#- A template may drop what an answer begins with, such as its reasoning. -#}
    {%- set halves = state.rest.split(mark_start, 1) if mark_start in state.rest else [state.rest, ""] -%}
    {%- set cut = halves[0].rsplit(opening, 1) -%}
    {%- set state.closing, state.rest = "", following -%}
    {%- for ending in endings if ending in following -%}
        {%- set found = following.split(ending, 1) -%}
        {%- if not state.closing or (found[0] ~ ending) | length < state.closing | length -%}
            {%- set state.closing, state.rest = found[0] ~ ending, found[1] -%}
        {%- endif -%}
    {%- endfor -%}
    {{- cut[0] ~ opening if cut | length == 2 else halves[0] -}}
    {%- generation -%}
    {{- (cut[1] if cut | length == 2 else "") ~ halves[1] ~ state.closing -}}
    {%- endgeneration -%}
{%- endfor -%}
{{- state.rest -}}
"""
NO_SYSTEM = """\
{%- if messages[0].role == "system" and pieces | length > 1 -%}
    {{- raise_exception("The decoder's chat template shows no system turn once it is answered; leave it out.") -}}
{%- endif -%}
"""
ADD_PROMPT = """\
{%- if add_generation_prompt -%}
    {{- opening -}}
{%- endif -%}
"""


@dataclass(frozen=True)
class Template:
    """A chat template, and the ids of the tokens that end an answer; none for captions (`plain`)."""

    text: str
    ends: tuple[int, ...]


def find_template(name: str, tokenizer: Any, image_token: str = IMAGE) -> Template:
    """The template `name` for the decoder that `tokenizer` belongs to.

    Args:
        name: `maya`, `aya`, `plain`; `own`, the decoder's; or the path of a .jinja file.
        image_token: the placeholder of an image.

    Raises ValueError for a template that cannot be rendered, whose control tokens the tokenizer does
    not have, or whose answers would never end; with the choices that fit.
    """
    try:
        source = _source(name, tokenizer, image_token)
        if name in CHAT_TEMPLATES:
            return Template(source, _try_out(source, tokenizer, image_token, name == "plain"))
        return ready(source, tokenizer, image_token)
    except ValueError as error:
        of = f" of {tokenizer.name_or_path}" if name == OWN and tokenizer.name_or_path else ""
        raise ValueError(
            f"chat_template {name}{of}: {error}: use {_choices(tokenizer, name)}"
        ) from None


def _source(name: str, tokenizer: Any, image_token: str) -> str:
    if name in CHAT_TEMPLATES:
        return load_chat_template(name).replace(IMAGE, image_token)
    if name != OWN:
        return read_text(name, MAX_BYTES)
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise ValueError("the decoder's tokenizer has no chat template")
    return found


def _choices(tokenizer: Any, but: str) -> str:
    """The templates that a tokenizer has the control tokens for."""
    vocabulary = tokenizer.get_vocab()
    fitting = [
        name
        for name in CHAT_TEMPLATES
        if name != but and vocabulary.keys() >= set(CONTROL.findall(load_chat_template(name)))
    ]
    if but != OWN and tokenizer.chat_template:
        fitting.append(f"{OWN} (the decoder's)")
    return ", ".join([*fitting, "or the path of a .jinja file"])


def ready(source: str, tokenizer: Any, image_token: str) -> Template:
    """A template that marks answers and places images, made from `source` where it does not, and tried.

    Raises ValueError for a template that cannot be made ready, saying why.
    """
    whole = (
        GENERATION.search(source)
        and _places_images(source, tokenizer, image_token)
        and _takes(source, tokenizer, parts=False)
    )
    text = source if whole else _wrap(GENERATION.sub(_as_if, source), tokenizer, image_token)
    return Template(text, _try_out(text, tokenizer, image_token))


def _as_if(tag: re.Match) -> str:
    """A generation tag as an `if` with the same white-space control."""
    return re.sub(r"(end)?generation", lambda found: "endif" if found[1] else "if true", tag[0])


# ------------------------------------------------------------------------------ rendering


def _turns(
    *texts: str, system: str | None = None, image: bool = False, parts: bool = False
) -> list[dict[str, Any]]:
    """Alternating turns of user and assistant.

    system: what a turn before them says. image: put an image into the first turn. parts: write every
    text as a list of parts.
    """
    turns = [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    if system is not None:
        turns.insert(0, ("system", system))
    found: list[dict[str, Any]] = []
    for role, text in turns:
        content: Any = [{"type": "text", "text": text}]
        if image and role == "user" and text == texts[0]:
            content.insert(0, {"type": "image"})
        elif not parts:
            content = text
        found.append({"role": role, "content": content})
    return found


def _conversations(image: bool = False, parts: bool = False) -> list[list[dict[str, Any]]]:
    """One and two rounds, with and without a system turn."""
    rounds = ((ASKED, SAID), (ASKED, SAID, AGAIN, "Copper meadow."))
    return [
        _turns(*texts, system=system, image=image, parts=parts)
        for system in (None, SYSTEM)
        for texts in rounds
    ]


def _render(
    text: str, tokenizer: Any, turns: Sequence[dict[str, Any]], prompt: bool = False
) -> str:
    """What a template makes of turns. Raises ValueError for what it refuses, and where it is broken."""
    try:
        return tokenizer.apply_chat_template(
            list(turns), chat_template=text, tokenize=False, add_generation_prompt=prompt
        )
    except RecursionError:
        raise ValueError("it calls itself without end") from None
    # Templates are programs of others, in a sandbox: their faults have these kinds.
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        kind = "" if isinstance(error, (TemplateError, ValueError)) else f"{type(error).__name__}: "
        line = getattr(error, "lineno", None)
        at = f" (line {line})" if line else ""
        raise ValueError(f"{kind}{one_line(str(error), 160)}{at}") from None


def _rendered(text: str, tokenizer: Any, turns: Sequence[dict[str, Any]]) -> str | None:
    """What a template makes of turns, None for what it refuses."""
    try:
        return _render(text, tokenizer, turns)
    except ValueError:
        return None


def _places_images(text: str, tokenizer: Any, image_token: str) -> bool:
    """Whether a template writes the placeholder for an image part, once, beside the text."""
    found = _rendered(text, tokenizer, _turns(ASKED, image=True)) or ""
    return found.count(image_token) == 1 and ASKED in found


def _takes(text: str, tokenizer: Any, parts: bool) -> bool:
    """Whether a template says what is said in contents of this kind: texts, or lists of parts."""
    found = _rendered(text, tokenizer, _turns(ASKED, SAID, parts=parts)) or ""
    # A template that joins a list to its text shows the list as Python does.
    return ASKED in found and SAID in found and "'type'" not in found


# ------------------------------------------------------------------------------ made ready


def _wrap(source: str, tokenizer: Any, image_token: str) -> str:
    """`source` inside of WRAPPER, with what must be known of it found out by rendering.

    Raises ValueError where that cannot be found out, or the text would be another.
    """
    parts = not _takes(source, tokenizer, parts=False)
    if parts and not _takes(source, tokenizer, parts=True):
        _render(source, tokenizer, _turns(ASKED, SAID))  # raises what it refuses them with
        raise ValueError("it leaves out what is said")
    opening, adds_opening = _opening(source, tokenizer, parts)
    endings = _endings(source, tokenizer, parts)
    places_images = _places_images(source, tokenizer, image_token)
    values = {
        "IMAGE_LINE": _literal(image_token + "\n"),
        "START_MARK": _literal(START),
        "END_MARK": _literal(END),
        "OPENING": _literal(opening),
        "ENDINGS": f"[{', '.join(map(_literal, endings))}]",
        "USER_PARTS": "message.content" if places_images else "with_images(message.content)",
        "TAKES_PARTS": "true" if parts else "false",
        # Jinja drops a newline at the end of a template.
        "OWN_TEMPLATE": source.removesuffix("\n"),
    }
    wrapped = re.sub("|".join(values), lambda found: values[found[0]], WRAPPER)
    if not _keeps_system(source, tokenizer, parts):
        wrapped += NO_SYSTEM
    if adds_opening:
        wrapped += ADD_PROMPT
    # The prompt of a template that knows none is the wrapper's own.
    for turns in _conversations(parts=parts):
        for shown, prompt in ((turns, False), (turns[:-1], not adds_opening)):
            if _rendered(wrapped, tokenizer, shown) is None:
                continue
            expected = _render(source, tokenizer, shown, prompt)
            found = _render(wrapped, tokenizer, shown, prompt)
            if found != expected:
                raise ValueError(
                    f"its answers cannot be marked without changing its text: expected "
                    f"{one_line(repr(expected), 100)}, found {one_line(repr(found), 100)}"
                )
    return wrapped


def _literal(text: str) -> str:
    """`text` as a string of Jinja, which knows JSON's escapes but not its pairs of surrogates."""
    return json.dumps(text, ensure_ascii=False)


def _opening(source: str, tokenizer: Any, parts: bool) -> tuple[str, bool]:
    """The text behind which an answer begins, and whether a prompt lacks it.

    Raises ValueError where the prompt for an answer is not what stands before the answers.
    """
    before = _render(source, tokenizer, _turns(ASKED, parts=parts))
    asked = _render(source, tokenizer, _turns(ASKED, parts=parts), prompt=True)
    answered = _render(source, tokenizer, _turns(ASKED, SAID, parts=parts)).partition(SAID)[0]
    if not answered.startswith(asked):
        raise ValueError(
            f"it asks for an answer with {one_line(repr(asked.rpartition(ASKED)[2]), 60)}, but its answers "
            f"follow {one_line(repr(answered.rpartition(ASKED)[2]), 60)}: a model trained on these would be "
            "asked another way"
        )
    lacks_prompt = asked == before and bool(answered.removeprefix(asked).strip())
    if lacks_prompt:
        opening = answered.removeprefix(asked)
    elif asked != before and asked.startswith(before):
        opening = asked.removeprefix(before)
    else:
        opening = asked.rpartition(ASKED)[2]
    if not opening:
        raise ValueError("nothing in it says where an answer begins")
    return opening, lacks_prompt


def _keeps_system(source: str, tokenizer: Any, parts: bool) -> bool:
    """Whether a system turn stays where it was when an answer follows, or is refused at once.

    Mistral's templates write it into the last question, as long as nothing follows that.
    """
    turns = _turns(ASKED, SAID, system=SYSTEM, parts=parts)
    answered = _rendered(source, tokenizer, turns)
    if answered is None:
        return True
    asked = _render(source, tokenizer, turns[:-1], prompt=True)
    return SYSTEM in asked and answered.startswith(asked)


def _endings(source: str, tokenizer: Any, parts: bool) -> list[str]:
    """The tokens that end an answer: the last one, and one that is followed by another round."""
    answered = _render(source, tokenizer, _turns(ASKED, SAID, parts=parts))
    before, _, last = answered.partition(SAID)
    found = [_first_token(last, tokenizer)]
    again = _rendered(source, tokenizer, _turns(ASKED, SAID, AGAIN, parts=parts))
    if again is not None:
        following = again.partition(SAID)[2].partition(AGAIN)[0]
        # What opens a question is no end of the answer before it; what closes one may be.
        asked = _render(source, tokenizer, _turns(ASKED, parts=parts)).partition(ASKED)[2]
        closing = following.removesuffix(_common_end(before.partition(ASKED)[0], following))
        if _first_token(closing, tokenizer) is None and following.startswith(asked):
            closing = asked
        found.append(_first_token(closing, tokenizer))
    if not any(found):
        raise ValueError(
            f"its answers end with {one_line(repr(last), 60)}, which is no token of the tokenizer: a model "
            "trained on them would never end"
        )
    return [token for token in dict.fromkeys(found) if token is not None]


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _first_token(text: str, tokenizer: Any) -> str | None:
    """The first added token of a tokenizer that occurs in `text`; of several there, the longest."""
    found = [
        (text.index(token), -len(token), token)
        for token in tokenizer.get_added_vocab()
        if token.strip() and token in text
    ]
    return min(found)[2] if found else None


# ------------------------------------------------------------------------------ tried


def _try_out(
    text: str, tokenizer: Any, image_token: str, may_go_on: bool = False
) -> tuple[int, ...]:
    """The ids of the tokens that end an answer, after a look at the tokens of short conversations.

    may_go_on: allow a template of one round whose answers end with no token, as captions do.

    Raises ValueError where control tokens are no tokens, where the tokens of a prompt do not continue
    with those that are learned, and where an answer ends with no token of its own.
    """
    probe = MayaProcessor(
        MayaImageProcessor(), tokenizer, 1, chat_template=text, image_token=image_token
    )
    ends: dict[int, None] = {}
    for number, turns in enumerate(_conversations(image=True)):
        # A template need not know system turns, or a second round.
        if number and _rendered(text, tokenizer, turns) is None:
            continue
        whole = _render(text, tokenizer, turns)
        _check_controls(whole, tokenizer)
        encoded = probe.encode_conversation(turns)
        ids, runs = encoded["input_ids"], _runs(encoded["assistant_mask"])
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        if len(runs) != len(answers):
            raise ValueError(f"of {len(answers)} answers it marks {len(runs)}")
        for (start, stop), answer in zip(runs, answers, strict=True):
            if (end := _end_of(ids[start:stop], answer, tokenizer, may_go_on)) is not None:
                ends[end] = None
        _check_prompt(probe, turns)
    for beginning in BEGINNINGS:
        _check_prompt(probe, _turns(ASKED, beginning, image=True))
    return tuple(ends)


def _check_prompt(probe: MayaProcessor, turns: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError unless the tokens of a prompt are those before the last answer of `turns`."""
    encoded, tokenizer = probe.encode_conversation(list(turns)), probe.tokenizer
    text = _render(probe.chat_template, tokenizer, turns[:-1], prompt=True)
    bos = tokenizer.bos_token
    prompt = tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
    ids, start = encoded["input_ids"], _runs(encoded["assistant_mask"])[-1][0]
    if ids[:start] != prompt:
        raise ValueError(
            f"the tokens of its prompt, {one_line(repr(tokenizer.decode(prompt[-8:])), 60)}, are not those "
            f"before the answer {one_line(repr(tokenizer.decode(ids[start:])), 60)}"
        )


def _check_controls(rendered: str, tokenizer: Any) -> None:
    """Raise ValueError for control tokens that the tokenizer reads letter by letter."""
    unknown = [
        token
        for token in dict.fromkeys(CONTROL.findall(rendered))
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1
    ]
    if unknown:
        raise ValueError(
            f"it writes {', '.join(unknown[:4])}, which the tokenizer does not have as single tokens"
        )


def _end_of(ids: list[int], answer: str, tokenizer: Any, may_go_on: bool) -> int | None:
    """The token that ends a marked answer, None for an answer that need not end."""
    spoken = tokenizer.decode(ids)
    if "".join(answer.split()) not in "".join(spoken.split()):
        raise ValueError(f"it marks {one_line(repr(spoken), 80)} where {answer!r} is answered")
    added = set(tokenizer.get_added_vocab().values())
    for place in range(len(ids) - 1, -1, -1):
        if ids[place] in added:
            return ids[place]
        # A template may mark the newline behind the end too.
        if tokenizer.decode([ids[place]]).strip():
            break
    if may_go_on:
        return None
    raise ValueError(
        f"it marks the answer {one_line(repr(spoken), 80)}, which ends with no token of the tokenizer's own: a "
        "model trained on it would never end"
    )


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Where the runs of ones in `mask` begin and end."""
    padded = [0, *mask, 0]
    edges = [i for i in range(len(mask) + 1) if padded[i] != padded[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


# ------------------------------------------------------------------------------ used


def set_ends(generation_config: Any, ends: Sequence[int]) -> None:
    """Make `generate` stop at each of `ends` too, and at what it stopped at before."""
    known = generation_config.eos_token_id
    known = [] if known is None else known if isinstance(known, list) else [known]
    wanted = list(dict.fromkeys([*ends, *known]))
    if set(wanted) != set(known):
        generation_config.eos_token_id = wanted[0] if len(wanted) == 1 else wanted


def check_processor(processor: MayaProcessor, where: str) -> None:
    """Raise ValueError, naming `where`, for a processor whose chat template cannot be trained with."""
    try:
        if processor.chat_template is None:
            raise ValueError("there is none")
        processor.encode_conversation(_turns(ASKED, SAID, image=True))
    except ValueError as error:
        raise ValueError(
            f"{where}: chat_template.jinja: {one_line(str(error), 300)}: name another in "
            "model.chat_template"
        ) from None
