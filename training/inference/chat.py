"""`maya chat IMAGE "question" --language hi`: stream answers to questions about one picture."""

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..common.languages import OTHER_NAMES, check_language
from ..common.reading import check_text
from ..common.telling import one_line

QUESTIONS = Path(__file__).resolve().parents[1] / "data" / "mini_dataset" / "prompts.json"

# A sentence in each language that asks for an answer in it, to append to a question in another.
ANSWER_IN = {
    "en": "Answer in English.",
    "zh": "请用中文回答。",
    "fr": "Réponds en français.",
    "es": "Responde en español.",
    "ru": "Ответь по-русски.",
    "hi": "हिन्दी में उत्तर दो।",
    "ja": "日本語で答えてください。",
    "ar": "أجب بالعربية.",
    "bn": "বাংলায় উত্তর দাও।",
    "ur": "اردو میں جواب دو۔",
}


def chat(
    model: str,
    image: str,
    question: str | None = None,
    language: str | None = None,
    max_new_tokens: int = 128,
    trust_remote_code: bool = False,
    revision: str | None = None,
    allow_private: bool = False,
    further: Iterable[str] = (),
) -> str:
    """Print the model's answers to standard output, piece by piece, and return the last one.

    Args:
        model: a folder or Hub repository (`user/name@revision` too), of a Maya, of an adapter of one, or
            of another image-text-to-text model.
        image: a file, an http(s) address or a data URI; see `maya_vlm.training.common.images.load_image`.
        question: default: "What is this?" in `language`.
        language: BCP-47 code of the language to answer in; default: the question's own.
            See `question_in`.
        max_new_tokens: of each answer.
        trust_remote_code: passed on to transformers, for models other than Maya.
        revision: branch, tag or commit of the model's repository.
        allow_private: also fetch the picture from an address of a private or local network.
        further: later questions of the same conversation, each read when the one before is answered.

    Raises:
        ValueError, FileNotFoundError, OSError, MemoryError: in one line: an invalid language code, a
            picture that cannot be read, a folder without a model.
    """
    asked = question_in(question, language)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, found {max_new_tokens}")

    from ..common.images import load_image

    picture = load_image(image, allow_private=allow_private)

    from .generation import is_maya
    from .load import load

    network, processor = load(model, trust_remote_code, revision)
    if is_maya(network):
        try:
            processor.image_processor(picture, return_tensors="pt")
        except ValueError as error:  # it does not name the picture
            raise ValueError(f"{one_line(image, 200)}: {error}") from None
    said = ""
    history: list[tuple[str, str]] = []
    for following in itertools.chain([asked], further):
        if not following.strip():
            continue
        text = asked if following is asked else question_in(following.strip(), language)
        said = _answer(network, processor, _turns(picture, history, text), max_new_tokens, model)
        # A template cannot show an empty turn.
        if said:
            history.append((text, said))
    return said


def _turns(picture: Any, history: Sequence[tuple[str, str]], asked: str) -> list[dict[str, Any]]:
    """Return a conversation about a picture that ends with a question, with every text as a part."""
    turns: list[dict[str, Any]] = []
    for question, answer in history:
        turns.append({"role": "user", "content": [{"type": "text", "text": question}]})
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    turns.append({"role": "user", "content": [{"type": "text", "text": asked}]})
    turns[0]["content"].insert(0, {"type": "image", "image": picture})
    return turns


def _answer(
    network: Any, processor: Any, turns: list[dict[str, Any]], max_new_tokens: int, model: str
) -> str:
    """Stream the answer to the last of `turns` to standard output, and return it."""
    import torch
    from transformers import TextStreamer

    from ..common.models import opening
    from .generation import is_maya

    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    # Models of other families raise errors of their own.
    with (
        nullcontext()
        if is_maya(network)
        else opening(model, "give a model that chats about a picture")
    ):
        inputs = processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(network.device, network.dtype)
        with torch.inference_mode():
            output = network.generate(
                **inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer
            )
    new = output[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip()


def question_in(question: str | None, language: str | None) -> str:
    """Return the question to ask the model, so that it answers in `language`.

    Maya answers in the language of the question. A question of the mini dataset is replaced by its
    wording in `language`. To any other question a sentence is appended that asks for the language.
    Without `language` the question is unchanged.

    Raises:
        ValueError: `language` is not a BCP-47 code, or the question is empty.
    """
    with QUESTIONS.open(encoding="utf-8") as stream:
        known = json.load(stream)
    if language is not None:
        check_language(language, "language")
    if question is None:
        if language is None or language in known:
            return known[language or "en"]["name"][0]
        return f"{known['en']['name'][0]} {answer_in(language)}"
    check_text(question, "the question")
    if not question.strip():
        raise ValueError("the question is empty; leave it out to ask what the picture shows")
    if language is None:
        return question
    for own, tasks in known.items() if language in known else ():
        for task, wordings in tasks.items():
            for number, wording in enumerate(wordings if isinstance(wordings, list) else []):
                found = _matches(wording, question)
                if found is not None:
                    others = known[language][task]
                    other = wording if own == language else others[min(number, len(others) - 1)]
                    return other.replace("{name}", found)
    return f"{question} {answer_in(language)}"


def answer_in(language: str) -> str:
    """Return the sentence that asks for an answer in a language."""
    if language in ANSWER_IN:
        return ANSWER_IN[language]
    name = OTHER_NAMES.get(language.partition("-")[0].lower())
    if name is None:
        return f"Answer in the language with the code {language}."
    return f"Answer in {name}." if "-" not in language else f"Answer in {name} ({language})."


def _matches(wording: str, question: str) -> str | None:
    """Match a question with a wording that may contain `{name}`.

    Returns the name that the question asks about ("" for a wording without one), or None if they differ.
    """
    parts = [re.escape(part) for part in wording.split("{name}")]
    found = re.fullmatch(r"(?P<name>.+)".join(parts), question.strip(), re.IGNORECASE)
    return None if found is None else found.groupdict().get("name") or ""
