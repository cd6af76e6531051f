"""`maya chat IMAGE "question" --language hi`: one question about one picture, answered as it comes."""

import json
import re
from pathlib import Path

QUESTIONS = Path(__file__).resolve().parent / "data" / "mini_dataset" / "prompts.json"

# How each language asks for an answer in itself, behind a question in any other.
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
) -> str:
    """Print the model's answer to standard output, piece by piece, and return it.

    Args:
        model: a folder or Hub repository.
        image: a file, an http(s) address or a data URI; see `maya_vlm.training.images.load_image`.
        question: default: "What is this?" in `language`.
        language: BCP-47 code of the language to answer in; default: the question's own.
            See `question_in`.
        max_new_tokens: the longest answer.
        trust_remote_code: passed on to transformers, for models other than Maya.

    Raises:
        ValueError, FileNotFoundError, OSError, MemoryError: in one line, for an unknown language, a
            picture that cannot be read, a folder that is no model.
    """
    asked = question_in(question, language)
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")

    from .images import load_image

    picture = load_image(image)

    import torch
    from transformers import TextStreamer

    from .evaluation.model import load

    network, processor = load(model, trust_remote_code)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": asked}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(network.device, network.dtype)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with torch.inference_mode():
        output = network.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer
        )
    new = output[0, inputs["input_ids"].shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip()


def question_in(question: str | None, language: str | None) -> str:
    """The question as it is put to the model.

    Maya answers in the language it is asked in. So a question of the mini dataset is asked in its
    wording for `language`; behind any other, a sentence asks for the language. Without `language`
    the question stays as it is. Raises ValueError for an unknown language, naming the known ones,
    and for an empty question.
    """
    with QUESTIONS.open(encoding="utf-8") as stream:
        known = json.load(stream)
    if language is not None and language not in known:
        raise ValueError(f"unknown language {language!r}; known: {', '.join(known)}")
    if question is None:
        return known[language or "en"]["name"][0]
    if not question.strip():
        raise ValueError("the question is empty; leave it out to ask what the picture shows")
    if language is None:
        return question
    for own, tasks in known.items():
        for task, wordings in tasks.items():
            for number, wording in enumerate(wordings if isinstance(wordings, list) else []):
                found = _matches(wording, question)
                if found is not None:
                    others = known[language][task]
                    other = wording if own == language else others[min(number, len(others) - 1)]
                    return other.replace("{name}", found)
    return f"{question} {ANSWER_IN[language]}"


def _matches(wording: str, question: str) -> str | None:
    """The name that a wording with `{name}` asks about ("" for one without); None if it differs."""
    parts = [re.escape(part) for part in wording.split("{name}")]
    found = re.fullmatch(r"(?P<name>.+)".join(parts), question.strip(), re.IGNORECASE)
    return None if found is None else found.groupdict().get("name") or ""
