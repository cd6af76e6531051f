"""Kaleidoscope: exam questions written in 18 languages, with and without a picture.

Source: Kaleidoscope (2504.07072). The direct prompt is the paper's for open models and asks for JSON. The thinking
prompt is the paper's for closed models and asks for a chain of thought. Both are as in lmms-eval 0.7.3 for chat
models. Options may be pictures. A chat template may put all pictures before the text, in their order, as Maya's
do. Pictures are scaled to 512 x 512 as in the reference. The reference samples (temperature 0.7); decoding here is
greedy.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from ...common.images import ImageStore, decode_picture, to_rgb
from ...common.places import open_place
from ...common.telling import one_line, reason
from ...inference.generation import Answer
from ..protocol import (
    Loaded,
    Picture,
    Request,
    Score,
    Selection,
    Task,
    chosen_languages,
    in_order,
)
from ..public import UNSEEN, Split, loaded_in
from ..scoring.choices import LATIN, letters_for
from ..scoring.choices_public import CHOICE_PARSERS
from .kaleidoscope_thinking import INSTRUCTIONS

REPOSITORY = "CohereLabs/kaleidoscope"
COLUMNS = ("question", "options", "answer", "image", "language")
# The zip file of the pictures, and its folder to which the names in the column `image` are relative.
ARCHIVE, INSIDE = "data.zip", "final_data/"
SIZE = (512, 512)
MAX_NEW_TOKENS = 1024
SYSTEM = (
    "You are a helpful assistant who answers multiple-choice questions. For each question, output your "
    "final answer in JSON format with the following structure:\n\n"
    '{"choice": "The correct option (e.g., A, B, C, or D)"}\n\n'
    "ONLY output this format exactly. Do not include any additional text or explanations outside the JSON "
    "structure."
)
INSTRUCTION = "Output your choice in the specified JSON format."
# The words "Question" and "Options" in each language.
HEADINGS = {
    "ar": ("السؤال", "الخيارات"),
    "bn": ("প্রশ্ন", "বিকল্প"),
    "de": ("Frage", "Optionen"),
    "en": ("Question", "Options"),
    "es": ("Pregunta", "Opciones"),
    "fa": ("سؤال", "گزینه\u200cها"),
    "fr": ("Question", "Options"),
    "hi": ("प्रश्न", "विकल्प"),
    "hr": ("Pitanje", "Opcije"),
    "hu": ("Kérdés", "Lehetőségek"),
    "lt": ("Klausimas", "Pasirinkimai"),
    "ne": ("प्रश्न", "विकल्पहरू"),
    "nl": ("Vraag", "Opties"),
    "pt": ("Pergunta", "Opções"),
    "ru": ("Вопрос", "Варианты"),
    "sr": ("Pitanje", "Opcije"),
    "te": ("ప్రశ్న", "ఎంపికలు"),
    "uk": ("Питання", "Варіанти"),
}
PARSERS = {
    "direct": "choice_kaleidoscope",
    "strict": "choice",
    "thinking": "choice_kaleidoscope_thinking",
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class Kaleidoscope(Task):
    """Exams in 18 languages: 20,911 questions, 55 % with a picture."""

    version = "2"
    languages = tuple(HEADINGS)
    name = "kaleidoscope"
    title = "Kaleidoscope"
    contamination = f"{UNSEEN} The exams are on the web, where a language model may have read them."
    protocols = {
        # The default is the paper's protocol for open models.
        "direct": "Kaleidoscope (2504.07072), direct prompt, format_answer: other forms are wrong",
        "strict": "as direct, but an answer in any form is read by this package's parser",
        "thinking": "Kaleidoscope (2504.07072), zero-shot chain-of-thought prompt, <ANSWER> X </ANSWER>",
    }
    subsets = {"image": "with a picture", "text": "without one", "all": "all"}
    metrics = {
        "accuracy": {"title": "accuracy", "higher_is_better": True, "percent": True},
        "valid_accuracy": {
            "title": "accuracy of answers that could be read",
            "higher_is_better": True,
            "percent": True,
        },
    }

    def __init__(self, protocol: str | None = None):
        super().__init__(protocol)
        self.parser = CHOICE_PARSERS[PARSERS[self.protocol]]

    def describe(self) -> dict[str, Any]:
        return {
            "system": self.system("en"),
            "prompt": "".join(map(str, self.content("en", "{question}", {"A": "...", "B": "..."}))),
            "max_new_tokens": MAX_NEW_TOKENS,
            "parser": self.parser.id,
            "pictures": f"{SIZE[0]} x {SIZE[1]}",
        }

    def load(self, selection: Selection) -> Loaded:
        name = selection.split or "train"
        split = Split(selection, REPOSITORY, None, "default", name, COLUMNS)
        if split.folder is not None and (split.folder / ARCHIVE).is_file():
            split.files.append(str(split.folder / ARCHIVE))
        asked = chosen_languages(selection.languages, in_order(HEADINGS), name)
        requests: list[Request] = []
        for number, row in split.rows():
            language, texts, right = row["language"], row["options"] or [], row["answer"]
            if language not in HEADINGS or right is None or not 0 <= right < len(texts):
                raise ValueError(
                    f"{split.place}: row {number}: expected a language of {', '.join(HEADINGS)} and the "
                    f"index of one of {len(texts)} options, found {language!r} and {right!r}"
                )
            if language not in asked:
                continue
            options = letters_for(texts)
            picture = row["image"] if (row["image"] or "None").lower() != "none" else None
            requests.append(
                Request(
                    id=f"{name}/{number}",
                    language=language,
                    content=self.content(language, row["question"], options, picture),
                    system=self.system(language),
                    max_new_tokens=MAX_NEW_TOKENS,
                    item=picture or f"{name}/{number}",
                    subset="image" if picture or any(map(_is_picture, texts)) else "text",
                    expected=LATIN[right],
                    about={"options": options},
                    chance=1 / len(options),
                )
            )
        pictures = _Pictures(split)
        made = loaded_in(selection, dict.fromkeys(asked, split), requests, pictures, name)
        first = next((key for request in made.requests for key in request.pictures), None)
        if first is not None:
            # Report missing pictures before the first question is asked.
            pictures.open(made.data["revision"])
            pictures.load(first)
        return made

    def system(self, language: str) -> str:
        """Return the system turn."""
        return INSTRUCTIONS[language] if self.protocol == "thinking" else SYSTEM

    def content(
        self, language: str, question: str, options: Mapping[str, str], picture: str | None = None
    ) -> tuple[str | Picture, ...]:
        """Return the user's turn, with the picture before the question, or after it in the thinking protocol."""
        shown = [Picture(picture)] if picture else []
        listed: list[str | Picture] = []
        for letter, text in options.items():
            named = Picture(text) if _is_picture(text) else text
            listed += [f"{letter}. ", named, "\n"]
        if self.protocol == "thinking":
            return _joined([question, *shown, "\nOptions:\n", *listed[:-1]])
        asked, offered = HEADINGS[language]
        lead = f"{INSTRUCTION}\n\n{asked}: {question}\n{offered}:\n"
        return _joined([*shown, lead, *listed, "\nANSWER:"])

    def score(self, request: Request, answer: Answer) -> Score:
        letter = self.parser(answer.text, request.about["options"]).letter
        right = float(letter == request.expected)
        values = {"accuracy": right, "valid_accuracy": None if letter is None else right}
        return Score(values, letter, letter is None)


