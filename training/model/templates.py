"""Chat templates for any decoder: find them by name, make them ready for training, and test them.

A template is ready if it marks the assistant's texts (`{% generation %}`) and writes a placeholder for
each image. Maya's own templates do. A decoder's own chat template usually does neither. It is then put,
unchanged, into a wrapper template, which renders it and marks the answers in the result, so the text is
exactly that of the decoder's template.

Every template is tested on short conversations: a prompt must end where the answer begins, and an answer's
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
# Size limit of a template file in bytes; real templates are a page or two.
MAX_BYTES = 2**20
# Control tokens as templates write them. A tokenizer without them splits each into a dozen tokens.
CONTROL = re.compile(r"<[|｜][^<>|｜\s]{1,60}[|｜]>")
GENERATION = re.compile(r"\{%[-+]?\s*(?:end)?generation\s*[-+]?%\}")
# Private-use characters that mark an answer while its template renders it.
START, END = "\U000f0005", "\U000f0006"

# Texts for test conversations, made of words that no template contains.
ASKED, SAID, SYSTEM = "Zebra quilt?", "Velvet walnut.", "Silver thimble."
AGAIN = "Amber lantern?"
# Ways in which answers begin, which a tokenizer could merge with the end of a prompt.
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
    """A chat template, and the ids of the tokens that end an answer; no ids for captions (`plain`)."""

    text: str
    ends: tuple[int, ...]


def find_template(name: str, tokenizer: Any, image_token: str = IMAGE) -> Template:
    """Find the template `name` for the decoder of `tokenizer`.

    Args:
        name: `maya`, `aya`, `plain`; `own` for the decoder's; or the path of a .jinja file.
        image_token: the placeholder of an image.

    Raises:
        ValueError: with the templates that fit, if this one cannot be rendered, the tokenizer lacks its
            control tokens, or its answers would never end.
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
    """Return the names of templates whose control tokens the tokenizer has."""
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
    """Return a tested template that marks answers and places images, wrapping `source` if needed.

    Raises:
        ValueError: with the reason, if the template cannot be made ready.
    """
    whole = (
        GENERATION.search(source)
        and _places_images(source, tokenizer, image_token)
        and _takes(source, tokenizer, parts=False)
    )
    text = source if whole else _wrap(GENERATION.sub(_as_if, source), tokenizer, image_token)
    return Template(text, _try_out(text, tokenizer, image_token))


def _as_if(tag: re.Match) -> str:
    """Turn a generation tag into an `if` with the same white-space control."""
    return re.sub(r"(end)?generation", lambda found: "endif" if found[1] else "if true", tag[0])


# ------------------------------------------------------------------------------ rendering


def _turns(
    *texts: str, system: str | None = None, image: bool = False, parts: bool = False
) -> list[dict[str, Any]]:
    """Build alternating turns of user and assistant.

    Args:
        system: text of a system turn before them.
        image: add an image to the first turn.
        parts: write every text as a list of parts.
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
    """Build conversations of one and two rounds, with and without a system turn."""
    rounds = ((ASKED, SAID), (ASKED, SAID, AGAIN, "Copper meadow."))
    return [
        _turns(*texts, system=system, image=image, parts=parts)
        for system in (None, SYSTEM)
        for texts in rounds
    ]


def _render(
    text: str, tokenizer: Any, turns: Sequence[dict[str, Any]], prompt: bool = False
) -> str:
    """Render turns with a template. Raise ValueError if the template refuses them or is broken."""
    try:
        return tokenizer.apply_chat_template(
            list(turns), chat_template=text, tokenize=False, add_generation_prompt=prompt
        )
    except RecursionError:
        raise ValueError("it calls itself without end") from None
    # Templates are untrusted programs in a sandbox; these are the exceptions they can cause.
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
    """Render turns with a template; return None if it refuses them."""
    try:
        return _render(text, tokenizer, turns)
    except ValueError:
        return None


def _places_images(text: str, tokenizer: Any, image_token: str) -> bool:
    """Return whether a template writes the placeholder once for an image part, together with the text."""
    found = _rendered(text, tokenizer, _turns(ASKED, image=True)) or ""
    return found.count(image_token) == 1 and ASKED in found


def _takes(text: str, tokenizer: Any, parts: bool) -> bool:
    """Return whether a template renders contents of this kind: texts, or lists of parts."""
    found = _rendered(text, tokenizer, _turns(ASKED, SAID, parts=parts)) or ""
    # A template that treats a list as text shows Python's repr of the list.
    return ASKED in found and SAID in found and "'type'" not in found


# ------------------------------------------------------------------------------ wrapping


def _wrap(source: str, tokenizer: Any, image_token: str) -> str:
    """Put `source` into WRAPPER, with the facts that WRAPPER needs found by rendering it.

    Raises:
        ValueError: if these facts cannot be found, or the wrapped text would differ.
    """
    parts = not _takes(source, tokenizer, parts=False)
    if parts and not _takes(source, tokenizer, parts=True):
        _render(source, tokenizer, _turns(ASKED, SAID))  # raises with the template's own reason
        raise ValueError("it leaves out the texts of turns")
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
    # A template without a generation prompt gets the wrapper's, which cannot be compared.
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
    """Return `text` as a Jinja string. Jinja reads JSON's escapes, except surrogate pairs."""
    return json.dumps(text, ensure_ascii=False)


