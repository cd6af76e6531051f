"""Ask a model one question in one language, or in all languages from one cache.

A Space gets a copy of this file next to app.py, so it imports only torch and transformers.
"""

import copy
import html
import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import TextIteratorStreamer

MAX_NEW_TOKENS = 256
# Inputs with one value per token. The shared prefix is computed without them.
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
RIGHT_TO_LEFT = ("ar", "fa", "he", "ps", "ur")


class Asking:
    """One model and the languages of its questions.

    Args:
        network, processor: an image-text-to-text model and its processor.
        languages: code -> {"name": in the language itself, "question": "What is this?", "answer_in":
            the sentence that asks for an answer in it}.
    """

    def __init__(self, network: Any, processor: Any, languages: dict[str, dict[str, str]]):
        self.network, self.processor, self.languages = network, processor, languages

    def question(self, text: str | None, language: str) -> str:
        """Return the question to ask the model. For an empty text, it is the language's "What is this?"."""
        words = self.languages[language]
        text = (text or "").strip()
        return f"{text} {words['answer_in']}" if text else words["question"]

    def encode(self, picture: str, text: str) -> Any:
        """Return the model's inputs for one question about a picture's file."""
        content = [{"type": "image", "path": picture}, {"type": "text", "text": text}]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return inputs.to(self.network.device, self.network.dtype)

    def stream(self, **inputs: Any) -> Iterator[str]:
        """Yield the growing answer. Raise the error of the generation, if any."""
        pieces = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                self.network.generate(
                    **inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, streamer=pieces
                )
            except BaseException as error:
                failed.append(error)
                pieces.end()

        thread = threading.Thread(target=generate)
        thread.start()
        text = ""
        for piece in pieces:
            text += piece
            yield text.strip()
        thread.join()
        if failed:
            raise failed[0]

    def answer(self, picture: str, text: str | None, language: str) -> Iterator[str]:
        """Yield the growing answer in one language."""
        yield from self.stream(**self.encode(picture, self.question(text, language)))

    def answers(self, picture: str, text: str | None) -> Iterator[dict[str, str]]:
        """Yield the growing answers in all languages, by language code.

        The picture is encoded once: the common first tokens of all questions, including the picture's tokens,
        share one key-value cache.
        """
        asked = {code: self.encode(picture, self.question(text, code)) for code in self.languages}
        rows = [inputs["input_ids"][0].tolist() for inputs in asked.values()]
        shared = 0
        while len({tuple(row[: shared + 1]) for row in rows}) == 1 and shared + 1 < len(rows[0]):
            shared += 1
        first = next(iter(asked.values()))
        with torch.inference_mode():
            output = self.network(
                **{name: value for name, value in first.items() if name not in PER_TOKEN},
                input_ids=first["input_ids"][:, :shared],
                use_cache=True,
            )
        # transformers 5.24 renamed the field.
        name = "cache" if "cache" in output else "past_key_values"
        found: dict[str, str] = {}
        for code, inputs in asked.items():
            for found[code] in self.stream(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                **{name: copy.deepcopy(output[name])},
            ):
                yield dict(found)

    def paragraph(self, text: str, language: str) -> str:
        """Return an answer as HTML, in its language and direction. The text is escaped."""
        return self._marked("p", text, language)

    def table(self, answers: dict[str, str]) -> str:
        """Return answers in several languages as HTML, each below the language's own name."""
        return "".join(
            f"<div>{self._marked('h3', self.languages[code]['name'], code)}"
            f"{self.paragraph(text, code)}</div>"
            for code, text in answers.items()
        )

    def _marked(self, tag: str, text: str, language: str) -> str:
        return f'<{tag} lang="{language}" dir="{direction(language)}">{html.escape(text)}</{tag}>'


def direction(language: str) -> str:
    """Return the direction of a language's script: "rtl" or "ltr"."""
    return "rtl" if language.split("-")[0] in RIGHT_TO_LEFT else "ltr"