def _joined(parts: Iterable[str | Picture]) -> tuple[str | Picture, ...]:
    """Join texts that follow one another."""
    found: list[str | Picture] = []
    for part in parts:
        if found and isinstance(part, str) and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


def _is_picture(option: str) -> bool:
    return option.lower().endswith(PICTURES)


class _Pictures:
    """The pictures of the zip file next to the dataset's files, or of the folder it was unpacked to."""

    def __init__(self, split: Split):
        self.split = split
        self.store, self.inside = ImageStore(None), ""

    def open(self, revision: str | None) -> None:
        """Open the zip file or folder of the pictures.

        Raises:
            ValueError, OSError: in one line.
        """
        place = self.split.folder
        if place is None:
            from huggingface_hub import hf_hub_download

            try:
                place = Path(
                    hf_hub_download(
                        self.split.name, ARCHIVE, repo_type="dataset", revision=revision
                    )
                )
            except (OSError, ValueError) as error:
                raise OSError(
                    f"{self.split.name}: {ARCHIVE}: cannot be read: {reason(error)}"
                ) from error
        elif (place / ARCHIVE).is_file():
            place = place / ARCHIVE
        self.store = ImageStore(open_place(place))
        self.inside = INSIDE if place.name == ARCHIVE else ""

    def load(self, key: str) -> Image.Image:
        try:
            content = self.store.read(f"{self.inside}{key}")
            return to_rgb(decode_picture(content, key)).resize(SIZE)
        except ValueError as error:
            raise ValueError(
                one_line(f"{self.split.place}: picture {key!r} cannot be decoded: {error}")
            ) from None