def _opening(source: str, tokenizer: Any, parts: bool) -> tuple[str, bool]:
    """Return the text after which an answer begins, and whether prompts lack it.

    Raises:
        ValueError: if a prompt for an answer differs from the text before answers.
    """
    before = _render(source, tokenizer, _turns(ASKED, parts=parts))
    asked = _render(source, tokenizer, _turns(ASKED, parts=parts), prompt=True)
    answered = _render(source, tokenizer, _turns(ASKED, SAID, parts=parts)).partition(SAID)[0]
    if not answered.startswith(asked):
        raise ValueError(
            f"its prompt for an answer ends with {one_line(repr(asked.rpartition(ASKED)[2]), 60)}, but its answers "
            f"follow {one_line(repr(answered.rpartition(ASKED)[2]), 60)}: a trained model would be prompted "
            "differently than in training"
        )
    lacks_prompt = asked == before and bool(answered.removeprefix(asked).strip())
    if lacks_prompt:
        opening = answered.removeprefix(asked)
    elif asked != before and asked.startswith(before):
        opening = asked.removeprefix(before)
    else:
        opening = asked.rpartition(ASKED)[2]
    if not opening:
        raise ValueError("it does not mark where an answer begins")
    return opening, lacks_prompt


def _keeps_system(source: str, tokenizer: Any, parts: bool) -> bool:
    """Return whether a system turn keeps its place when an answer follows, or is refused at once.

    Mistral's templates write it into the last question, but only while no answer follows.
    """
    turns = _turns(ASKED, SAID, system=SYSTEM, parts=parts)
    answered = _rendered(source, tokenizer, turns)
    if answered is None:
        return True
    asked = _render(source, tokenizer, turns[:-1], prompt=True)
    return SYSTEM in asked and answered.startswith(asked)


def _endings(source: str, tokenizer: Any, parts: bool) -> list[str]:
    """Return the tokens that end an answer: of the last answer, and of one before another round."""
    answered = _render(source, tokenizer, _turns(ASKED, SAID, parts=parts))
    before, _, last = answered.partition(SAID)
    found = [_first_token(last, tokenizer)]
    again = _rendered(source, tokenizer, _turns(ASKED, SAID, AGAIN, parts=parts))
    if again is not None:
        following = again.partition(SAID)[2].partition(AGAIN)[0]
        # Text that starts a question does not end the answer before it; text that ends a question may.
        asked = _render(source, tokenizer, _turns(ASKED, parts=parts)).partition(ASKED)[2]
        closing = following.removesuffix(_common_end(before.partition(ASKED)[0], following))
        if _first_token(closing, tokenizer) is None and following.startswith(asked):
            closing = asked
        found.append(_first_token(closing, tokenizer))
    if not any(found):
        raise ValueError(
            f"its answers end with {one_line(repr(last), 60)}, which is not a token of the tokenizer: a model "
            "trained on them would never stop"
        )
    return [token for token in dict.fromkeys(found) if token is not None]


def _common_end(one: str, other: str) -> str:
    """Return the longest common suffix of two texts."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]


def _first_token(text: str, tokenizer: Any) -> str | None:
    """Return the tokenizer's first added token in `text`; of several at one position, the longest."""
    found = [
        (text.index(token), -len(token), token)
        for token in tokenizer.get_added_vocab()
        if token.strip() and token in text
    ]
    return min(found)[2] if found else None


# ------------------------------------------------------------------------------ testing


def _try_out(
    text: str, tokenizer: Any, image_token: str, may_go_on: bool = False
) -> tuple[int, ...]:
    """Test a template on the tokens of short conversations; return the ids of tokens that end an answer.

    Args:
        may_go_on: accept a one-round template whose answers have no end token, as captions do.

    Raises:
        ValueError: if the tokenizer lacks control tokens, a prompt's tokens do not continue with the
            learned ones, or an answer does not end with a token of its own.
    """
    probe = MayaProcessor(
        MayaImageProcessor(), tokenizer, 1, chat_template=text, image_token=image_token
    )
    ends: dict[int, None] = {}
    for number, turns in enumerate(_conversations(image=True)):
        # A template need not support system turns or a second round.
        if number and _rendered(text, tokenizer, turns) is None:
            continue
        whole = _render(text, tokenizer, turns)
        _check_controls(whole, tokenizer)
        encoded = probe.encode_conversation(turns)
        ids, runs = encoded["input_ids"], _runs(encoded["assistant_mask"])
        answers = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        if len(runs) != len(answers):
            raise ValueError(f"it should mark {len(answers)} answers, but it marks {len(runs)}")
        for (start, stop), answer in zip(runs, answers, strict=True):
            if (end := _end_of(ids[start:stop], answer, tokenizer, may_go_on)) is not None:
                ends[end] = None
        _check_prompt(probe, turns)
    for beginning in BEGINNINGS:
        _check_prompt(probe, _turns(ASKED, beginning, image=True))
    return tuple(ends)


def _check_prompt(probe: MayaProcessor, turns: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError unless a prompt's tokens equal those before the last answer of `turns`."""
    encoded, tokenizer = probe.encode_conversation(list(turns)), probe.tokenizer
    text = _render(probe.chat_template, tokenizer, turns[:-1], prompt=True)
    bos = tokenizer.bos_token
    prompt = tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))
    ids, start = encoded["input_ids"], _runs(encoded["assistant_mask"])[-1][0]
    if ids[:start] != prompt:
        raise ValueError(
            f"the tokens of its prompt, {one_line(repr(tokenizer.decode(prompt[-8:])), 60)}, differ from those "
            f"before the answer {one_line(repr(tokenizer.decode(ids[start:])), 60)}"
        )


def _check_controls(rendered: str, tokenizer: Any) -> None:
    """Raise ValueError for control tokens that the tokenizer splits."""
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
    """Return the token that ends a marked answer; None if the answer need not end."""
    spoken = tokenizer.decode(ids)
    if "".join(answer.split()) not in "".join(spoken.split()):
        raise ValueError(f"it marks {one_line(repr(spoken), 80)}, but the answer is {answer!r}")
    added = set(tokenizer.get_added_vocab().values())
    for place in range(len(ids) - 1, -1, -1):
        if ids[place] in added:
            return ids[place]
        # A template may also mark the newline after the end token.
        if tokenizer.decode([ids[place]]).strip():
            break
    if may_go_on:
        return None
    raise ValueError(
        f"it marks the answer {one_line(repr(spoken), 80)}, which does not end with an added token of the "
        "tokenizer: a model trained on it would never stop"
    )


def _runs(mask: Sequence[int]) -> list[tuple[int, int]]:
    """Return start and end of each run of ones in `mask`."""
    padded = [0, *mask, 0]
    edges = [i for i in range(len(mask) + 1) if padded[i] != padded[i + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))


# ------------------------------------------------------------------------------ using


def set_ends(generation_config: Any, ends: Sequence[int]) -> None:
    """Make `generate` stop at each of `ends`, in addition to its earlier end tokens."""
    known = generation_config.eos_token_id
    known = [] if known is None else known if isinstance(known, list) else [known]
    wanted = list(dict.fromkeys([*ends, *known]))
    if set(wanted) != set(known):
        generation_config.eos_token_id = wanted[0] if len(wanted) == 1 else wanted


def check_processor(processor: MayaProcessor, where: str) -> None:
    """Raise ValueError, naming `where`, if a processor's chat template cannot be trained with."""
    try:
        if processor.chat_template is None:
            raise ValueError("expected a chat template, found none")
        processor.encode_conversation(_turns(ASKED, SAID, image=True))
    except ValueError as error:
        raise ValueError(
            f"{where}: chat_template.jinja: {one_line(str(error), 300)}: name another in "
            "model.chat_template"
        ) from None
